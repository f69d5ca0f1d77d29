"""Gathers what a person looks at on the way from captions to domains: losses, scores, the topic
map, topics with pictures.

    python stages/gallery.py --pairs … --out data/gallery.json      # see dvc.yaml for the whole
    line

Apart from the report, so that a sweep does not encode the same pictures again, and a colleague can
make the report without having the pictures.
"""

import _repository  # noqa: F401, I001 — first: it sets the import path

from pathlib import Path

import polars as pl

from pipeline.artifacts import read_table, write_json
from pipeline.clustering.schemas import CLUSTERS, DOMAINS, LABELS, MAP, TOPICS
from pipeline.pairs.index import failure_reasons
from pipeline.pairs.noise import SCORED, least_score
from pipeline.pairs.params import Selection
from pipeline.pairs.reading import read_pairs
from pipeline.pairs.schemas import KEPT
from pipeline.params import Seed, load_params
from pipeline.report import figures
from pipeline.report.gallery import topic_cards
from pipeline.report.params import Gallery
from pipeline.stage import parser, progress, run

READS = {"seed": ("seed", Seed), "filter": ("filter", Selection), "gallery": ("gallery", Gallery)}


def main():
    cli = parser(__doc__)
    for name, what in {
        "pairs": "Parquet: one row per caption",
        "shards": "folder of picture shards",
        "kept": "Parquet: reason of every rejection",
        "topics": "Parquet: membership strength per pair",
        "map": "Parquet: places on the map",
        "clusters": "Parquet: topic per pair",
        "labels": "Parquet: name and words per topic",
        "domains": "Parquet: domain per pair",
        "out": "JSON file for counts, figures (plotly) and topics with their pictures",
    }.items():
        cli.add_argument(f"--{name}", type=Path, required=True, help=what)
    args = cli.parse_args()
    p = load_params(args.params, READS)
    pairs = read_pairs(args.pairs, ["key", "status", "error", "shard"])
    kept = pl.from_arrow(read_table(args.kept, KEPT))
    places = pl.from_arrow(read_table(args.topics, TOPICS, ["key", "strength"]))
    topics = pl.from_arrow(read_table(args.clusters, CLUSTERS)).join(
        places, on="key", validate="1:1"
    )
    # the largest first
    labels = (
        pl.from_arrow(read_table(args.labels, LABELS))
        .with_columns(pl.col("name").fill_null("(no name)"))
        .sort("size", "topic", descending=[True, False])
    )
    domains = pl.from_arrow(read_table(args.domains, DOMAINS))
    counts = {
        "captions": len(pairs),
        "whole pictures": int((pairs["status"] == "success").sum()),
        "kept by the filter": int(kept["kept"].sum()),
        "in topics": int((topics["topic"] >= 0).sum()),
    }
    failures = (
        pairs.filter(pl.col("status") != "success")
        .group_by("status")
        .len()
        .sort("len", descending=True)
    )
    reasons = kept.filter(~pl.col("kept")).group_by("reason").len().sort("len", descending=True)
    scored = kept.drop_nulls("score")
    scores, judged = scored["score"].to_numpy(), scored["reason"].is_in(SCORED).to_numpy()
    mapped = topics.join(pl.from_arrow(read_table(args.map, MAP)), on="key", validate="1:1")
    points = (
        mapped.sample(min(len(mapped), p.gallery.map_points), seed=p.seed)
        .join(kept.select("key", "caption"), on="key")
        .sort("key")
    )
    drawn = {
        "funnel": figures.funnel(counts),
        "failures": figures.failures(lost) if (lost := failure_reasons(pairs)) else None,
        "histogram": figures.score_histogram(scores, judged, least_score(scores, p.filter)),
        "map": figures.topic_map(points, dict(labels.select("topic", "name").iter_rows())),
    }
    write_json(
        {
            "counts": counts,
            "dropped": "Lost on the way: "
            + ", ".join(
                f"{n:,} {why.replace('_', ' ')}"
                for why, n in [*failures.iter_rows(), *reasons.iter_rows()]
            )
            + ".",
            "figures": {name: figure and figure.to_json() for name, figure in drawn.items()},
            "map_note": (
                f"One dot per kept caption ({len(points):,} shown), near to those that say "
                f"similar things; {int((topics['topic'] < 0).sum()):,} are in no topic."
            ),
            "cards": topic_cards(
                labels,
                domains,
                kept.join(places, on="key"),
                pairs,
                args.shards,
                p.gallery,
                progress,
            ),
            "topics": labels.select("name", "size", "words").to_dicts(),
        },
        args.out,
    )
    return (
        f"{args.out}: {len(labels)} topics, {args.out.stat().st_size / 1e6:.1f} MB",
        {},
        args.metrics,
    )


if __name__ == "__main__":
    run(main)
