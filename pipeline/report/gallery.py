"""The topics as a person looks at them: words, and pictures of their domains side by side."""

from __future__ import annotations

import base64
from pathlib import Path

import polars as pl

from pipeline.pairs.reading import read_pictures


def as_data_url(picture: bytes) -> str:
    return "data:image/jpeg;base64," + base64.b64encode(picture).decode()


def topic_cards(
    labels: pl.DataFrame,
    domains: pl.DataFrame,
    kept: pl.DataFrame,
    pairs: pl.DataFrame,
    shards: Path,
    *,
    topics: int,
    per_domain: int,
) -> list[dict]:
    """The first `topics` of the labels: name, size, words, their most central captions, and
    `per_domain` pictures of each domain as data URLs.

    Args:
        labels: topic, name, size, words; domains: key, topic, domain; kept: key, caption, strength;
        pairs: key, shard.
    """
    shown = labels.head(topics)
    picked = (
        domains.join(shown.select("topic"), on="topic", how="semi")
        .sort("topic", "domain", "key")
        .group_by("topic", "domain", maintain_order=True)
        .agg(pl.col("key").head(per_domain), pl.len())
    )
    wanted = set(picked["key"].explode())
    holding = pairs.filter(pl.col("key").is_in(wanted))["shard"].unique().sort()
    pictures = {
        k: as_data_url(c) for s in holding for k, c in read_pictures(shards / s) if k in wanted
    }
    central = (
        domains.join(kept, on="key")
        .unique(["topic", "caption"])
        .sort(["strength", "key"], descending=[True, False])
    )
    captions = central.group_by("topic").agg(pl.col("caption").head(3))
    examples = dict(captions.iter_rows())
    cards = []
    for topic, name, size, words in shown.select("topic", "name", "size", "words").iter_rows():
        rows = picked.filter(pl.col("topic") == topic)
        cards.append(
            {
                "name": name,
                "size": size,
                "words": words,
                "captions": examples.get(topic, []),
                "domains": [
                    {"size": n, "pictures": [pictures[k] for k in keys]}
                    for _, _, keys, n in rows.iter_rows()
                ],
            }
        )
    return cards
