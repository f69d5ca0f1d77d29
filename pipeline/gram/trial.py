"""One run of a study: a start tuned and judged on every benchmark."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from pipeline.benchmarks.cache import few_shots
from pipeline.benchmarks.evaluation import judge_source
from pipeline.benchmarks.headline import headline, in_words
from pipeline.benchmarks.judged import read_verdicts, save_judged
from pipeline.benchmarks.params import Benchmark, Count, Seeds, Protocols, Tuning
from pipeline.clip.backbone import Backbone
from pipeline.clip.params import BackboneParams
from pipeline.gram.tune import tune
from pipeline.prompts.starts import Start, method_of, save_start

# What `tune_and_judge` needs of params.yaml, for a stage's READS.
TRIAL = {
    "backbone": ("backbone", BackboneParams),
    "benchmarks": ("benchmarks", dict[str, Benchmark]),
    "sources": ("study.benchmarks", list[str]),
    "shots": ("study.shots", Count),
    "draws": ("few_shot.draws", Seeds),
    "tuning": ("tuning", Tuning),
}


def tune_and_judge(
    backbone: Backbone,
    start: Start,
    seed: int,
    folder: Path,
    work: Path,
    *,
    benchmarks: dict[str, Benchmark],
    sources: list[str],
    shots: int,
    draws: list[int],
    tuning: Tuning,
    progress,
    watch: Callable,
) -> str:
    """Writes the start and, for every source, <source>.parquet and <source>.csv (accuracy after
    every epoch) to `work`.

    Args:
        seed: of the run; the few-shot draw is `draws[seed − 1]`, in turn.
        folder: the benchmarks' artifacts, a folder each.
        watch: told of every epoch's mean loss on every source.

    Returns:
        The averages over benchmarks in words.
    """
    save_start(start, work)
    draw = draws[(seed - 1) % len(draws)]
    settings = Protocols(base_to_new=[shots])
    for name in progress(sources, "benchmarks"):
        method = method_of(start.about, backbone, benchmarks[name].template)
        found = few_shots(folder / name, method, "base", shots, draw)
        tuned = tune(
            method,
            start.theta,
            start.phi,
            start.input_scale,
            found.names,
            found.views,
            found.labels,
            tuning.of(start.prompt),
            draw,
            lambda epoch, loss: watch(epoch, **{f"loss/{name}": loss}),
        )
        states = {
            (shots, seed, epoch): tokens for epoch, tokens in enumerate([start.theta, *tuned])
        }
        save_judged(
            judge_source(name, settings, {"base": states, "all": {}}, lambda _: method, folder),
            work,
            name,
        )
    return (
        f"{in_words(headline(read_verdicts(work, sources), {}))}, average of {len(sources)} "
        "benchmarks"
    )
