"""Result tables as HTML, CSV, Markdown and LaTeX; figures are rounded here, and in CSV not at
all.
"""

from __future__ import annotations

import re
from itertools import groupby
from pathlib import Path

import jinja2
import polars as pl

from pipeline.report.tables import Block, Cell, Row, Table

# What LaTeX gives a meaning to, and the signs of this page that its default fonts lack.
LATEX = {
    "\\": r"\textbackslash{}",
    "{": r"\{",
    "}": r"\}",
    "&": r"\&",
    "%": r"\%",
    "$": r"\$",
    "#": r"\#",
    "_": r"\_",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    '"': "''",
    "−": "$-$",
    "±": r"$\pm$",
    "φ": r"$\varphi$",
    "θ": r"$\theta$",
    "…": r"\ldots{}",
    "–": "--",
    "“": "``",
    "”": "''",
    "’": "'",
}


def number(value: float | None, table: Table) -> str:
    """Two decimals; a difference with its sign; a dash for a figure that nobody gave."""
    if value is None:
        return "–"
    text = f"{value:+.2f}" if table.differences else f"{value:.2f}"
    return text.replace("-", "−")


def span(interval: tuple[float, float], table: Table) -> str:
    return f"{number(interval[0], table)} to {number(interval[1], table)}"


def spread(cell: Cell, table: Table) -> list[tuple[str, str]]:
    """What is known of a figure's spread: [(what, figures)]."""
    known = [("seeds", cell.over_seeds), ("pictures", cell.over_pictures)]
    return [(what, span(interval, table)) for what, interval in known if interval is not None]


def tooltip(cell: Cell, table: Table) -> str:
    if cell.value is None:
        return cell.missing
    lines = [f"95% interval over {what}: {text}" for what, text in spread(cell, table)]
    if cell.per_class is not None:
        lines.append(f"every class counted alike: {number(cell.per_class, table)}")
    return "\n".join([*lines, f"seeds: {cell.seeds}"])


def groups(block: Block) -> list[tuple[str, int]]:
    """Headings above the columns, and how many columns each spans; [] if no column has one."""
    found = [
        (name, len(list(members))) for name, members in groupby(c.group for c in block.columns)
    ]
    return found if any(name for name, _ in found) else []


def heading(block: Block, table: Table) -> str:
    """A block's title, numbered as in the paper where there are several."""
    return (
        f"({chr(97 + table.blocks.index(block))}) {block.title}"
        if len(table.blocks) > 1 and len(table.blocks) <= 26
        else block.title
    )


def as_html(tables: list[Table]) -> str:
    """A part of a page, which includes `style.html.j2` itself."""
    environment = jinja2.Environment(
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
    )
    return environment.get_template("tables.html.j2").render(
        tables=tables, number=number, spread=spread, tooltip=tooltip, groups=groups, heading=heading
    )


TEXTS = ("table", "block", "row", "column")
FLOATS = (
    *("value", "sd", "seeds_low", "seeds_high", "pictures_low", "pictures_high"),
    *("per_class", "paper", "others"),
)
CSV = {
    **dict.fromkeys(TEXTS, pl.String),
    "seeds": pl.Int64,
    "missing": pl.String,
    "mark": pl.String,
    **dict.fromkeys(FLOATS, pl.Float64),
}


def _csv_row(keys: dict[str, str], c: Cell, others: bool, marks: tuple[str, str]) -> dict:
    """A cell as a row of `as_csv`; `others`: it is a figure that others published."""
    intervals = {
        f"{what}_{end}": None if pair is None else pair[i]
        for what, pair in (("seeds", c.over_seeds), ("pictures", c.over_pictures))
        for i, end in enumerate(("low", "high"))
    }
    return {
        **keys,
        "value": c.value,
        "sd": c.sd,
        "seeds": c.seeds,
        **intervals,
        "per_class": c.per_class,
        "paper": None if others else c.paper,
        "others": c.paper if others else None,
        "missing": c.missing or None,
        "mark": " ".join(filter(None, marks)) or None,
    }


def as_csv(tables: list[Table]) -> str:
    """One row per cell, unrounded."""
    rows = []
    for table in tables:
        for block in table.blocks:
            for row in block.rows:
                for column, c in zip(block.columns, row.cells, strict=True):
                    place = (table.key, block.key, row.key, column.key)
                    keys = dict(zip(TEXTS, place, strict=True))
                    rows.append(_csv_row(keys, c, row.others, (block.mark, column.mark)))
    return pl.DataFrame(rows, schema_overrides=CSV).write_csv()


def _markdown(text: str) -> str:
    return re.sub(
        r"([\\`*_\[\]|#~])",
        r"\\\1",
        text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;"),
    )


def _markdown_cell(c: Cell, table: Table, others: bool) -> str:
    if others:
        return f"*{number(c.paper, table)}*"
    if c.value is None:
        text = f"–<sup>{table.footnotes[c.missing]}</sup>"
    else:
        text = number(c.value, table)
        text = f"**{text}**" if c.best else text
        if table.differences:
            text += "".join(f"; {what} {figures}" for what, figures in spread(c, table))
        elif c.sd is not None:
            text += f" ± {c.sd:.2f}"
    return text if c.paper is None else f"{text} (paper {number(c.paper, table)})"


