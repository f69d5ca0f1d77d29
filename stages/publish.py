"""Puts a meta-learned start into a folder that others can take: tokens, regulator, config, card.

    python stages/publish.py --name coop_gram --start data/starts/coop_gram \\
        --figures data/metrics/evaluate/coop_gram.json --out data/published/coop_gram
"""

import _repository  # noqa: F401, I001 — first: it sets the import path

from pathlib import Path

from pipeline.artifacts import fingerprint, read_json, resumable_folder
from pipeline.benchmarks.params import Count, Rates, sgd_of
from pipeline.clip.params import BackboneParams
from pipeline.gram.params import MetaMethod
from pipeline.gram.publish import publish
from pipeline.params import load_params
from pipeline.stage import output, parser, run

READS = {
    "seed": ("seed", int),
    "meta_seed": ("meta_seed", int),
    "backbone": ("backbone", BackboneParams),
    "method": ("methods.meta.{name}", MetaMethod),
    "titles": ("methods.titles", dict[str, str]),
    "rates": ("tuning", Rates),
    "epochs": ("few_shot.epochs", Count),
    "source": ("source.path", str),
    "table": ("source.table", str),
}


def main():
    cli = parser(__doc__)
    cli.add_argument("--name", required=True, help="entry of methods.meta")
    cli.add_argument("--start", type=Path, required=True, help="what meta-training left")
    cli.add_argument("--figures", type=Path, required=True, help="the method's metrics")
    cli.add_argument(
        "--batch", type=Path, required=True, help="JSON: what the method's tuning has of its own"
    )
    cli.add_argument("--out", type=output, required=True, help="folder to publish")
    args = cli.parse_args()
    p = load_params(args.params, READS, name=args.name)
    settings = sgd_of(p.rates, read_json(args.batch)).model_dump()
    with resumable_folder(
        args.out, fingerprint((p, args.name), args.start, args.figures, args.batch, p.backbone.path)
    ) as work:
        config = publish(
            args.start,
            work,
            Path(p.backbone.path),
            title=p.titles.get(args.name, args.name),
            figures=args.figures,
            tuning=settings | {"epochs": p.epochs},
            provenance={
                "source": p.source,
                "table": p.table,
                "seed": p.seed,
                "meta_seed": p.meta_seed,
                "method": p.method.model_dump(),
            },
        )
    digest = config["backbone"]["sha256"]
    return (
        f"{args.name}: for the backbone {digest[:12]}…",
        {"tokens": len(config["tokens"])},
        args.metrics,
    )


if __name__ == "__main__":
    run(main)
