"""Topics with their pictures, as the page has them, and pictures that several captions share."""

import base64
import io
import sys
import tarfile

import numpy as np
import polars as pl
from conftest import ROOT, run
from PIL import Image
from test_clustering import silent

from pipeline.artifacts import to_vectors, write_table
from pipeline.clustering.schemas import DOMAINS, LABELS
from pipeline.pairs.reading import write_pairs
from pipeline.pairs.schemas import PAIRS, features_schema
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
    pairs = pl.DataFrame(
        {"key": keys, "picture": keys, "shard": [f"{n % 2:05d}.tar" for n in range(8)]}
    )
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
    # k1 and k2 are captions of k0's picture, and k0 itself is in no topic
    pairs = pairs.with_columns(
        pl.when(pl.col("key").is_in(["k1", "k2"]))
        .then(pl.lit("k0"))
        .otherwise("picture")
        .alias("picture"),
        pl.when(pl.col("key").is_in(["k1", "k2"]))
        .then(pl.lit("00000.tar"))
        .otherwise("shard")
        .alias("shard"),
    )
    shared = topic_cards(labels, domains[1:], kept, pairs, tmp_path, settings, silent)
    first = shared[0]["domains"][0]
    assert first["size"] == 1 and first["pictures"] == cards[0]["domains"][0]["pictures"][:1]


def test_tasks_find_a_picture_that_has_another_caption_s_name(tmp_path):
    """Each pair is the second caption of its picture; the first, whose key is the picture's name in
    the shard, is in no topic.
    """
    names = [f"k{n:02d}" for n in range(16)]
    keys = [f"{name}-2" for name in names]
    (tmp_path / "shards").mkdir()
    with tarfile.open(tmp_path / "shards" / "00000.tar", "w") as tar:
        for n, name in enumerate(names):
            member, content = tarfile.TarInfo(f"{name}.jpg"), jpeg(8, 8, n)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    domains = {"key": keys, "topic": np.repeat([0, 1], 8), "domain": np.tile([0, 1], 8)}
    write_table(pl.DataFrame(domains).to_arrow(), tmp_path / "domains.parquet", DOMAINS)
    labels = {"topic": [0, 1], "name": ["lion", "bus"], "size": [8, 8], "words": [["a"], ["b"]]}
    table = pl.DataFrame(labels | {"scores": [[1.0], [1.0]]})
    write_table(table.to_arrow(), tmp_path / "labels.parquet", LABELS)
    pairs = pl.DataFrame({"key": names + keys, "picture": names + names}).sort("key")
    pairs = pairs.with_columns(caption=pl.lit("a lion"), status=pl.lit("success"))
    pairs = pairs.with_columns(error=pl.lit(""), shard=pl.lit("00000.tar"), sha256=pl.lit(""))
    pairs = pairs.with_columns(pl.lit(8).alias(c) for c in ("width", "height", "bytes"))
    write_pairs(pairs.select(*PAIRS.names, "picture").to_arrow(), tmp_path / "pairs.parquet")
    table = pl.DataFrame({"key": keys}).to_arrow()
    for column in ("image", "text"):
        vectors = to_vectors(np.random.default_rng(0).normal(size=(16, 8)))
        table = table.append_column(column, vectors)
    write_table(table, tmp_path / "features" / "00000.parquet", features_schema(8))
    text = (ROOT / "params.yaml").read_text()
    for old, new in (
        ("\nways: 8", "\nways: 2"),
        ("\nsupport_shots: 4", "\nsupport_shots: 2"),
        ("\nquery_shots: 6", "\nquery_shots: 2"),
        ("\nheld_out_topics: 0.1", "\nheld_out_topics: 0"),
    ):
        assert text.count(old) == 1
        text = text.replace(old, new)
    (tmp_path / "params.yaml").write_text(text)
    done = run(
        *(sys.executable, "stages/episodes.py", "--params", tmp_path / "params.yaml"),
        *("--name", "shifted", "--out", tmp_path / "episodes", "--shards", tmp_path / "shards"),
        *("--domains", tmp_path / "domains.parquet", "--labels", tmp_path / "labels.parquet"),
        *("--features", tmp_path / "features", "--pairs", tmp_path / "pairs.parquet"),
        cwd=ROOT,
    )
    assert "300 2-way tasks from 2 of 2 topics" in done.stdout
    shown = pl.read_parquet(tmp_path / "episodes").unique("key")
    assert set(shown["key"]) <= set(keys)
    for key, picture in shown.select("key", "picture").iter_rows():
        assert picture == jpeg(8, 8, names.index(key.removesuffix("-2")))
