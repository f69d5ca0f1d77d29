"""One run of a study: a start tuned and judged on every benchmark."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

from pipeline.artifacts import read_json
from pipeline.benchmarks.cache import few_shots
from pipeline.benchmarks.evaluation import judge_source
from pipeline.benchmarks.headline import headline, in_words
from pipeline.benchmarks.judged import read_verdicts, save_judged
from pipeline.benchmarks.params import Count, PromptTemplate, Protocols, Rates, Seeds, Sgd
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

    templates: dict[str, str]
    sources: list[str]
    shots: int
    draws: list[int]
    tuning: Sgd


# The fields of `Trial`, and the backbone, for a stage's READS.
TRIAL = {
    "backbone": ("backbone", BackboneParams),
    "templates": ("templates", dict[str, PromptTemplate]),
    "sources": ("study.benchmarks", list[str]),
    "shots": ("study.shots", Count),
    "draws": ("few_shot.draws", Seeds),
    "rates": ("tuning", Rates),
}


def trial_of(p: SimpleNamespace, batch: Path) -> Trial:
    """From what a stage read of `TRIAL`, and the file with the batch of the method's kind."""
    tuning = Sgd(**p.rates.model_dump(), batch=read_json(batch)["batch"])
    return Trial(p.templates, p.sources, p.shots, p.draws, tuning)


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
    settings = Protocols(base_to_new=[shots], all_classes=[])
    for name in progress(trial.sources, "benchmarks"):
        method = method_of(start.about, backbone, trial.templates[name])
        drawn = few_shots(folder / name, method, "base", shots, draw)
        curve = f"loss/{name}"
        told = lambda epoch, loss, curve=curve: watch(epoch, **{curve: loss})
        with naming(f"{start.prompt} on {name}, {Run('base', shots, draw)}"):
            tuned = tune(method, start, drawn, trial.tuning, draw, told)
        after = {(shots, seed, epoch): t for epoch, t in enumerate([start.theta, *tuned])}
        judged = judge_source(name, settings, {"base": after, "all": {}}, lambda _: method, folder)
        save_judged(judged, work, name)
    found = headline(read_verdicts(work, trial.sources), {})
    return f"{in_words(found)}, average of {len(trial.sources)} benchmarks"
