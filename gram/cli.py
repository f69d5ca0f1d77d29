"""The command `gram`. Nothing heavy is imported before a command needs it."""

from __future__ import annotations

import json
import os
import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, NoReturn, Optional

import typer

from pipeline.errors import InputError, is_disk_full

app = typer.Typer(
    name="gram",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="A folder of pictures in, a classifier out.",
    epilog="Exit codes: 0 done, 1 something is wrong with the input, 2 a wrong command line.",
)

Backbone = Annotated[
    Optional[str],  # noqa: UP045 — typer reads it at run time
    typer.Option(
        "--backbone",
        envvar="GRAM_BACKBONE",
        help="A folder in open_clip's layout, or an open_clip name (MODEL/PRETRAINED, "
        "hf-hub:OWNER/NAME), which alone is fetched over the network.",
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object, for scripts.")]
Model = Annotated[Path, typer.Argument(help="A model folder that `gram adapt` wrote.")]
Given = Annotated[
    list[Path],
    typer.Argument(help="Pictures, folders or zips of them, or a CSV with the column path."),
]
PICTURES = "A folder or zip of CLASS/PICTURE, or a CSV of path,label."
METHODS = "auto, zero-shot, start, probe, start-probe, logistic, coop or coop-start."


class Format(StrEnum):
    table = "table"
    json = "json"
    csv = "csv"
    parquet = "parquet"


def say(words: str) -> None:
    """To a person, beside what a script reads."""
    typer.echo(words, err=True)


def as_json(values: Any) -> None:
    typer.echo(json.dumps(values, indent=2, ensure_ascii=False))


def usage(words: str) -> NoReturn:
    raise typer.BadParameter(words)


@app.command()
def check(
    folder: Annotated[Path, typer.Argument(help=PICTURES)],
    backbone: Backbone = None,
    as_json_: AsJson = False,
) -> None:
    """What is in a folder, and all that is wrong with it; nothing is learned or written.

    With a backbone and 50 pictures or more it also tells whether the backbone names them better
    with the other activation than its config says (GELU, QuickGELU).
    """
    from gram.commands import check_folder

    found = check_folder(folder, backbone)
    if as_json_:
        as_json(found)
    else:
        for name, count in found["classes"].items():
            typer.echo(f"{count:6d}  {name}")
        for note in found["notes"]:
            say(f"note: {note}")
        for problem in found["problems"]:
            say(f"error: {problem}")
        say(
            f"{found['pictures']} pictures, {len(found['classes'])} classes, "
            f"{len(found['problems'])} problems"
        )
    if found["problems"]:
        raise typer.Exit(1)


@app.command()
def adapt(
    folder: Annotated[Path, typer.Argument(help=PICTURES)],
    out: Annotated[Path, typer.Option("--out", help="The model folder to write.")],
    backbone: Backbone = None,
    start: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option(help="Folder of a meta-learned start (any kind of prompt) for that backbone."),
    ] = None,
    method: Annotated[str, typer.Option(help=METHODS)] = "auto",
    template: Annotated[
        str, typer.Option(help="The hand-written prompt; {} is the class's place.")
    ] = "a photo of a {}.",
    folds: Annotated[
        int, typer.Option(min=0, help="Parts that are held out in turn; 0: nothing is measured.")
    ] = 5,
    minutes: Annotated[
        float, typer.Option(min=0.0, help="Leave out methods that would take longer in all.")
    ] = 10,
    seed: Annotated[
        int, typer.Option(min=0, max=2**32 - 1, help="Of folds, views and tuning.")
    ] = 1,
    as_json_: AsJson = False,
) -> None:
    """Makes a classifier of a folder of pictures, and says how good it is."""
    if not backbone:
        usage("give a backbone with --backbone, or as GRAM_BACKBONE")
    if folds == 1:
        usage("--folds takes 0, or 2 and more")
    from gram.commands import adapt_folder
    from gram.estimator import PromptClassifier

    settings = PromptClassifier(backbone, start, method, template, folds, seed)
    found = adapt_folder(settings, folder, out, minutes, say)
    if as_json_:
        as_json(found)
    else:
        typer.echo(found["sentence"])
        typer.echo(f"{out}: the classifier; {out / 'report.html'} tells how good it is")


@app.command()
def predict(
    model: Model,
    pictures: Given,
    names: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(
            help='Other classes, "heron,egret": those alone; with a + before the first, '
            "beside the model's own."
        ),
    ] = None,
    top: Annotated[int, typer.Option(min=1, help="Classes that are told per picture.")] = 1,
    unsure: Annotated[
        Optional[float],  # noqa: UP045
        typer.Option(
            help="Say where it is unsure: sets of classes that hold the truth this often (0.9: "
            "nine times in ten) for pictures like those it was adapted to; for other kinds of "
            "pictures nothing is promised. No class, or more than one: unsure."
        ),
    ] = None,
    format_: Annotated[Format, typer.Option("--format")] = Format.table,
    copy_to: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option(help="Copy the pictures into a folder per class there."),
    ] = None,
    backbone: Backbone = None,
) -> None:
    """Names pictures."""
    if unsure is not None and not 0 < unsure < 1:
        usage("--unsure takes a share between 0 and 1, as 0.9")
    if format_ is Format.parquet and sys.stdout.isatty():
        usage("--format parquet is for a file: gram predict … --format parquet > FILE")
    from gram.commands import Asked, predict_pictures
    from gram.output import write_rows

    rows, unreadable = predict_pictures(
        model, backbone, pictures, Asked(names, top, unsure, copy_to), say
    )
    write_rows(rows, format_.value)
    if unreadable:
        more = f" (and {len(unreadable) - 1} more)" if unreadable[1:] else ""
        raise InputError(f"{unreadable[0]}{more}; the others were named")


