"""What all stage scripts share: arguments, progress, one closing line, and honest exit codes."""

from __future__ import annotations

import argparse
import gc
import math
import os
import re
import signal
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Event, Thread
from typing import TYPE_CHECKING, Any

from tqdm import tqdm

from pipeline import params
from pipeline.artifacts import keeps_parts, write_json
from pipeline.code import edited_since
from pipeline.errors import InputError, is_disk_full
from pipeline.owner import end_with_dvc
from pipeline.tracking import journal, record
from pipeline.written import check_replaceable, note_written

if TYPE_CHECKING:
    from pipeline.pictures import Pictures

TOLD = 60  # seconds
CODE = Path("data/code")  # what the stage `code` writes


_outputs: list[Path] = []  # of this process: a process is one stage


def output(text: str) -> Path:
    """For arguments that name what a stage writes: what is there must be what a stage wrote.

    DVC removes a stage's former outputs before it runs it, so this concerns runs by hand.
    """
    path = Path(text)
    try:
        check_replaceable(path)
    except InputError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
    _outputs.append(path)
    return path


def parser(doc: str) -> argparse.ArgumentParser:
    """The stage's own docstring as help; `--params` and `--metrics` are common to all."""
    made = argparse.ArgumentParser(
        description=doc, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    made.add_argument(
        "--params",
        type=Path,
        default=Path("params.yaml"),
        help="parameter file (default: %(default)s)",
    )
    made.add_argument("--metrics", type=output, help="where to write the stage's figures as JSON")
    return made


class Lines(tqdm):
    """Progress where there is no terminal: a line every `TOLD` seconds, none for what is shorter.

    It is told by a thread of its own, so also while one step lasts; compiled code that keeps the
    interpreter's lock (UMAP's layout) delays it.
    """

    under_way = 0

    def __init__(self, *args, **kwargs) -> None:
        super().__init__(*args, **kwargs, file=open(os.devnull, "w"), mininterval=3600)  # noqa: SIM115
        self.over = Event()
        Lines.under_way += 1
        Thread(target=self._tell, daemon=True).start()

    def __iter__(self) -> Iterator:  # tqdm's own counts only when it draws
        try:
            for item in self.iterable:
                yield item
                self.n += 1
        finally:
            self.close()

    def _tell(self) -> None:
        while not self.over.wait(TOLD):
            print(self.line(), file=sys.stderr, flush=True)

    def line(self) -> str:
        now = self.format_dict
        done, spent, label = now["n"], self.format_interval(now["elapsed"]), self.desc.rstrip(": ")
        if not now["total"]:
            return f"{label}: {done} done, {spent} so far"
        said = f"{label}: {done} of {now['total']}, {spent} so far"
        if not done:
            return said
        left = (now["total"] - done) * now["elapsed"] / done
        return f"{said}, {done / now['elapsed']:.3g} a second, {self.format_interval(left)} left"

    def close(self) -> None:
        if hasattr(self, "over") and not self.over.is_set():
            self.over.set()
            Lines.under_way -= 1
        super().close()


@contextmanager
def alive(name: str) -> Iterator[None]:
    """A line every `TOLD` seconds where there is no terminal and no other progress is told: while
    tables are read, joined and written.
    """
    over, began = Event(), time.perf_counter()

    def tell() -> None:
        while not over.wait(TOLD):
            if not Lines.under_way:
                spent = tqdm.format_interval(time.perf_counter() - began)
                print(f"{name}: {spent} so far", file=sys.stderr, flush=True)

    if not sys.stderr.isatty():
        Thread(target=tell, daemon=True).start()
    try:
        yield
    finally:
        over.set()


def progress(items: Iterable, label: str, total: int | None = None) -> tqdm:
    """A progress bar on a terminal, a line a minute elsewhere."""
    if sys.stderr.isatty():
        return tqdm(items, desc=label, total=total, leave=False, dynamic_ncols=True)
    return Lines(items, desc=label, total=total, leave=False)


def unwatched(step: int, **figures: float | None) -> None:
    """For what is told of every step (`watch`): nobody looks."""


def warn(message: str) -> None:
    print(f"warning: {message}", file=sys.stderr, flush=True)


def warn_of_other_files(pictures: Pictures) -> None:
    """What was noted while a dataset was read, what stands among its pictures and is not read, and
    classes without pictures.
    """
    for note in pictures.notes:
        warn(note)
    if pictures.passed_over:
        found = list(pictures.passed_over.items())
        kinds = ", ".join(f"{count} {ending}" for ending, count in found[:5])
        warn(f"{pictures.path}: files that are no pictures that are read are passed over: {kinds}")
    if empty := pictures.empty_folders:
        more = f" and {len(empty) - 5} more" if len(empty) > 5 else ""
        warn(
            f"{pictures.path}: {', '.join(empty[:5])}{more}: no pictures, so no class; add some, "
            "or remove the folder"
        )


def warn_of_left_overs(folder: Path, entries: Iterable[str]) -> None:
    """What a folder that several stages fill has of entries that are gone: it is not read, but DVC
    counts it among what the stage depends on.
    """
    known = set(entries)
    there = sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []
    left = [name for name in there if name not in known and not name.startswith(".")]
    if left:
        more = f" and {len(left) - 5} more" if len(left) > 5 else ""
        warn(
            f"{folder}: {', '.join(left[:5])}{more} of entries that params.yaml does not have; "
            "not read, but dvc.lock counts it, so that this stage is stale for whoever lacks it: "
            "`make tidy`, then `dvc repro`"
        )


def workers(variable: str, default: int | None = None) -> int:
    """How many work at once: an environment variable, as it changes no result; by default the
    number of cores.

    OpenMP takes a list of them, one for each level at which parallel work stands in parallel work;
    the first is meant then.

    Raises InputError if it is no number from 1 on.
    """
    asked = os.environ.get(variable, "").strip() or str(default or os.cpu_count() or 1)
    levels = [level.strip() for level in asked.split(",")]
    if not all(re.fullmatch(r"0*[1-9][0-9]{0,5}", level) for level in levels):
        raise InputError(
            f"environment variable {variable} is '{asked}'; it is a number from 1 to 999999"
        )
    return int(levels[0])


def positive(text: str) -> int:
    """For arguments that count something."""
    if not (text.isdecimal() and int(text)):
        raise argparse.ArgumentTypeError(f"'{text}' is not a number from 1 on")
    return int(text)


def seed_number(text: str) -> int:
    """For arguments that are seeds."""
    if not (text.isdecimal() and int(text) < 2**31):
        raise argparse.ArgumentTypeError(f"'{text}' is not a number from 0 to 2^31 - 1")
    return int(text)


def first_process() -> bool:
    """Of the processes that `torchrun` started, the one that writes and speaks; alone: True."""
    return os.environ.get("RANK", "0") == "0"


def _interrupt(number: int, _frame: Any) -> None:
    raise KeyboardInterrupt(signal.Signals(number).name)


def measured(figures: dict[str, Any]) -> dict[str, Any]:
    """The figures that are numbers, or anything but numbers; the others are told of and left out:
    no file of JSON can hold them, and hours of work should not end with them.
    """
    kept = {}
    for name, value in figures.items():
        if isinstance(value, dict):
            kept[name] = measured(value)
        elif isinstance(value, float) and not math.isfinite(value):
            warn(f"the figure '{name}' is {value}, so it is left out")
        else:
            kept[name] = value
    return kept


def _make_ready() -> None:
    gc.freeze()  # what was imported stays to the end
    gc.enable()
    signal.signal(signal.SIGINT, _interrupt)
    signal.signal(signal.SIGTERM, _interrupt)
    end_with_dvc()


def run(main: Callable[[], tuple[str, dict[str, Any], Path | None]], tracked: bool = False) -> None:
    """Runs a stage's `main` and ends the process.

    `main` returns (closing words, figures, where the figures go). Bad input prints one clear
    message and exits 1; an interruption exits 130, so that DVC never records a half-done stage. The
    end of the DVC that runs it is one.
    What DVC runs leaves a record of what it ran with; with `tracked`, it is a run in MLflow too
    (docs/tracking.md).
    """
    _make_ready()
    began, started = time.time(), time.perf_counter()
    name = Path(sys.argv[0]).stem
    watched = first_process() and journal.wanted()
    code, status, words, figures = 0, journal.FINISHED, "", {}
    try:
        if watched and tracked:
            journal.begin(began)
        _check_code()
        with alive(name):
            words, figures, target = main()
        figures = measured(figures)
        if target and first_process():
            write_json(figures, target)
    except InputError as error:
        code, status = 1, journal.FAILED
        print(f"{name}: error: {error}", file=sys.stderr)
    except KeyboardInterrupt:
        code, status = 130, journal.STOPPED
        print(f"{name}: interrupted; {_what_stays()}", file=sys.stderr)
    except BaseException as error:
        code, status = 1, journal.FAILED
        if not is_disk_full(error):
            raise
        reason = str(error).splitlines()[0]
        full = f"the disk is full ({reason}); make room and run the stage again"
        print(f"{name}: error: {full}; {_what_stays()}", file=sys.stderr)
    finally:
        if first_process():
            for path in _outputs:
                note_written(path)
        if watched:
            _remember(began, time.perf_counter() - started, status, figures)
    if code:
        sys.exit(code)
    if first_process():
        print(f"{name}: {words} ({time.perf_counter() - started:.1f} s)", flush=True)


def _what_stays() -> str:
    """What an end before its time leaves of a stage's work."""
    if keeps_parts():
        return "finished parts are kept and the next run goes on from them"
    return "it has no finished part to keep, so the next run begins anew"


def _check_code() -> None:
    """DVC keeps a result under the digests that it took of the code before, so that nothing may be
    made with other code: neither by this run, nor by whoever takes it from the cache.
    """
    edited = edited_since(CODE) if os.environ.get("DVC_STAGE") else []
    if edited:
        raise InputError(
            f"{', '.join(edited)}: edited since `dvc repro` took the digests of the code; run it "
            "again (`dvc repro code` first if you run a single stage)"
        )


def _remember(began: float, seconds: float, status: str, figures: dict[str, Any]) -> None:
    ran_with = record.ran_with(params.read_so_far())
    try:
        record.append(ran_with, began, status, seconds)
    except OSError as error:  # it costs the record, not the result
        warn(f"no record was kept ({error})")
    journal.end(status, figures, ran_with)
    if problem := journal.untold_problem():
        warn(problem)
