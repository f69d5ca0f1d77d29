"""What others published (`published.json`): the tables of GRAM's paper, and averages of other
methods.
"""

from __future__ import annotations

from pathlib import Path

from pydantic import BaseModel, ConfigDict

Triple = tuple[float, float, float]  # base, new, H in percent


class _Data(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class BaseToNew(_Data):
    """Table 1: method → figures, on average and for every benchmark."""

    table: int
    shots: int
    average: dict[str, Triple]
    benchmarks: dict[str, dict[str, Triple]]


class Transfer(_Data):
    """Tables 2 to 5: method → accuracy on the source, on every target, and on average over the
    targets.
    """

    table: int
    shots: int
    source: str
    targets: tuple[str, ...]
    rows: dict[str, tuple[float, ...]]


class Variant(_Data):
    """A row of Tables 6 and 7."""

    title: str
    method: str  # its name in `study.methods`
    figures: Triple


class Variants(_Data):
    table: int
    rows: tuple[Variant, ...]


class Published(_Data):
    """All accuracies in percent, as printed."""

    paper: str
    methods: dict[str, str]  # key → title, in the paper's order; benchmarks likewise
    benchmarks: dict[str, str]
    base_to_new: BaseToNew
    cross_domain: tuple[Transfer, ...]
    cross_dataset: tuple[Transfer, ...]
    ablation: Variants
    tokens: Variants
    notes: dict[int, tuple[str, ...]]  # number of a table → what is odd about the paper's figures
    others: dict[str, Triple]  # title → averages over Table 1's benchmarks
    others_from: str

    def notes_on(self, table: int | None) -> tuple[str, ...]:
        return () if table is None else self.notes.get(table, ())


def published() -> Published:
    return Published.model_validate_json(
        Path(__file__).with_name("published.json").read_text(encoding="utf-8")
    )
