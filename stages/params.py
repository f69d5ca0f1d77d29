"""Checks the whole of params.yaml before any other stage works.

    python stages/params.py --out data/params.json

Every other stage waits for it, by way of the stage `code`: a wrong value is told at once, and not
by the stage that reads it, hours later. What it writes is the same for every sound file, so that a
value that changes reruns this check and what reads that value.
"""

import _repository  # noqa: F401 — first: it sets the import path

from pipeline.artifacts import write_json
from pipeline.schema import check, lacking
from pipeline.stage import output, parser, run, warn

READS = {}  # no key alone: it depends on the file as a whole


def main():
    cli = parser(__doc__)
    cli.add_argument(
        "--out", type=output, required=True, help="JSON file, the same for every check"
    )
    args = cli.parse_args()
    found = check(args.params)
    for remark in [*found.remarks(), *lacking(found)]:
        warn(f"{args.params}: {remark}")
    write_json({"sound": True}, args.out)
    return f"{args.params} is sound", {}, args.metrics


if __name__ == "__main__":
    run(main)
