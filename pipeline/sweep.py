"""Values in, one table out: queues an experiment for every combination, and puts their results side
by side.

    python -m pipeline.sweep queue alpha inner_lr=0.1,0.5,1.0 meta_seed=1,2,3
    dvc queue start --jobs 2
    python -m pipeline.sweep table alpha

`queue` checks every combination first, so that a misspelt key or a value out of range costs a
second and not a night. Lists of values are DVC's own (`dvc exp run -S`): 1,2,3 or range(1,4). What
follows `--` goes to `dvc exp run`: `--pull --allow-missing` for instance, or `metatrain` to stop
there and choose by the validation tasks. `table` averages over seeds and gives their standard
deviation.
"""

from __future__ import annotations

import argparse
import itertools
import json
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import polars as pl
from rich.console import Console
from rich.table import Table

from pipeline.artifacts import replacing
from pipeline.errors import InputError
from pipeline.params import lookup, read_yaml
from pipeline.schema import check
from pipeline.stage import warn
from pipeline.tracking.send import flat
from pipeline.written import check_replaceable, note_written

PARAMS = Path("params.yaml")
CSV = Path("-")  # standard output


def combinations(changes: list[str]) -> list[list[str]]:
    """`KEY=V1,V2` … → one list of `KEY=VALUE` per combination, as DVC would queue them."""
    from dvc.exceptions import DvcException
    from dvc.utils.hydra import get_hydra_sweeps

    known = read_yaml(PARAMS)
    for change in changes:
        key, equals, _ = change.partition("=")
        if not equals:
            raise InputError(f"'{change}': not KEY=VALUE,VALUE; for example inner_lr=0.1,0.5")
        if not key.startswith("+"):  # DVC's sign for a key that is new
            lookup(known, key, PARAMS)
    try:
        return [found[PARAMS.name] for found in get_hydra_sweeps({PARAMS.name: changes})]
    except DvcException as error:
        raise InputError(f"{' '.join(changes)}: not understood ({error})") from None


def check_combination(changes: list[str], params: Path) -> None:
    """Raises InputError if `params` with these changes would not be a sound parameter file."""
    from dvc.exceptions import DvcException
    from dvc.utils.hydra import apply_overrides

    with tempfile.TemporaryDirectory() as folder:
        changed = shutil.copy(params, folder)
        try:
            apply_overrides(changed, changes)
            check(changed)
        except (DvcException, InputError) as error:
            raise InputError(
                f"{', '.join(changes)}: {str(error).replace(changed, str(params))}"
            ) from None


def queue(name: str, changes: list[str], passed_on: list[str]) -> int:
    """Queues the experiments `<name>-1`, `<name>-2` …; returns how many."""
    found = combinations(changes)
    for combination in found:
        check_combination(combination, PARAMS)
    if taken := sorted(known_names() & {f"{name}-{n}" for n in range(1, len(found) + 1)}):
        raise InputError(
            f"'{name}': there is {', '.join(taken)} already, queued or finished, and one of the "
            "two results would be lost; take another name, or remove these (`dvc exp remove`, "
            "`dvc queue remove`)"
        )
    if left_out := untracked():
        raise InputError(
            f"{', '.join(left_out)}: not in git, so no experiment would have it; `git add` it"
        )
    named = name if len(found) > 1 else f"{name}-1"  # DVC numbers what is more than one
    sets = itertools.chain.from_iterable(("-S", change) for change in changes)
    done = subprocess.run(
        ["dvc", "exp", "run", "--queue", "--name", named, *sets, *passed_on], check=False
    )
    if done.returncode:
        raise InputError(f"'{name}': DVC did not queue it; see above")
    return len(found)


def known_names() -> set[str]:
    """Of every experiment of this clone, finished or in the queue."""
    from dvc.repo import Repo
    from dvc.repo.experiments.refs import EXEC_NAMESPACE, EXPS_NAMESPACE, STASHES

    refs = _lines("git", "for-each-ref", "--format=%(refname)", EXPS_NAMESPACE)
    inner = (EXEC_NAMESPACE, *STASHES)
    done = {ref.rpartition("/")[2] for ref in refs if not ref.startswith(inner)}
    with Repo() as repo:
        queue_ = repo.experiments.celery_queue
        waiting = [*queue_.iter_queued(), *queue_.iter_active()]
        return done | {entry.name for entry in waiting if entry.name}


def untracked() -> list[str]:
    """Files beside the code that git does not know: an experiment's copy would lack them."""
    return _lines("git", "ls-files", "--others", "--exclude-standard", "pipeline", "stages")


def _lines(*command: str) -> list[str]:
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()


def experiments(name: str, shown: list[dict]) -> list[dict[str, Any]]:
    """name, state, parameters and figures of the experiments of a sweep, from `dvc exp show
    --json`.
    """
    found = []
    for experiment in itertools.chain.from_iterable(base["experiments"] or [] for base in shown):
        prefix, _, number = (experiment["name"] or "").rpartition("-")
        if prefix != name or not number.isdigit():
            continue
        data = experiment["revs"][0]["data"] or {}
        parameters = data.get("params", {}).get(PARAMS.name, {}).get("data", {})
        state = (experiment["executor"] or {}).get("state", "success")
        # benchmarks' averages, and accuracy on validation tasks
        files = data.get("metrics", {}).values() if state == "success" else ()
        found.append(
            {
                "name": experiment["name"],
                "state": state,
                "parameters": dict(flat(parameters)),
                "figures": {k: v for file in files for k, v in flat(file.get("data", {}))},
            }
        )
    return sorted(found, key=lambda e: int(e["name"].rpartition("-")[2]))


