"""One run of a study: a start tuned and judged on every benchmark."""

from __future__ import annotations

from pathlib import Path

import polars as pl
import pyarrow as pa

from pipeline.artifacts import replacing, write_table
from pipeline.benchmarks.cache import class_names, few_shots, samples_of
from pipeline.benchmarks.evaluation import judge, scores_table
from pipeline.benchmarks.params import Benchmark, FewShot, Tuning
from pipeline.benchmarks.schemas import STUDY_SCORES
from pipeline.benchmarks.scores import averages
from pipeline.clip.backbone import Backbone
from pipeline.clip.params import BackboneParams
from pipeline.gram.tune import tune
from pipeline.prompts.starts import Start, method_of, save_start

# What `tune_and_judge` needs of params.yaml, for a stage's READS.
TRIAL = {
    "backbone": ("backbone", BackboneParams),
    "benchmarks": ("benchmarks", dict[str, Benchmark]),
    "few_shot": ("few_shot", FewShot),
    "tuning": ("tuning", Tuning),
}


def tune_and_judge(backbone: Backbone, start: Start, seed: int, folder: Path, work: Path, *, benchmarks: dict[str, Benchmark], few_shot: FewShot, tuning: Tuning, progress) -> str:
    """Writes the start, scores.parquet (every test picture's verdict after the last epoch) and epochs.csv to `work`.

    Args:
        seed: of the run; the few-shot draw is `few_shot.seeds[seed − 1]`, in turn.
        folder: the benchmarks' artifacts, a folder each.

    Returns:
        The averages over benchmarks in words.
    """
    save_start(start, work)
    draw = few_shot.seeds[(seed - 1) % len(few_shot.seeds)]
    parts, epochs = [], []
    for name, benchmark in progress(benchmarks.items(), "benchmarks"):
        method = method_of({"prompt": start.prompt, "depth": str(start.depth)}, backbone, benchmark.template)
        states = {0: start.theta}
        if start.theta:
            shots = few_shots(folder / name, method, draw)
            tuned = tune(method, start.theta, start.phi, start.input_scale, class_names(samples_of(folder / name), "base"), shots.views, shots.labels, tuning, draw)
            states |= dict(enumerate(tuned, 1))
        for half in ("base", "new"):
            index, wanted, predicted = judge(method, folder / name, states, half)
            epochs += [(name, epoch, half, 100 * float((found == wanted).mean())) for epoch, found in predicted.items()]
            parts.append(scores_table(seed, half, index, wanted, predicted[max(states)]).append_column("benchmark", pa.array([name] * len(index))))
    write_table(pa.concat_tables(parts), work / "scores.parquet", STUDY_SCORES)
    with replacing(work / "epochs.csv") as temporary:
        pl.DataFrame(epochs, schema=["benchmark", "epoch", "half", "top1"], orient="row").write_csv(temporary, float_precision=4)
    found = averages(pl.from_arrow(pa.concat_tables(parts)))
    return f"base {found['base']:.2f}, new {found['new']:.2f}, H {found['H']:.2f} (%, average of {len(benchmarks)} benchmarks)"
