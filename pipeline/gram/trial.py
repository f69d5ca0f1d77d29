"""One run of a study: a start tuned and judged on every benchmark."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from pipeline.benchmarks.cache import few_shots
from pipeline.benchmarks.evaluation import judge_source
from pipeline.benchmarks.headline import headline, in_words
from pipeline.benchmarks.judged import read_verdicts, save_judged
from pipeline.benchmarks.params import Benchmark, Count, Protocols, Seeds, Tuning
from pipeline.benchmarks.protocols import Run
from pipeline.clip.backbone import Backbone
from pipeline.clip.params import BackboneParams
from pipeline.errors import naming
from pipeline.gram.tune import tune
from pipeline.prompts.starts import Start, method_of, save_start
from pipeline.stage import progress, unwatched


@dataclass(frozen=True)
class Trial:
    """What a start is tuned on: `shots` pictures per class of every benchmark of `sources`.

    Attributes:
        draws: seeds of the few-shot draws; seed s of a study takes the s-th of them, in turn.
    """

    benchmarks: dict[str, Benchmark]
    sources: list[str]
    shots: int
    draws: list[int]
    tuning: Tuning


# The fields of `Trial`, and the backbone, for a stage's READS.
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
    trial: Trial,
    folder: Path,
    work: Path,
    watch: Callable = unwatched,
) -> str:
    """Writes the start and, for every source, <source>.parquet and <source>.csv (accuracy after
    every epoch) to `work`.

    Args:
        folder: the benchmarks' artifacts, a folder each.
        watch: told of every epoch's mean loss on every source.

    Returns:
        The averages over benchmarks in words.
    """
    save_start(start, work)
    draw, shots = trial.draws[(seed - 1) % len(trial.draws)], trial.shots
    settings, tuning = Protocols(base_to_new=[shots]), trial.tuning.of(start.prompt)
    for name in progress(trial.sources, "benchmarks"):
        method = method_of(start.about, backbone, trial.benchmarks[name].template)
        drawn = few_shots(folder / name, method, "base", shots, draw)
        curve = f"loss/{name}"
        told = lambda epoch, loss, curve=curve: watch(epoch, **{curve: loss})
        with naming(f"{start.prompt} on {name}, {Run('base', shots, draw)}"):
            tuned = tune(method, start, drawn, tuning, draw, told)
        after = {(shots, seed, epoch): t for epoch, t in enumerate([start.theta, *tuned])}
        judged = judge_source(name, settings, {"base": after, "all": {}}, lambda _: method, folder)
        save_judged(judged, work, name)
    found = headline(read_verdicts(work, trial.sources), {})
    return f"{in_words(found)}, average of {len(trial.sources)} benchmarks"
