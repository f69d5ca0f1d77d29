"""The result tables in the paper's arrangement: what every cell holds, and why a cell is empty.

`pipeline/report/formats.py` writes them. Accuracies are in percent and unrounded.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from pipeline.benchmarks.protocols import TRANSFERS, few_shot_alone, targets_of
from pipeline.benchmarks.scores import Measured, Part, Setting, average, difference, harmonic
from pipeline.report.published import Published, Transfer, Variant, Variants

FIGURES = ("base", "new", "H")
AVERAGE = "average"
GROUPS = {"cross_domain": "Cross-domain", "cross_dataset": "Cross-dataset"}


@dataclass(frozen=True)
class Cell:
    """Our figure beside the paper's; `missing` says why there is none of ours."""

    value: float | None = None
    sd: float | None = None
    over_seeds: tuple[float, float] | None = None
    over_pictures: tuple[float, float] | None = None
    per_class: float | None = None
    seeds: int = 0
    paper: float | None = None
    missing: str = ""
    best: bool = False  # of a column; of a difference: both intervals leave zero out


@dataclass(frozen=True)
class Column:
    key: str
    title: str
    group: str = ""  # neighbours of one group share a heading
    mark: str = ""  # a footnote to the title


@dataclass(frozen=True)
class Row:
    key: str
    title: str
    cells: list[Cell]
    others: bool = False  # figures as others published them, in `paper`


@dataclass(frozen=True)
class Block:
    """A part of a table with a heading of its own, as Table 1 has one for every dataset."""

    key: str
    title: str
    columns: list[Column]
    rows: list[Row]
    mark: str = ""

    @property
    def paper(self) -> bool:
        """Whether the paper has any of these figures."""
        return any(c.paper is not None for r in self.rows for c in r.cells)


