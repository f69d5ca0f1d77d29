"""Takes the digests of the code that every stage script runs: of what it reaches, directly or not.

    python stages/code.py --out data/code

Each stage depends on the one file of its script, so an edit reruns the stages whose code it
touches, and no others. Scripts that run a prompt method have a file for each method,
<script>/<method>.json: another method's code is none of its own.
"""

import _repository  # noqa: F401, I001 — first: it sets the import path

from pathlib import Path

from pipeline.artifacts import write_json
from pipeline.code import digests, is_of_a_method, problems
from pipeline.gram.params import MetaMethod, Method
from pipeline.params import load_params
from pipeline.stage import output, parser, run, warn

READS = {
    "direct": ("methods.direct", dict[str, Method]),
    "meta": ("methods.meta", dict[str, MetaMethod]),
    "study_direct": ("study.methods.direct", dict[str, Method]),
    "study_meta": ("study.methods.meta", dict[str, MetaMethod]),
}
BEFORE = "params"  # the stage that this one waits for: it depends on files, as this one does


def kinds_of(method: Method) -> dict[str, str]:
    """Which entries of `pipeline.code.TABLES` a method's stages run."""
    learned = isinstance(method, MetaMethod) and method.algorithm == "gram"
    regulator = method.regulator if isinstance(method, MetaMethod) and learned else None
    return {
        "prompt": method.prompt,
        "regulator": "affine" if regulator == "affine" else "plain",
    }


def write(found: dict[str, str], path: Path) -> None:
    """Without the files of which nothing counts: whether these are there must not count either."""
    write_json({file: digest for file, digest in found.items() if digest}, path)


def main():
    cli = parser(__doc__)
    cli.add_argument("--out", type=output, required=True, help="folder for <script>.json")
    args = cli.parse_args()
    p = load_params(args.params, READS)
    there = sorted(Path(__file__).resolve().parent.glob("[a-z]*.py"))
    scripts = [script for script in there if script.stem != BEFORE]
    broken: dict[str, list[str]] = {}
    for script in scripts:
        for problem in problems(script):
            broken.setdefault(problem, []).append(script.stem)
        write(digests(script), args.out / f"{script.stem}.json")
        if is_of_a_method(script):
            study = script.stem.startswith("study_")
            methods = p.study_direct | p.study_meta if study else p.direct | p.meta
            for name, method in methods.items():
                path = args.out / script.stem / f"{name}.json"
                write(digests(script, kinds_of(method)), path)
    for problem, stems in broken.items():
        warn(f"{problem}; what uses it will fail: {', '.join(stems)}")
    return f"{len(scripts)} scripts", {}, args.metrics


if __name__ == "__main__":
    run(main)
