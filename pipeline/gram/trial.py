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
from pipeline.benchmarks.params import Count, PromptTemplate, Protocols, Rates, Seeds, Sgd, sgd_of
from pipeline.benchmarks.protocols import Run
from pipeline.clip.backbone import Backbone
from pipeline.clip.params import BackboneParams
from pipeline.errors import naming
from pipeline.gram.params import DrawsOfASeed
from pipeline.gram.tune import tune, warn_of_single_steps
from pipeline.prompts.starts import Start, method_of, save_start
from pipeline.stage import progress, unwatched


@dataclass(frozen=True)
class Trial:
    """What a start is tuned on: `shots` pictures per class of every benchmark of `sources`.

    Attributes:
        draws: seeds of the few-shot draws. which: "turns": seed s of a study takes the s-th of
            them, in turn; "all": every seed takes all of them, so that their spread can be told
            from that of the learning.
    """

    templates: dict[str, str]
    sources: list[str]
    shots: int
    draws: list[int]
    tuning: Sgd
    which: DrawsOfASeed = "turns"

    def of(self, seed: int) -> list[int]:
        """The draws that a seed of the study is tuned on, its own in turn first."""
        own = self.draws[(seed - 1) % len(self.draws)]
        others = self.draws if self.which == "all" else []
        return list(dict.fromkeys([own, *others]))


# The fields of `Trial`, and the backbone, for a stage's READS.
TRIAL = {
    "backbone": ("backbone", BackboneParams),
    "templates": ("templates", dict[str, PromptTemplate]),
    "sources": ("study.benchmarks", list[str]),
    "shots": ("study.shots", Count),
    "draws": ("few_shot.draws", Seeds),
    "which": ("study.draws", DrawsOfASeed),
    "rates": ("tuning", Rates),
}


def trial_of(p: SimpleNamespace, batch: Path) -> Trial:
    """From what a stage read of `TRIAL`, and the file that the stage `batch` wrote."""
    tuning = sgd_of(p.rates, read_json(batch))
    return Trial(p.templates, p.sources, p.shots, p.draws, tuning, p.which)


def tune_and_judge(
    backbone: Backbone,
    start: Start,
    seed: int,
    trial: Trial,
    folder: Path,
    work: Path,
    watch: Callable = unwatched,
) -> str:
    """Writes the start and, for every source, <source>.parquet and <source>.csv to `work`: judged
    after every epoch on the seed's own draw, after the last on the others. Their column `seed` is
    the few-shot draw's.

    Args:
        folder: the benchmarks' artifacts, a folder each.
        watch: told of every epoch's mean loss on every source.

    Returns:
        The averages over benchmarks in words.
    """
    save_start(start, work)
    shots = trial.shots
    settings, images = Protocols(base_to_new=[shots], all_classes=[]), {}
    for name in progress(trial.sources, "benchmarks"):
        method, after = method_of(start.about, backbone, trial.templates[name]), {}
        for number, draw in enumerate(trial.of(seed)):
            drawn = few_shots(folder / name, method, "base", shots, draw)
            images[f"{name}, {shots} shots of base classes"] = len(drawn.labels)
            curve = f"loss/{name}/{draw}" if number else f"loss/{name}"
            told = lambda epoch, loss, curve=curve: watch(epoch, **{curve: loss})
            with naming(f"{start.prompt} on {name}, {Run('base', shots, draw)}"):
                tuned = tune(method, start, drawn, trial.tuning, draw, told)
            states = dict(enumerate([start.theta, *tuned]))
            judged_after = [len(tuned)] if number else list(states)
            after |= {(shots, draw, epoch): states[epoch] for epoch in judged_after}
        judged = judge_source(name, settings, {"base": after, "all": {}}, lambda _: method, folder)
        save_judged(judged, work, name)
    warn_of_single_steps(start.prompt, trial.tuning.batch, images)
    found = headline(read_verdicts(work, trial.sources), {})
    return f"{in_words(found)}, average of {len(trial.sources)} benchmarks"
