"""Computes features of a labelled dataset that tasks are drawn from; an interrupted run goes on at
the next shard.

    python stages/labelled.py --name supervised --out data/labelled/supervised
"""

import _repository  # noqa: F401, I001 — first: it sets the import path


from pipeline.artifacts import fingerprint, resumable_folder
from pipeline.benchmarks.labelled import read_labelled, write_labelled
from pipeline.benchmarks.params import Count
from pipeline.clip.backbone import load_backbone
from pipeline.clip.params import BackboneParams
from pipeline.params import Seed, load_params
from pipeline.pictures import Pictures
from pipeline.prompts.base import check_prompts
from pipeline.stage import output, parser, progress, run, warn_of_other_files

READS = {
    "seed": ("seed", Seed),
    "backbone": ("backbone", BackboneParams),
    "path": ("{table}.{name}.path", str),
    "list": ("{table}.{name}.list", str | None),
    "names": ("{table}.{name}.names", str | None),
    "per_class": ("{table}.{name}.per_class", Count),
}


def main():
    cli = parser(__doc__)
    cli.add_argument(
        "--table",
        default="labelled",
        help="table of params.yaml (default: %(default)s; studies have their own)",
    )
    cli.add_argument("--name", required=True, help="entry of that table")
    cli.add_argument(
        "--out",
        type=output,
        required=True,
        help="folder for NNNNN.parquet: class, domain, feature and file of every picture",
    )
    args = cli.parse_args()
    p = load_params(args.params, READS, table=args.table, name=args.name)
    pictures = Pictures(p.path)
    table = read_labelled(pictures, p.per_class, p.seed, p.list, p.names)
    warn_of_other_files(pictures)
    backbone = load_backbone(p.backbone.path)
    check_prompts(backbone, table["name"].unique(maintain_order=True).to_list(), "{}.", p.path)
    with resumable_folder(args.out, fingerprint((p, args.name), p.path, p.backbone.path)) as work:
        write_labelled(table, pictures, backbone, work, progress)
    counts = {
        "classes": table["topic"].n_unique(),
        "domains": table["domain"].n_unique(),
        "pictures": len(table),
    }
    return (
        f"{args.name}: {counts['pictures']} pictures of {counts['classes']} classes in "
        f"{counts['domains']} domains",
        counts,
        args.metrics,
    )


if __name__ == "__main__":
    run(main)