def varying(rows: Iterable[dict[str, Any]]) -> list[str]:
    """The keys whose values are not the same in all rows."""
    rows = list(rows)
    return [
        key
        for key in dict.fromkeys(itertools.chain(*rows))
        if len({json.dumps(row.get(key)) for row in rows}) > 1
    ]


def tabulate(found: list[dict[str, Any]], over: list[str]) -> tuple[list[str], pl.DataFrame]:
    """One row per setting of what was swept, apart from `over`: number of runs, mean and standard
    deviation of every figure that varies.

    Returns:
        The swept keys, and a table of these, `runs`, and for every figure `<figure>` and
        `<figure>_sd`.
    """
    done = [e for e in found if e["figures"]]
    swept = [key for key in varying(e["parameters"] for e in done) if key not in over]
    figures = varying(e["figures"] for e in done) or list(done[0]["figures"])
    rows = [
        {key: json.dumps(e["parameters"].get(key)) for key in swept}
        | {figure: e["figures"].get(figure) for figure in figures}
        for e in done
    ]
    table = pl.DataFrame(rows, infer_schema_length=None)
    spread = [
        made
        for figure in figures
        for made in (pl.col(figure).mean(), pl.col(figure).std().alias(f"{figure}_sd"))
    ]
    if not swept:
        return swept, table.select(pl.len().alias("runs"), *spread)
    return swept, table.group_by(swept, maintain_order=True).agg(pl.len().alias("runs"), *spread)


def show(name: str, over: list[str], revision: str, out: Path | None) -> None:
    done = subprocess.run(
        ["dvc", "exp", "show", "--json", "--rev", revision],
        check=False,
        capture_output=True,
        text=True,
    )
    if done.returncode:
        raise InputError(f"'dvc exp show' failed: {done.stderr.strip()}")
    found = experiments(name, json.loads(done.stdout))
    if not any(e["figures"] for e in found):
        states = (
            ", ".join(f"{e['name']}: {e['state']}" for e in found)
            or f"there is none that began at {revision}"
        )
        raise InputError(
            f"'{name}': no experiment has results ({states}); `dvc queue start` works on what is "
            "queued, --rev names where they began"
        )
    for experiment in found:
        if not experiment["figures"]:
            warn(f"{experiment['name']} is not in the table: {experiment['state']}")
    swept, table = tabulate(found, over)
    if out == CSV:
        sys.stdout.write(table.write_csv())
        return
    if out:
        check_replaceable(out)
        with replacing(out) as temporary:
            table.write_csv(temporary)
        note_written(out)
    title = f"{name}: top-1 in percent, mean ± standard deviation over {', '.join(over)}"
    print_table(title, swept, table)


def by_method(swept: list[str], table: pl.DataFrame) -> tuple[list[str], list[list[str]]]:
    """Column names and cells: a row per method and setting, a column per figure, so that any
    number of methods fits a terminal.
    """
    named = [c.rpartition(".") for c in table.columns if f"{c}_sd" in table.columns]
    methods = list(dict.fromkeys(method for method, _, _ in named))
    figures = list(dict.fromkeys(figure for _, _, figure in named))
    rows = []
    for method, row in itertools.product(methods, table.iter_rows(named=True)):
        cells = []
        for column in (f"{method}.{figure}" if method else figure for figure in figures):
            mean, sd = row.get(column), row.get(f"{column}_sd")
            spread = "" if sd is None else f" ± {sd:.2f}"
            cells.append("" if mean is None else f"{mean:.2f}{spread}")
        if any(cells):
            rows.append([method, *(row[key] for key in swept), str(row["runs"]), *cells])
    return ["method", *swept, "runs", *figures], rows


def print_table(title: str, swept: list[str], table: pl.DataFrame) -> None:
    """On a terminal as wide as that is; piped, as wide as the table."""
    columns, rows = by_method(swept, table)
    printed = Table(title=title)
    for column in columns:
        printed.add_column(column, justify="left" if column == "method" else "right", no_wrap=True)
    for row in rows:
        printed.add_row(*row)
    Console(width=None if sys.stdout.isatty() else 1000).print(printed)


def main() -> None:
    words = sys.argv[1:]
    cut = words.index("--") if "--" in words else len(words)
    cli = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = cli.add_subparsers(dest="command", required=True)
    queued = commands.add_parser("queue", help="queue an experiment for every combination")
    queued.add_argument("name", help="experiments will be called NAME-1, NAME-2 …")
    queued.add_argument("changes", nargs="+", metavar="KEY=V1,V2", help="values of a parameter")
    shown = commands.add_parser("table", help="results of a sweep, averaged over seeds")
    shown.add_argument("name")
    shown.add_argument(
        "--over",
        nargs="+",
        default=["seed", "meta_seed"],
        metavar="KEY",
        help="what is averaged over (default: seed and meta_seed)",
    )
    shown.add_argument(
        "--rev", default="HEAD", help="commit that the sweep began at (default: %(default)s)"
    )
    shown.add_argument("--out", type=Path, help="CSV file")
    shown.add_argument(
        "--csv", action="store_const", const=CSV, dest="out", help="CSV instead of a table"
    )
    args = cli.parse_args(words[:cut])
    try:
        if args.command == "queue":
            count = queue(args.name, args.changes, words[cut + 1 :])
            print(
                f"{count} experiments queued as {args.name}-1 …; `dvc queue start --jobs 2` works "
                "on them"
            )
        else:
            show(args.name, args.over, args.rev, args.out)
    except InputError as error:
        sys.exit(f"sweep: error: {error}")


if __name__ == "__main__":
    main()
