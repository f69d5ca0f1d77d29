"""Result tables as HTML, CSV, Markdown and LaTeX; figures are rounded here, and in CSV not at
all.
"""

from __future__ import annotations

import re
from itertools import groupby
from pathlib import Path

import jinja2
import polars as pl

from pipeline.report.tables import Block, Cell, Table

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


def as_csv(tables: list[Table]) -> str:
    """One row per cell, unrounded."""
    rows = []
    for table in tables:
        for block in table.blocks:
            for row in block.rows:
                for column, c in zip(block.columns, row.cells, strict=True):
                    intervals = {
                        f"{what}_{end}": None if pair is None else pair[i]
                        for what, pair in (("seeds", c.over_seeds), ("pictures", c.over_pictures))
                        for i, end in enumerate(("low", "high"))
                    }
                    rows.append(
                        {
                            "table": table.key,
                            "block": block.key,
                            "row": row.key,
                            "column": column.key,
                            "value": c.value,
                            "sd": c.sd,
                            "seeds": c.seeds,
                            **intervals,
                            "per_class": c.per_class,
                            "paper": None if row.others else c.paper,
                            "others": c.paper if row.others else None,
                            "missing": c.missing or None,
                            "mark": " ".join(filter(None, (block.mark, column.mark))) or None,
                        }
                    )
    kinds = {
        "table": pl.String,
        "block": pl.String,
        "row": pl.String,
        "column": pl.String,
        "seeds": pl.Int64,
        "missing": pl.String,
        "mark": pl.String,
    }
    floats = [
        "value",
        "sd",
        "seeds_low",
        "seeds_high",
        "pictures_low",
        "pictures_high",
        "per_class",
        "paper",
        "others",
    ]
    return pl.DataFrame(
        rows, schema_overrides=kinds | dict.fromkeys(floats, pl.Float64)
    ).write_csv()


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


def _latex_block(block: Block, table: Table) -> list[str]:
    def titled(text: str, mark: str) -> str:
        return latex_text(text) + (rf"\textsuperscript{{{table.footnotes[mark]}}}" if mark else "")

    def small(cells: list[str], title: str) -> str:
        return (
            " & ".join(
                [
                    rf"\quad\scriptsize\color{{gray}}{title}",
                    *(rf"\scriptsize\color{{gray}}{c}" if c else "" for c in cells),
                ]
            )
            + r" \\"
        )

    lines = (
        [rf"\textbf{{{titled(heading(block, table), block.mark)}}}\\[2pt]"] if block.title else []
    )
    lines += [rf"\begin{{tabular}}{{l*{{{len(block.columns)}}}{{r}}}}", r"\toprule"]
    if spans := groups(block):
        at, rules = 2, []
        for name, width in spans:
            rules += [rf"\cmidrule(lr){{{at}-{at + width - 1}}}"] if name else []
            at += width
        lines += [
            "".join(
                rf" & \multicolumn{{{width}}}{{c}}{{{latex_text(name)}}}" for name, width in spans
            )
            + r" \\",
            "".join(rules),
        ]
    lines += [
        " & ".join(["", *(titled(c.title, c.mark) for c in block.columns)]) + r" \\",
        r"\midrule",
    ]
    for row in block.rows:
        if row.others:
            lines.append(
                small(
                    [latex_text(number(c.paper, table)) for c in row.cells], latex_text(row.title)
                )
            )
            continue
        lines.append(
            " & ".join([latex_text(row.title), *(_latex_cell(c, table) for c in row.cells)])
            + r" \\"
        )
        for what in ("seeds", "pictures") if table.differences else ():
            if any(found := [dict(spread(c, table)).get(what, "") for c in row.cells]):
                lines.append(small([latex_text(text) for text in found], what))
        if any(c.paper is not None for c in row.cells):
            lines.append(
                small(
                    [
                        "" if c.paper is None else latex_text(number(c.paper, table))
                        for c in row.cells
                    ],
                    "paper",
                )
            )
    return [*lines, r"\bottomrule", r"\end{tabular}"]


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
