"""Rows and figures as a table for people, or as JSON, CSV and Parquet for scripts."""

from __future__ import annotations

import io
import json
import sys
from typing import TYPE_CHECKING, Any

import polars as pl

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

WIDEST = 100_000  # columns


def _flat(row: dict[str, Any]) -> dict[str, Any]:
    """One column for each of the top classes; a set is joined by `|`."""
    flat = {key: value for key, value in row.items() if key not in ("top", "set")}
    for place, item in enumerate(row["top"][1:], 2):
        flat |= {f"label_{place}": item["label"], f"probability_{place}": item["probability"]}
    if "set" in row:
        flat["set"] = "|".join(row["set"])
    return flat


def write_rows(rows: list[dict[str, Any]], kind: str) -> None:
    """To standard output; Parquet as bytes."""
    if kind == "json":
        print(json.dumps(rows, indent=2, ensure_ascii=False))
    elif kind == "table":
        _print_rows(rows)
    else:
        table = pl.DataFrame([_flat(row) for row in rows], infer_schema_length=None)
        packed = io.BytesIO()
        table.write_csv(packed) if kind == "csv" else table.write_parquet(packed)
        sys.stdout.buffer.write(packed.getvalue())
        sys.stdout.buffer.flush()


def _console() -> Console:
    """To standard output. Where that is no terminal nothing is wrapped or cut: a line is as wide as
    what is in it.
    """
    from rich.console import Console

    console = Console(markup=False, emoji=False, highlight=False)
    if not console.is_terminal:
        console.width = WIDEST
    return console


def _table(*names: str) -> Table:
    """A table whose columns fold what does not fit a terminal."""
    from rich.table import Table

    table = Table()
    for name in names:
        table.add_column(name, overflow="fold")
    return table


def _print_rows(rows: list[dict[str, Any]]) -> None:
    table = _table("picture", "class", "probability")
    for row in rows:
        label = ", ".join(item["label"] for item in row["top"])
        if row.get("unsure"):
            label = f"unsure: {' or '.join(row['set']) or 'none of these'}"
        chances = ", ".join(f"{item['probability']:.2f}" for item in row["top"])
        table.add_row(row["path"], label, chances)
    _console().print(table)


def print_evaluation(found: dict[str, Any]) -> None:
    """Accuracy in all and of each class."""
    table = _table("class", "pictures", "right, %", "95% interval")
    for name, row in [*found["classes"].items(), ("all", found)]:
        interval = f"{100 * row['low']:.0f} to {100 * row['high']:.0f}"
        table.add_row(name, str(row["pictures"]), f"{100 * row['accuracy']:.1f}", interval)
    console = _console()
    console.print(table)
    console.print(f"calibration error: {100 * found['calibration_error']:.1f} points")
    if "sets_at_0.9" in found:
        told = found["sets_at_0.9"]
        console.print(
            f"sets at 0.9 hold the truth for {100 * told['hold_the_truth']:.0f}% of the pictures; "
            f"{100 * told['sure']:.0f}% get exactly one class"
        )


def print_pairs(found: dict[str, Any]) -> None:
    """A nested object, a line each."""
    for key, value in found.items():
        if isinstance(value, dict):
            for inner, told in value.items():
                print(f"{key}.{inner}: {told}")
        elif key != "comparison":
            print(f"{key}: {', '.join(map(str, value)) if isinstance(value, list) else value}")
    for row in found.get("comparison", []):
        print(f"comparison: {row['title']}: {100 * row['accuracy']:.1f}%")
