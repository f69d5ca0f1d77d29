"""What is tuned on a benchmark, and where it is judged: base-to-new, few-shot, cross-domain and
cross-dataset.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from pipeline.benchmarks.params import Protocols, Tunings

HALVES = ("base", "new")
TRANSFERS = ("cross_domain", "cross_dataset")


class Exam(NamedTuple):
    """Test pictures of `benchmark`, judged under the head of its base, new or all classes."""

    benchmark: str
    head: str


class Run(NamedTuple):
    """A tuning on one draw of the base or all classes."""

    classes: str
    shots: int
    seed: int

    def __str__(self) -> str:
        return f"{self.shots} shots of {self.classes} classes, seed {self.seed}"


def runs_of(protocols: Tunings, seeds: list[int]) -> list[Run]:
    return [
        Run(classes, shots, seed)
        for classes, numbers in (("base", protocols.base_to_new), ("all", protocols.all_classes))
        for shots in numbers
        for seed in seeds
    ]


def exams_of(name: str, protocols: Protocols) -> dict[str, list[Exam]]:
    """Where prompts are judged, by the classes that they were tuned on; nothing for what is not
    tuned.
    """
    targets = dict.fromkeys([name, *protocols.cross_domain, *protocols.cross_dataset])  # once each
    return {
        "base": [Exam(name, half) for half in HALVES] if protocols.base_to_new else [],
        "all": [Exam(target, "all") for target in targets] if protocols.all_classes else [],
    }


def targets_of(name: str, protocols: Protocols, kind: str) -> list[str]:
    """The benchmarks of `cross_domain` or `cross_dataset`, without the source itself: an average
    over targets leaves it out.
    """
    return [target for target in getattr(protocols, kind) if target != name]


def few_shot_alone(protocols: Mapping[str, Protocols]) -> list[str]:
    """The sources that are tuned on all classes, and judged on nothing but their own test part."""
    return [
        name
        for name, of in protocols.items()
        if of.all_classes and not any(targets_of(name, of, kind) for kind in TRANSFERS)
    ]


def judged_on(protocols: Mapping[str, Protocols]) -> list[str]:
    """Every benchmark that something is judged on, once."""
    return list(
        dict.fromkeys(
            exam.benchmark
            for name, of in protocols.items()
            for exams in exams_of(name, of).values()
            for exam in exams
        )
    )
