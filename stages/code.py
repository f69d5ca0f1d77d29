"""Takes the digests of the code that every stage script runs: the script and all that it imports,
directly or not.

    python stages/code.py --out data/code

Each stage depends on the one file of its script, so an edit reruns the stages whose code it
touches, and no others.
"""

import _repository  # noqa: F401, I001 — first: it sets the import path

from pathlib import Path

from pipeline.artifacts import write_json
from pipeline.code import digests
from pipeline.stage import parser, run

READS = {}


def main():
    cli = parser(__doc__)
    cli.add_argument("--out", type=Path, required=True, help="folder for <script>.json")
    args = cli.parse_args()
    scripts = sorted(Path(__file__).resolve().parent.glob("[a-z]*.py"))
    for script in scripts:
        write_json(digests(script), args.out / f"{script.stem}.json")
    return f"{len(scripts)} scripts", {}, args.metrics


if __name__ == "__main__":
    run(main)
