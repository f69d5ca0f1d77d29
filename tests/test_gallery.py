"""Topics with their pictures, as the page has them."""

import base64
import io
import tarfile

import numpy as np
import polars as pl
from PIL import Image
from test_clustering import silent

from pipeline.report.gallery import SHOWN, thumbnail, topic_cards
from pipeline.report.params import Gallery


def jpeg(width, height, seed=0):
    pixels = np.random.default_rng(seed).integers(0, 255, (height, width, 3), np.uint8)
    content = io.BytesIO()
    Image.fromarray(pixels).save(content, "JPEG")
    return content.getvalue()


def test_large_pictures_are_made_small_and_small_ones_stay():
    assert thumbnail(small := jpeg(64, 48)) == small
    shown = Image.open(io.BytesIO(thumbnail(jpeg(640, 320))))
    assert shown.size == (SHOWN, SHOWN // 2)


def test_a_card_has_the_pictures_of_its_domains(tmp_path):
    keys = [f"k{n}" for n in range(8)]
    pictures = {key: jpeg(400, 300, n) for n, key in enumerate(keys)}
    for shard in (0, 1):
        with tarfile.open(tmp_path / f"{shard:05d}.tar", "w") as tar:
            for key in keys[shard::2]:
                member = tarfile.TarInfo(f"{key}.jpg")
                member.size = len(pictures[key])
                tar.addfile(member, io.BytesIO(pictures[key]))
    domains = pl.DataFrame(
        {"key": keys, "topic": [0] * 6 + [1] * 2, "domain": [0, 0, 0, 1, 1, 1, 0, 0]}
    )
    labels = pl.DataFrame(
        {"topic": [0, 1], "name": ["lion", "(no name)"], "size": [6, 2], "words": [["lion"], []]}
    )
    kept = pl.DataFrame({"key": keys, "caption": keys, "strength": [1.0] * 8})
    pairs = pl.DataFrame({"key": keys, "shard": [f"{n % 2:05d}.tar" for n in range(8)]})
    settings = Gallery(topics=2, pictures_per_domain=2, map_points=10)
    cards = topic_cards(labels, domains, kept, pairs, tmp_path, settings, silent)
    assert [[d["size"] for d in card["domains"]] for card in cards] == [[3, 3], [2]]
    shown = [[d["pictures"] for d in card["domains"]] for card in cards]
    expected = [[["k0", "k1"], ["k3", "k4"]], [["k6", "k7"]]]
    for of_card, their_keys in zip(shown, expected, strict=True):
        for of_domain, of_keys in zip(of_card, their_keys, strict=True):
            for url, key in zip(of_domain, of_keys, strict=True):
                content = base64.b64decode(url.removeprefix("data:image/jpeg;base64,"))
                assert content == thumbnail(pictures[key]) and len(content) < len(pictures[key])
    only = topic_cards(labels.head(1), domains, kept, pairs, tmp_path, settings, silent)
    assert only == cards[:1]
