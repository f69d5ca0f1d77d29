"""Writes what a method's tuning has of its own: pictures per step, and a factor of the rate.

    python stages/batch.py --table methods.direct --name cocoop --out data/batches/cocoop.json

Tuning depends on this file, so that `tuning.batch_of` and `tuning.lr_factor_of` of one kind of
prompt rerun the methods of that kind, and no others.
"""

import _repository  # noqa: F401, I001 — first: it sets the import path


from pipeline.artifacts import write_json
from pipeline.benchmarks.params import Count, Rate
from pipeline.gram.params import Prompt
from pipeline.params import load_params
from pipeline.stage import output, parser, run

READS = {
    "batch": ("tuning.batch", Count),
    "batch_of": ("tuning.batch_of", dict[str, Count]),
    "factor_of": ("tuning.lr_factor_of", dict[str, Rate]),
    "prompt": ("{table}.{name}.prompt", Prompt),
}


def main():
    cli = parser(__doc__)
    cli.add_argument("--table", required=True, help="table of params.yaml")
    cli.add_argument("--name", required=True, help="entry of that table")
    cli.add_argument("--out", type=output, required=True, help="JSON file")
    args = cli.parse_args()
    p = load_params(args.params, READS, table=args.table, name=args.name)
    batch = p.batch_of.get(p.prompt, p.batch)
    factor = p.factor_of.get(p.prompt, 1.0)
    own, told = {"batch": batch}, f"{args.name}: {batch} pictures"
    if factor != 1:
        own, told = own | {"lr_factor": factor}, f"{told}, {factor} times the rate"
    write_json(own, args.out)
    return told, {}, args.metrics


if __name__ == "__main__":
    run(main)
