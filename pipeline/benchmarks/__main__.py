"""The field's labelled datasets on this machine (docs/benchmarks.md).

python -m pipeline.benchmarks status
python -m pipeline.benchmarks fetch dtd
python -m pipeline.benchmarks draw …/split_zhou_DescribableTextures.json --shots 16 --seed 1
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import polars as pl

from pipeline.benchmarks.draw import draw_train_and_val
from pipeline.benchmarks.fetch import ARCHIVES, fetch
from pipeline.benchmarks.layouts import read_benchmark
from pipeline.benchmarks.layouts.known import KNOWN
from pipeline.benchmarks.layouts.split_file import read_split
from pipeline.errors import InputError

PARTS = ("train", "val", "test")


def draw(args: argparse.Namespace) -> None:
    """The last line is JSON: the drawn rows of `train` and `val` by their place in the split
    file's lists, from 0, as they were drawn.
    """
    parts = read_split(args.split)
    labels = {part: [item.label for item in parts[part]] for part in PARTS}
    train, val = draw_train_and_val(labels["train"], labels["val"], args.shots, args.seed)
    print(
        f"{args.split}: {len(set(labels['train']))} classes; {len(train)} of "
        f"{len(labels['train'])} train and {len(val)} of {len(labels['val'])} val pictures, "
        f"seed {args.seed}"
    )
    print(json.dumps({"train": train, "val": val}))


def _state(layout: str, root: Path) -> tuple[str, str]:
    """(missing, incomplete, present with other counts than the field's, or complete; what was
    found).
    """
    known = KNOWN[layout]
    if not (root / known.folder).is_dir():
        return "missing", f"no {root / known.folder}"
    try:
        dataset = read_benchmark(layout, root / known.folder)
    except InputError as error:
        return "incomplete", str(error)
    samples = pl.from_arrow(dataset.samples)
    counts = tuple((samples["split"] == part).sum() for part in PARTS)
    tests = samples.filter(pl.col("split") == "test")["half"]
    halves = ((tests == "base").sum(), (tests == "new").sum())
    classes = samples["label"].n_unique()
    found = f"{classes} classes, {_counts(counts, halves)}, {dataset.split} split"
    if dataset.split == "official":  # other parts than the reference's, of the same pictures
        whole = classes == known.classes and sum(counts) == sum(known.counts)
        found += f" ({known.split_file} in the folder gives the reference's)"
    else:
        whole = (
            classes == known.classes and counts == known.counts and known.halves in (None, halves)
        )
    if whole:
        return "complete", found
    return (
        "incomplete" if sum(counts) < sum(known.counts) else "present",
        f"{found}; the field has {known.classes} classes, {_counts(known.counts, known.halves)}",
    )


def _counts(parts: tuple[int, ...], halves: tuple[int, int] | None) -> str:
    return f"{'/'.join(map(str, parts))} pictures" + (
        f" (test {halves[0]} base, {halves[1]} new)" if halves else ""
    )


def status(args: argparse.Namespace) -> None:
    """One line per dataset: its state, the pictures of train/val/test that were found, where to
    get it if it is not complete.
    """
    for layout, known in KNOWN.items():
        state, found = _state(layout, args.root)
        hint = (
            f"; `python -m pipeline.benchmarks fetch {layout}`, or {known.site}"
            if layout in ARCHIVES
            else f"; from {known.site}"
        )
        print(f"{layout:<16}{state:<11} {found}{'' if state == 'complete' else hint}")


def get(args: argparse.Namespace) -> None:
    folder = fetch(args.name, args.root, args.mirror)
    print(f"{folder}: {': '.join(_state(args.name, args.root))}")


def _address(text: str) -> str:
    if not text.startswith(("http://", "https://")):
        raise argparse.ArgumentTypeError(f"'{text}' begins with neither http:// nor https://")
    return text


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"'{text}' is no number from 1")
    return int(text)


def _add_draw(commands: Any) -> None:
    drawing = commands.add_parser(
        "draw",
        help=(
            "which pictures the few-shot draw takes of a split file; the pictures need not be there"
        ),
        description=draw.__doc__,
    )
    drawing.add_argument(
        "split", type=Path, help="a split file of the reference (split_zhou_….json)"
    )
    drawing.add_argument(
        "--shots", type=_count, default=16, help="pictures per class (default: %(default)s)"
    )
    drawing.add_argument("--seed", type=int, default=1, help="(default: %(default)s)")
    drawing.set_defaults(run=draw)


def _parser() -> argparse.ArgumentParser:
    cli = argparse.ArgumentParser(
        prog="python -m pipeline.benchmarks",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = cli.add_subparsers(required=True)
    here = argparse.ArgumentParser(add_help=False)
    here.add_argument(
        "--root",
        type=Path,
        default=Path("data/raw/benchmarks"),
        help="folder of all datasets (default: %(default)s)",
    )

    _add_draw(commands)
    showing = commands.add_parser(
        "status",
        parents=[here],
        help="which datasets are there, and whether all of them",
        description=status.__doc__,
    )
    showing.set_defaults(run=status)

    getting = commands.add_parser(
        "fetch", parents=[here], help="download a dataset into the field's layout"
    )
    getting.add_argument("name", choices=sorted(KNOWN))
    getting.add_argument(
        "--mirror",
        type=_address,
        help="address of a folder with the publisher's archives, instead of the publisher's own",
    )
    getting.set_defaults(run=get)
    return cli


def main(arguments: list[str]) -> int:
    args = _parser().parse_args(arguments)
    try:
        args.run(args)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted; a download goes on from where it was", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