def as_markdown(tables: list[Table]) -> str:
    """The paper's figures in brackets; what others published in italics."""
    lines = []
    for table in tables:
        marks = table.footnotes
        lines += [f"## {_markdown(table.heading)}", "", _markdown(table.caption), ""]
        for block in table.blocks:

            def titled(text: str, mark: str) -> str:
                return _markdown(text) + (f"<sup>{marks[mark]}</sup>" if mark else "")

            if block.title:
                lines += [f"**{titled(heading(block, table), block.mark)}**", ""]
            heads = [
                titled(f"{c.group}: {c.title}" if c.group else c.title, c.mark)
                for c in block.columns
            ]
            lines += [f"| | {' | '.join(heads)} |", "|---" + "|---:" * len(heads) + "|"]
            lines += [
                f"| {_markdown(r.title)} | "
                + " | ".join(_markdown_cell(c, table, r.others) for c in r.cells)
                + " |"
                for r in block.rows
            ]
            lines.append("")
        lines += (
            [f"- <sup>{letter}</sup> {_markdown(text)}" for text, letter in marks.items()]
            + [f"- {_markdown(note)}" for note in table.notes]
            + [""]
        )
    return "\n".join(lines)


def latex_text(text: str) -> str:
    return "".join(LATEX.get(letter, letter) for letter in text)


def _latex_cell(c: Cell, table: Table) -> str:
    if c.value is None:
        return rf"--\textsuperscript{{{table.footnotes[c.missing]}}}" if c.missing else ""
    text = latex_text(number(c.value, table))
    text = rf"\textbf{{{text}}}" if c.best else text
    return text + (
        rf"\,{{\tiny$\pm${c.sd:.2f}}}" if c.sd is not None and not table.differences else ""
    )


def _latex_titled(text: str, mark: str, table: Table) -> str:
    return latex_text(text) + (rf"\textsuperscript{{{table.footnotes[mark]}}}" if mark else "")


def _latex_grey(title: str, cells: list[str]) -> str:
    """A small line below a figure: the paper's, or an interval."""
    small = r"\scriptsize\color{gray}"
    return " & ".join([rf"\quad{small}{title}", *(f"{small}{c}" if c else "" for c in cells)]) + (
        r" \\"
    )


def _latex_groups(block: Block) -> list[str]:
    """Headings that span several columns, each over a rule of its own."""
    spans = groups(block)
    if not spans:
        return []
    at, rules = 2, []
    for name, width in spans:
        rules += [rf"\cmidrule(lr){{{at}-{at + width - 1}}}"] if name else []
        at += width
    heads = [rf" & \multicolumn{{{width}}}{{c}}{{{latex_text(name)}}}" for name, width in spans]
    return ["".join(heads) + r" \\", "".join(rules)]


def _latex_row(row: Row, table: Table) -> list[str]:
    """Our figures, and in grey lines below them their intervals and the paper's."""
    if row.others:
        theirs = [latex_text(number(c.paper, table)) for c in row.cells]
        return [_latex_grey(latex_text(row.title), theirs)]
    cells = [latex_text(row.title), *(_latex_cell(c, table) for c in row.cells)]
    lines = [" & ".join(cells) + r" \\"]
    below = {
        what: [dict(spread(c, table)).get(what, "") for c in row.cells]
        for what in ("seeds", "pictures")
        if table.differences
    }
    below["paper"] = ["" if c.paper is None else number(c.paper, table) for c in row.cells]
    return lines + [
        _latex_grey(what, [latex_text(text) for text in texts])
        for what, texts in below.items()
        if any(texts)
    ]


def _latex_block(block: Block, table: Table) -> list[str]:
    title = _latex_titled(heading(block, table), block.mark, table)
    heads = ["", *(_latex_titled(c.title, c.mark, table) for c in block.columns)]
    return [
        *([rf"\textbf{{{title}}}\\[2pt]"] * bool(block.title)),
        rf"\begin{{tabular}}{{l*{{{len(block.columns)}}}{{r}}}}",
        r"\toprule",
        *_latex_groups(block),
        " & ".join(heads) + r" \\",
        r"\midrule",
        *(line for row in block.rows for line in _latex_row(row, table)),
        r"\bottomrule",
        r"\end{tabular}",
    ]


def as_latex(tables: list[Table]) -> str:
    r"""Floats for \input: the paper's figures in a grey line below ours."""
    lines = [r"% needs \usepackage{booktabs,xcolor,graphicx}"]
    for table in tables:
        published = f" (Table {table.number} of the paper)" if table.number else ""
        lines += [
            r"\begin{table*}[p]",
            r"\centering\footnotesize\setlength{\tabcolsep}{3pt}",
            rf"\caption{{{latex_text(table.title)}{published}. {latex_text(table.caption)}}}",
            rf"\label{{tab:{table.key.replace('_', '-')}}}",
        ]
        if len(table.blocks) > 1:  # three in a row, as in the paper
            for i, block in enumerate(table.blocks):
                lines += [
                    r"\begin{minipage}[t]{.325\linewidth}\centering",
                    r"\resizebox{\linewidth}{!}{\begin{minipage}{1.25\linewidth}\centering",
                    *_latex_block(block, table),
                    r"\end{minipage}}",
                    rf"\end{{minipage}}{'%' if i % 3 < 2 else ''}",
                    r"\hfill" if i % 3 < 2 else r"\par\medskip",
                ]
        else:
            lines += [
                r"\resizebox{\ifdim\width>\linewidth\linewidth\else\width\fi}{!}{%",
                *_latex_block(table.blocks[0], table),
                "}",
            ]
        notes = [
            rf"\textsuperscript{{{letter}}}\,{latex_text(text)}."
            for text, letter in table.footnotes.items()
        ] + [latex_text(note) for note in table.notes]
        lines += [
            r"\par\smallskip\begin{minipage}{\linewidth}\scriptsize\raggedright "
            rf"{' '.join(notes)}\end{{minipage}}"
        ] * bool(notes) + [r"\end{table*}", ""]
    return "\n".join(lines)
