"""The topics as a person looks at them: words, and pictures of their domains side by side."""

from __future__ import annotations

import base64
import io
from pathlib import Path

import numpy as np
import polars as pl

from pipeline.image_file import identified, open_picture
from pipeline.pairs.reading import locate_pictures
from pipeline.report.params import Gallery

SHOWN = 128  # pixels of the longer side on the page, at most


def as_data_url(picture: bytes) -> str:
    return "data:image/jpeg;base64," + base64.b64encode(picture).decode()


def thumbnail(picture: bytes) -> bytes:
    """A JPEG file of `SHOWN` pixels at most; one that is no larger stays as it is."""
    if max(identified(io.BytesIO(picture)).size) <= SHOWN:
        return picture
    image = open_picture(picture)
    image.thumbnail((SHOWN, SHOWN))
    small = io.BytesIO()
    image.save(small, "JPEG", quality=85)
    return small.getvalue()


def _picked(
    shown: pl.DataFrame, domains: pl.DataFrame, pairs: pl.DataFrame, most: int
) -> pl.DataFrame:
    """Of the domains of the topics that are shown: topic, domain, picture (names, `most` at most),
    len.
    """
    return (
        domains.join(shown.select("topic"), on="topic", how="semi")
        .join(pairs.select("key", "picture"), on="key", how="left")
        .sort("topic", "domain", "key")
        .unique(["topic", "domain", "picture"], keep="first", maintain_order=True)
        .group_by("topic", "domain", maintain_order=True)
        .agg(pl.col("picture").head(most), pl.len())
    )


def _data_urls(names: pl.Series, pairs: pl.DataFrame, shards: Path, progress) -> dict[str, str]:
    """Thumbnails of pictures by their names."""
    holding = pl.DataFrame({"picture": names}).join(
        pairs.select("picture", "shard").unique("picture"),
        on="picture",
        how="left",
        maintain_order="left",
    )
    rows = np.arange(len(names))
    located = locate_pictures(shards, names.to_list(), holding["shard"].to_list(), rows, progress)
    return {
        name: as_data_url(thumbnail(located.read(rows[n : n + 1])[0]))
        for n, name in enumerate(names)
    }


def _examples(domains: pl.DataFrame, kept: pl.DataFrame) -> dict[int, list[str]]:
    """Topic → its most central captions."""
    central = (
        domains.join(kept, on="key")
        .unique(["topic", "caption"])
        .sort(["strength", "key"], descending=[True, False])
    )
    captions = central.group_by("topic").agg(pl.col("caption").head(3))
    return dict(captions.iter_rows())


def topic_cards(
    labels: pl.DataFrame,
    domains: pl.DataFrame,
    kept: pl.DataFrame,
    pairs: pl.DataFrame,
    shards: Path,
    settings: Gallery,
    progress,
) -> list[dict]:
    """The first `gallery.topics` of the labels: name, size, words, their most central captions, and
    `gallery.pictures_per_domain` pictures of each domain as data URLs.

    Args:
        labels: topic, name, size, words; domains: key, topic, domain; kept: key, caption, strength;
        pairs: key, shard, picture.
    """
    shown = labels.head(settings.topics)
    picked = _picked(shown, domains, pairs, settings.pictures_per_domain)
    names = picked["picture"].explode().unique().sort()
    pictures = _data_urls(names, pairs, shards, progress)
    examples = _examples(domains, kept)
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