@app.command()
def evaluate(
    model: Model,
    folder: Annotated[Path, typer.Argument(help=PICTURES)],
    backbone: Backbone = None,
    as_json_: AsJson = False,
) -> None:
    """How good a classifier is on other labelled pictures."""
    from gram.commands import evaluate_folder
    from gram.output import print_evaluation

    found = evaluate_folder(model, backbone, folder, say)
    as_json(found) if as_json_ else print_evaluation(found)


@app.command()
def info(model: Model, as_json_: AsJson = False) -> None:
    """What a model folder holds; the backbone is not needed."""
    from gram.commands import describe
    from gram.output import print_pairs

    found = describe(model)
    as_json(found) if as_json_ else print_pairs(found)


@app.command()
def export(
    model: Model,
    onnx: Annotated[Path, typer.Option("--onnx", help="The file to write.")],
    backbone: Backbone = None,
) -> None:
    """Writes image tower and classes as one ONNX graph, compared with torch (extra `onnx`)."""
    from gram.estimator import PromptClassifier
    from gram.export import export as write

    worst = write(PromptClassifier.load(model, backbone), onnx)
    typer.echo(f"{onnx}: probabilities differ from torch's by {worst:.1e} at most")


@app.command()
def serve(
    model: Model,
    port: Annotated[int, typer.Option(min=0, max=65535, help="0: any that is free.")] = 8000,
    host: Annotated[
        str,
        typer.Option(
            help="127.0.0.1: this machine alone can ask. 0.0.0.0: whoever reaches it over the "
            "network, too."
        ),
    ] = "127.0.0.1",
    allow_host: Annotated[
        Optional[list[str]],  # noqa: UP045
        typer.Option(
            help="Another name that the page is asked for under, as NAME or NAME:PORT: a "
            "container's host, a proxy's or a tunnel's name. Can be given several times. The names "
            "and addresses of this machine are allowed by themselves."
        ),
    ] = None,
    corrections: Annotated[
        Path, typer.Option(help="Where corrected pictures go, for the next `gram adapt`.")
    ] = Path("corrections"),
    unsure: Annotated[float, typer.Option(min=0.01, max=0.99, help="As of `gram predict`.")] = 0.9,
    backbone: Backbone = None,
) -> None:
    """A page on this machine: drop pictures, see their names, correct wrong ones."""
    from gram.hosts import address_of, hosts_for, is_loopback, listening, own_names

    hosts, sockets = hosts_for(host, allow_host or ()), listening(host, port)
    from gram.estimator import PromptClassifier
    from gram.serve import check_corrections
    from gram.serve import serve as run

    check_corrections(corrections)
    loaded = PromptClassifier.load(model, backbone)
    say(f"{address_of(host, sockets[0].getsockname()[1])} (Ctrl-C ends it)")
    if not is_loopback(host):
        names = ", ".join([*(allow_host or ()), *own_names(host)])
        say(f"it answers to the names {names}; --allow-host adds one")
    run(loaded, corrections, hosts, sockets, unsure)


def main() -> None:
    """Runs the command; bad input is one line on the error stream and exit code 1."""
    # OpenMP's threads wait for each other asleep: awake, they take three times as long where
    # another program has a core of theirs. It must be said before torch is loaded.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    try:
        app()
    except InputError as error:
        say(f"gram: error: {error}")
        sys.exit(1)
    except OSError as error:  # a folder that cannot be written, a full disk
        say(f"gram: error: {error.filename or 'the file system'}: {error.strerror or error}")
        sys.exit(1)
    except Exception as error:
        if not is_disk_full(error):
            raise
        say(f"gram: error: the disk is full ({str(error).splitlines()[0]}); nothing was written")
        sys.exit(1)
    except KeyboardInterrupt:
        say("gram: interrupted; nothing was written")
        sys.exit(130)
