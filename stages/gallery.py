"""Gathers what a person looks at on the way from captions to domains: losses, scores, the topic
map, topics with pictures.

    python stages/gallery.py --pairs … --out data/gallery.json  # see dvc.yaml for the whole line

Apart from the report, so that a sweep does not encode the same pictures again, and a colleague can
make the report without having the pictures.
"""

import _repository  # noqa: F401, I001 — first: it sets the import path

from pathlib import Path
from types import SimpleNamespace

import plotly.graph_objects as go
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
from pipeline.stage import output, parser, progress, run

KINDS = {"out": output}
INPUTS = {
    "pairs": "Parquet: one row per caption",
    "shards": "folder of picture shards",
    "kept": "Parquet: reason of every rejection",
    "topics": "Parquet: membership strength per pair",
    "map": "Parquet: places on the map",
    "clusters": "Parquet: topic per pair",
    "labels": "Parquet: name and words per topic",
    "domains": "Parquet: domain per pair",
    "out": "JSON file for counts, figures (plotly) and topics with their pictures",
}
READS = {"seed": ("seed", Seed), "filter": ("filter", Selection), "gallery": ("gallery", Gallery)}


def read_labels(path: Path) -> pl.DataFrame:
    """topic, name, size and words of every topic, the largest first."""
    labels = pl.from_arrow(read_table(path, LABELS))
    named = labels.with_columns(pl.col("name").fill_null("(no name)"))
    return named.sort("size", "topic", descending=[True, False])


def counts_of(pairs: pl.DataFrame, kept: pl.DataFrame, topics: pl.DataFrame) -> dict[str, int]:
    """How many captions are left after every step."""
    return {
        "captions": len(pairs),
        "whole pictures": int((pairs["status"] == "success").sum()),
        "kept by the filter": int(kept["kept"].sum()),
        "in topics": int((topics["topic"] >= 0).sum()),
    }


def dropped(pairs: pl.DataFrame, kept: pl.DataFrame) -> str:
    """How many captions were lost, reason by reason."""
    failed = pairs.filter(pl.col("status") != "success").select(why="status")
    rejected = kept.filter(~pl.col("kept")).select(why="reason")
    lost = [
        f"{count:,} {why.replace('_', ' ')}"
        for reasons in (failed, rejected)
        for why, count in reasons.group_by("why")
        .len()
        .sort("len", "why", descending=[True, False])  # groups come in any order
        .iter_rows()
    ]
    return f"Lost on the way: {', '.join(lost)}."


def histogram(kept: pl.DataFrame, p: SimpleNamespace) -> go.Figure:
    """The scores of the filter, and the least one that it keeps."""
    scored = kept.drop_nulls("score")
    scores, judged = scored["score"].to_numpy(), scored["reason"].is_in(SCORED).to_numpy()
    return figures.score_histogram(scores, judged, least_score(scores, p.filter))


def on_the_map(
    topics: pl.DataFrame, places: Path, kept: pl.DataFrame, p: SimpleNamespace
) -> pl.DataFrame:
    """`gallery.map_points` of the captions, with place, topic and text."""
    mapped = topics.join(pl.from_arrow(read_table(places, MAP)), on="key", validate="1:1")
    drawn = mapped.sample(min(len(mapped), p.gallery.map_points), seed=p.seed)
    return drawn.join(kept.select("key", "caption"), on="key").sort("key")


def main():
    cli = parser(__doc__)
    for name, what in INPUTS.items():
        cli.add_argument(f"--{name}", type=KINDS.get(name, Path), required=True, help=what)
    args = cli.parse_args()
    p = load_params(args.params, READS)
    pairs = read_pairs(args.pairs, ["key", "status", "error", "shard"])
    kept = pl.from_arrow(read_table(args.kept, KEPT))
    strength = pl.from_arrow(read_table(args.topics, TOPICS, ["key", "strength"]))
    clusters = pl.from_arrow(read_table(args.clusters, CLUSTERS))
    topics = clusters.join(strength, on="key", validate="1:1")
    labels = read_labels(args.labels)
    domains = pl.from_arrow(read_table(args.domains, DOMAINS))
    counts, points = counts_of(pairs, kept, topics), on_the_map(topics, args.map, kept, p)
    drawn = {
        "funnel": figures.funnel(counts),
        "failures": figures.failures(lost) if (lost := failure_reasons(pairs)) else None,
        "histogram": histogram(kept, p),
        "map": figures.topic_map(points, dict(labels.select("topic", "name").iter_rows())),
    }
    map_note = (
        f"One dot per kept caption ({len(points):,} shown), near to those that say "
        f"similar things; {int((topics['topic'] < 0).sum()):,} are in no topic."
    )
    with_strength = kept.join(strength, on="key")
    shown = {
        "counts": counts,
        "dropped": dropped(pairs, kept),
        "figures": {name: figure and figure.to_json() for name, figure in drawn.items()},
        "map_note": map_note,
        "cards": topic_cards(
            labels, domains, with_strength, pairs, args.shards, p.gallery, progress
        ),
        "topics": labels.select("name", "size", "words").to_dicts(),
    }
    write_json(shown, args.out)
    words = f"{args.out}: {len(labels)} topics, {args.out.stat().st_size / 1e6:.1f} MB"
    return words, {}, args.metrics


if __name__ == "__main__":
    run(main)