@dataclass(frozen=True)
class Table:
    key: str
    title: str
    caption: str
    blocks: list[Block]
    notes: list[str] = field(default_factory=list)
    differences: bool = False  # signed figures, shown with both intervals
    number: int | None = None  # in the paper, if it has this table

    @property
    def heading(self) -> str:
        return f"Table {self.number}: {self.title}" if self.number else self.title

    @property
    def footnotes(self) -> dict[str, str]:
        """Text → letter, in the order in which a reader meets them."""
        texts = [
            t
            for b in self.blocks
            for t in [
                b.mark,
                *(c.mark for c in b.columns),
                *(c.missing for r in b.rows for c in r.cells),
            ]
            if t
        ]
        return {
            text: chr(97 + i % 26) * (i // 26 + 1) for i, text in enumerate(dict.fromkeys(texts))
        }


@dataclass(frozen=True)
class Findings:
    """Everything that was measured, and what params.yaml says should have been.

    `sources`: benchmark → `base_to_new` and `all_classes` (numbers of shots), `cross_domain` and
    `cross_dataset` (benchmarks). `marks`: benchmark → a remark on how it was read.
    """

    measured: Mapping[Part, Measured]
    titles: Mapping[str, str]  # method → title
    benchmarks: Collection[str]
    sources: Mapping[str, Any]
    paper: Published
    marks: Mapping[str, str] = field(default_factory=dict)

    def accuracy(
        self, method: str, source: str, tuned_on: str, shots: int, benchmark: str, head: str
    ) -> Measured | str:
        """The figure, or why there is none. A method that tunes nothing is the same for every
        source.
        """
        run, untuned = Setting(method, source, tuned_on, shots), Setting(method, "", "", 0)
        for known in (run, untuned):
            if (known, benchmark, head) in self.measured:
                return self.measured[known, benchmark, head]
        if method not in self.titles:
            return f"method {method} is not in params.yaml"
        for name in (source, benchmark):
            if name not in self.benchmarks:
                return f"not evaluated: benchmark {name} is not in params.yaml"
        if not any(part[0] in (run, untuned) for part in self.measured):
            return (
                f"{self.title(method)} was not tuned on {source} ({shots} shots of {tuned_on} "
                "classes)"
            )
        return f"{self.title(method)} was not judged here"

    def targets(self, source: str, setting: str) -> list[str]:
        """What params.yaml lists for a source, which is none of its own targets."""
        return targets_of(source, self.sources[source], setting)

    def methods(self, with_paper: bool) -> list[str]:
        """Rows of a table: the paper's in its order, then our own."""
        theirs = [m for m in self.paper.methods if with_paper or m in self.titles]
        return theirs + [m for m in self.titles if m not in theirs]

    def title(self, method: str) -> str:
        return self.titles.get(method) or self.paper.methods.get(method, method)

    def name(self, benchmark: str) -> str:
        return self.paper.benchmarks.get(benchmark, benchmark)

    def in_order(self, benchmarks: Collection[str]) -> list[str]:
        """The paper's in its order, then the others."""
        return [b for b in self.paper.benchmarks if b in benchmarks] + [
            b for b in benchmarks if b not in self.paper.benchmarks
        ]


def cell(found: Measured | str, paper: float | None = None) -> Cell:
    if isinstance(found, str):
        return Cell(paper=paper, missing=found)
    return Cell(
        found.value,
        found.sd,
        found.over_seeds,
        found.over_pictures,
        found.per_class,
        len(found.seeds),
        paper,
    )


def reading(rows: list[Row]) -> str:
    """What a table's figures are: their spread only where there is one."""
    spread = any(c.sd is not None for r in rows for c in r.cells)
    return (
        f"Top-1 in percent{', mean ± standard deviation over seeds' if spread else ''}; bold: "
        "the best of a column."
    )


def with_best(rows: list[Row]) -> list[Row]:
    """The best of every column marked, as far as two decimals tell, where there is something to
    compare.
    """
    best = []
    for column in zip(*(r.cells for r in rows), strict=True):
        values = [round(c.value, 2) for c in column if c.value is not None]
        best.append(max(values) if len(values) > 1 else None)
    return [
        replace(
            r,
            cells=[
                replace(c, best=c.value is not None and round(c.value, 2) == b)
                for c, b in zip(r.cells, best, strict=True)
            ],
        )
        for r in rows
    ]


def mean_of(parts: Mapping[str, Measured | str]) -> Measured | str:
    """The average over benchmarks, or why there is none: it is of all of them or not at all."""
    missing = {name: part for name, part in parts.items() if isinstance(part, str)}
    if not missing:
        return average([part for part in parts.values() if not isinstance(part, str)])
    reasons = set(missing.values())
    return (
        reasons.pop()
        if len(missing) == len(parts) and len(reasons) == 1
        else f"no average without {', '.join(missing)}"
    )


def _harmonic_of(base: Measured | str, new: Measured | str) -> Measured | str:
    if isinstance(base, str):
        return base
    return new if isinstance(new, str) else harmonic(base, new)


def base_to_new_of(
    f: Findings, method: str, names: list[str], shots: int
) -> dict[str, list[Measured | str]]:
    """Benchmark (and `average`) → base, new, H."""
    halves = [
        {n: f.accuracy(method, n, "base", shots, n, head) for n in names}
        for head in ("base", "new")
    ]
    pairs = {n: (halves[0][n], halves[1][n]) for n in names} | {
        AVERAGE: (mean_of(halves[0]), mean_of(halves[1]))
    }
    return {n: [base, new, _harmonic_of(base, new)] for n, (base, new) in pairs.items()}


def sources_at(f: Findings, setting: str, shots: int) -> list[str]:
    return f.in_order([n for n, s in f.sources.items() if shots in getattr(s, setting)])


def _base_to_new_block(
    f: Findings, name: str, title: str, found: Mapping[str, list[Measured | str]], printed: Mapping
) -> Block:
    """A benchmark's part of Table 1, or the average's.

    Args:
        found: method → base, new, H. printed: method → the paper's.
    """
    unknown = (None,) * len(FIGURES)
    rows = [
        Row(
            m,
            f.title(m),
            [cell(v, p) for v, p in zip(figures, printed.get(m, unknown), strict=True)],
        )
        for m, figures in found.items()
    ]
    columns = [Column(k, k) for k in FIGURES]
    return Block(name, title, columns, with_best(rows), f.marks.get(name, ""))


def _of_others(f: Findings) -> list[Row]:
    """Averages of further methods, as they were published."""
    return [
        Row(title, title, [Cell(paper=v) for v in triple], others=True)
        for title, triple in f.paper.others.items()
        if title not in f.paper.methods.values()
    ]


def _other_benchmarks(f: Findings, names: list[str], shots: int) -> str:
    """Why the paper's average is not shown."""
    theirs = f.paper.base_to_new.benchmarks
    note = (
        f"The average is over other benchmarks than the paper's {len(theirs)}, "
        "whose average is therefore not shown."
    )
    if left := [n for n in theirs if n not in names]:
        note += (
            f" Not evaluated, as params.yaml does not tune on them with {shots} shots: "
            f"{', '.join(map(f.name, left))}."
        )
    return note


def base_to_new_table(f: Findings, shots: int, others: bool = False) -> Table | None:
    """Table 1: a block for the average and one for every benchmark; `others`: published averages
    of further methods.
    """
    names, theirs = sources_at(f, "base_to_new", shots), f.paper.base_to_new
    if not names:
        return None
    shared = [n for n in names if n in theirs.benchmarks] if shots == theirs.shots else []
    whole = set(names) == set(shared) == set(theirs.benchmarks)
    printed = {n: theirs.benchmarks[n] for n in shared} | (
        {AVERAGE: theirs.average} if whole else {}
    )
    found = {m: base_to_new_of(f, m, names, shots) for m in f.methods(bool(shared))}
    titles = {AVERAGE: f"Average over {len(names)} benchmarks"} if len(names) > 1 else {}
    blocks = [
        _base_to_new_block(f, n, title, {m: of[n] for m, of in found.items()}, printed.get(n, {}))
        for n, title in (titles | {n: f.name(n) for n in names}).items()
    ]
    judged = [row for block in blocks for row in block.rows]
    notes = [
        "H is the harmonic mean of base and new; of an average, the harmonic mean of the averages."
    ]
    if shared and not whole:
        notes.append(_other_benchmarks(f, names, shots))
    if whole and others:
        if titles:  # an average
            blocks[0] = replace(blocks[0], rows=blocks[0].rows + _of_others(f))
        notes.append(
            f"Rows in grey are published by others ({f.paper.others_from}); nothing of them was "
            "measured here."
        )
    number = theirs.table if shared else None
    return Table(
        f"base_to_new_{shots}",
        f"Base-to-new generalisation, {shots} shots",
        "Prompts are tuned on the base classes of a benchmark; base and new classes are judged "
        f"under their own heads. {reading(judged)}",
        blocks,
        [*notes, *f.paper.notes_on(number)],
        number=number,
    )


def transfer_of(
    f: Findings, method: str, source: str, targets: list[str], listed: Collection[str], shots: int
) -> dict[str, Measured | str]:
    """Source, targets and their `average` → accuracy; the average is over the targets that
    params.yaml lists.
    """
    found = {n: f.accuracy(method, source, "all", shots, n, "all") for n in [source, *targets]}
    return found | {AVERAGE: mean_of({n: found[n] for n in targets if n in listed})}


def _published_transfer(
    f: Findings, setting: str, source: str, shots: int, whole: bool = False
) -> Transfer | None:
    """The paper's table from a source, if it has any target that is judged here; `whole`: the same
    targets.
    """
    listed = set(f.targets(source, setting))
    for theirs in getattr(f.paper, setting):
        targets = set(theirs.targets)
        if (theirs.source, theirs.shots) == (source, shots) and (
            targets == listed if whole else targets & listed
        ):
            return theirs
    return None


def _transfer_row(
    f: Findings, method: str, setting: str, run: tuple[str, int], theirs: Transfer | None
) -> Row:
    """A method's figures on the source, the targets and on average; `run`: source, shots."""
    source, shots = run
    listed, targets = f.targets(source, setting), _targets_shown(f, setting, source, theirs)
    found = transfer_of(f, method, source, targets, listed, shots)
    for n in targets:
        known = n in f.benchmarks and method in f.titles
        if isinstance(found[n], str) and n not in listed and known:
            found[n] = f"{n} is not among the {setting} benchmarks of {source} in params.yaml"
    printed: dict[str, float | None] = {}
    if theirs and method in theirs.rows:
        names = [source, *theirs.targets, AVERAGE]
        printed |= zip(names, theirs.rows[method], strict=True)
        if set(listed) != set(theirs.targets):
            del printed[AVERAGE]
    cells = [cell(found[n], printed.get(n)) for n in [source, *targets, AVERAGE]]
    return Row(method, f.title(method), cells)


def _targets_shown(f: Findings, setting: str, source: str, theirs: Transfer | None) -> list[str]:
    """The paper's in its order, then the others that params.yaml lists."""
    printed = [*theirs.targets] if theirs else []
    return printed + [n for n in f.in_order(f.targets(source, setting)) if n not in printed]


def transfer_table(f: Findings, setting: str, source: str, shots: int) -> Table | None:
    """Tables 2 to 5: tuned on all classes of `source`, judged on other benchmarks; setting:
    cross_domain or cross_dataset.
    """
    listed = f.targets(source, setting)
    if not listed:
        return None
    theirs = _published_transfer(f, setting, source, shots)
    rows = [
        _transfer_row(f, m, setting, (source, shots), theirs) for m in f.methods(theirs is not None)
    ]
    columns = [
        Column(source, f.name(source), "Source", f.marks.get(source, "")),
        *(
            Column(n, f.name(n), "Target", f.marks.get(n, ""))
            for n in _targets_shown(f, setting, source, theirs)
        ),
        Column(AVERAGE, "Average", "Target"),
    ]
    notes = []
    if theirs and set(listed) != set(theirs.targets):
        notes.append(
            f"The average is over {', '.join(map(f.name, f.in_order(listed)))}, not over the "
            f"paper's {len(theirs.targets)} targets, whose average is therefore not shown."
        )
    number = theirs.table if theirs else None
    return Table(
        f"{setting}_{source}_{shots}",
        f"{GROUPS[setting]} generalisation from {f.name(source)}, {shots} shots",
        "Prompts are tuned on all classes of the source and judged on other benchmarks as they "
        f"are. The average leaves the source out. {reading(rows)}",
        [Block("", "", columns, with_best(rows))],
        [*notes, *f.paper.notes_on(number)],
        number=number,
    )


def few_shot_at(f: Findings, shots: int) -> list[str]:
    """The sources that no table of targets shows."""
    alone = few_shot_alone(f.sources)
    return [n for n in sources_at(f, "all_classes", shots) if n in alone]


def few_shot_table(f: Findings, shots: int) -> Table | None:
    """Tuned on all classes of a benchmark and judged on its own test part, if no table of its
    targets shows that; the paper has none.
    """
    names = few_shot_at(f, shots)
    if not names:
        return None
    rows = []
    for m in f.methods(False):
        found = {n: f.accuracy(m, n, "all", shots, n, "all") for n in names}
        rows.append(
            Row(
                m,
                f.title(m),
                [cell(v) for v in [*found.values(), *([mean_of(found)] if len(names) > 1 else [])]],
            )
        )
    columns = [Column(n, f.name(n), "", f.marks.get(n, "")) for n in names] + [
        Column(AVERAGE, "Average")
    ] * (len(names) > 1)
    return Table(
        f"all_classes_{shots}",
        f"Few-shot learning of all classes, {shots} shots",
        "Prompts are tuned on all classes of a benchmark and judged on its own test part. "
        f"{reading(rows)}",
        [Block("", "", columns, with_best(rows))],
    )


def _study_cells(variant: Variant, found: Mapping[str, Any] | None, with_paper: bool) -> list[Cell]:
    """base, new and H of a row of Tables 6 and 7; found: the study's own, if it has that method."""
    printed = variant.figures if with_paper else [None] * len(FIGURES)
    if found is None:
        missing = f"no method {variant.method} in study.methods of params.yaml"
        return [Cell(paper=p, missing=missing) for p in printed]
    return [
        Cell(found[k], found[f"{k}_sd"], seeds=found["runs"], paper=p)
        for k, p in zip(FIGURES, printed, strict=True)
    ]


def study_table(
    key: str,
    title: str,
    theirs: Variants,
    summaries: Collection[Mapping[str, Any]],
    benchmarks: Collection[str],
    paper: Published,
) -> Table | None:
    """Tables 6 and 7 from a study; None if it has fewer than two of the rows.

    Args:
        summaries: method, runs, base, new, H, base_sd, new_sd, H_sd: one row per method of the
        study. benchmarks: those that the study averages over.
    """
    of = {row["method"]: row for row in summaries}
    whole = set(benchmarks) == set(paper.base_to_new.benchmarks)
    rows = [
        Row(v.method, v.title, _study_cells(v, of.get(v.method), with_paper=whole))
        for v in theirs.rows
    ]
    if sum(r.cells[0].value is not None for r in rows) < 2:
        return None
    notes = (
        [*paper.notes.get(theirs.table, ())]
        if whole
        else [
            f"The averages are over {len(benchmarks)} benchmarks, not over the paper's "
            f"{len(paper.base_to_new.benchmarks)}, whose averages are therefore not shown."
        ]
    )
    return Table(
        key,
        title,
        f"Averages over benchmarks. {reading(rows)}",
        [Block("", "", [Column(k, k) for k in FIGURES], with_best(rows))],
        notes,
        number=theirs.table,
    )


def study_tables(
    summaries: Collection[Mapping[str, Any]], benchmarks: Collection[str], paper: Published
) -> list[Table]:
    made = [
        study_table("ablation", "Ablations", paper.ablation, summaries, benchmarks, paper),
        study_table(
            "tokens", "Number of prompt tokens", paper.tokens, summaries, benchmarks, paper
        ),
    ]
    return [t for t in made if t]


def _difference(one: Measured | str, other: Measured | str) -> Cell:
    if isinstance(one, str):
        return Cell(missing=one)
    if isinstance(other, str):
        return Cell(missing=other)
    made = cell(difference(one, other))
    intervals = [made.over_seeds, made.over_pictures]
    return replace(made, best=all(i is not None and (i[0] > 0 or i[1] < 0) for i in intervals))


@dataclass(frozen=True)
class Compared:
    """What methods are compared by at a number of shots: averages of base to new over `names`, of
    the targets of every `transfers` (setting, source), and over the sources that stand `alone`.
    """

    shots: int
    names: list[str]
    transfers: list[tuple[str, str]]
    alone: list[str]

    def columns(self, f: Findings) -> list[Column]:
        transfers = [
            Column(f"{setting}_{source}", f"from {f.name(source)}", GROUPS[setting])
            for setting, source in self.transfers
        ]
        return (
            [Column(k, k, "Base to new") for k in FIGURES] * bool(self.names)
            + transfers
            + [Column("all_classes", "all classes", "Few-shot")] * bool(self.alone)
        )

    def measured(self, f: Findings, method: str) -> list[Measured | str]:
        """Our figure for every column."""
        found = base_to_new_of(f, method, self.names, self.shots)[AVERAGE] if self.names else []
        for setting, source in self.transfers:
            listed = f.targets(source, setting)
            found.append(transfer_of(f, method, source, listed, listed, self.shots)[AVERAGE])
        if self.alone:
            here = (f.accuracy(method, n, "all", self.shots, n, "all") for n in self.alone)
            found.append(mean_of(dict(zip(self.alone, here, strict=True))))
        return found

    def printed(self, f: Findings, method: str) -> list[float | None]:
        """The paper's, where it is over the same benchmarks."""
        theirs = f.paper.base_to_new
        found: list[float | None] = [None for _ in FIGURES if self.names]
        if self.shots == theirs.shots and set(self.names) == set(theirs.benchmarks):
            found = [*theirs.average.get(method, found)]
        for setting, source in self.transfers:
            of = _published_transfer(f, setting, source, self.shots, whole=True)
            found.append(of.rows[method][-1] if of and method in of.rows else None)
        return [*found, *([None] * bool(self.alone))]


def _difference_cells(
    one: list[tuple[Measured | str, float | None]], other: list[tuple[Measured | str, float | None]]
) -> list[Cell]:
    """Args: one, other: a method's figures, ours and the paper's."""
    return [
        replace(_difference(a, b), paper=None if p is None or q is None else p - q)
        for (a, p), (b, q) in zip(one, other, strict=True)
    ]


def comparison_table(f: Findings, pairs: Collection[tuple[str, str]], shots: int) -> Table | None:
    """Differences of averages for pairs (method, other): base to new, and targets of every
    source.
    """
    transfers = [
        (setting, source)
        for setting in TRANSFERS
        for source in sources_at(f, "all_classes", shots)
        if f.targets(source, setting)
    ]
    names = sources_at(f, "base_to_new", shots)
    compared = Compared(shots, names, transfers, few_shot_at(f, shots))
    columns = compared.columns(f)
    if not (pairs and columns):
        return None
    of = {
        m: list(zip(compared.measured(f, m), compared.printed(f, m), strict=True))
        for m in dict.fromkeys(m for pair in pairs for m in pair)
    }
    rows = [
        Row(
            f"{one}-{other}",
            f"{f.title(one)} − {f.title(other)}",
            _difference_cells(of[one], of[other]),
        )
        for one, other in pairs
    ]
    return Table(
        f"comparison_{shots}",
        f"Differences of averages, {shots} shots",
        "In points, with two 95% intervals: seeds, by Student's t over paired seeds; pictures, by "
        "a bootstrap that draws the same test pictures for both methods.",
        [Block("", "", columns, rows)],
        ["Bold: both intervals leave zero out."],
        differences=True,
    )


def result_tables(
    f: Findings, pairs: Collection[tuple[str, str]] = (), others: bool = False
) -> list[Table]:
    """Every table that params.yaml asks for, most shots first."""
    made: list[Table | None] = []
    for shots in sorted(
        {k for s in f.sources.values() for k in [*s.base_to_new, *s.all_classes]}, reverse=True
    ):
        made.append(base_to_new_table(f, shots, others))
        made += [
            transfer_table(f, setting, source, shots)
            for setting in TRANSFERS
            for source in sources_at(f, "all_classes", shots)
        ]
        made += [few_shot_table(f, shots), comparison_table(f, pairs, shots)]
    return [t for t in made if t]
