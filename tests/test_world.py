"""The demo's outside world in small: what a drawn web holds is what its truth says."""

import io
import zipfile

import numpy as np
import polars as pl
import pytest
from conftest import ROOT
from PIL import Image

from pipeline.errors import InputError
from pipeline.world.concepts import load_concepts
from pipeline.world.drawing import STYLES
from pipeline.world.params import DrawnBenchmark, Web
from pipeline.world.sites import PAGE, choose_classes, draw_benchmark, draw_web

CONCEPTS = load_concepts(ROOT / "demo" / "concepts.yaml")
WEB = dict(
    concepts="demo/concepts.yaml",
    classes=12,
    pictures_per_class=6,
    size=32,
    styles=list(STYLES),
    strength=[0.2, 0.9],
    wrong_captions=0.2,
    dead_links=0.2,
    truncated=0.2,
    not_pictures=0.2,
    duplicates=0.3,
)


def plain(items, label, total=None):
    return items


def drawn(folder, seed=1, **changes):
    """Counts, the truth with captions, and the files by URL."""
    classes = choose_classes(CONCEPTS, 12, np.random.default_rng(1), "world.webs.small")
    counts = draw_web(classes, Web(**WEB | changes), seed, folder, plain)
    rows = [line.split("\t") for line in (folder / "captions.tsv").read_text().splitlines()]
    told = pl.DataFrame(rows, schema=["caption", "url"], orient="row")
    with zipfile.ZipFile(folder / "pictures.zip") as archive:
        files = {name: archive.read(name) for name in archive.namelist()}
    truth = pl.read_parquet(folder / "truth.parquet")
    return counts, truth.join(told, on="url", how="full", coalesce=True), files


def opened(content):
    picture = Image.open(io.BytesIO(content))
    picture.load()
    return picture


@pytest.fixture(scope="module")
def web(tmp_path_factory):
    return drawn(tmp_path_factory.mktemp("web"))


def test_a_link_leads_to_what_the_truth_says(web):
    counts, truth, files = web
    assert counts["links"] == len(truth) == truth["url"].n_unique() > 12 * 6
    assert not truth.null_count().sum_horizontal().item()
    for fate in ("fine", "dead", "truncated", "page"):
        urls = truth.filter(pl.col("fate") == fate)["url"]
        assert counts[fate] == len(urls) > 5
        for url in urls:
            assert (url in files) == (fate != "dead")
            if fate == "page":
                assert files[url] == PAGE
            elif fate == "fine":
                picture = opened(files[url])
                assert picture.format == "JPEG" and picture.size == (32, 32)
            elif fate == "truncated":
                assert files[url].startswith(b"\xff\xd8")  # a JPEG file begins so
                with pytest.raises(OSError):
                    opened(files[url])
    assert truth["style"].n_unique() == len(STYLES)


def test_a_caption_tells_of_its_picture_unless_it_is_a_wrong_one(web):
    counts, truth, _ = web
    told = pl.struct("caption", "name").map_elements(
        lambda row: row["name"] in row["caption"].lower(), pl.Boolean
    )
    right = truth.group_by("mismatched").agg(told.mean()).sort("mismatched")
    assert right.to_series(1)[0] > 0.9 and right.to_series(1)[1] < 0.1
    assert counts["mismatched"] == truth["mismatched"].sum() > 5


def test_a_second_site_shows_the_same_picture_under_a_caption_of_its_own(tmp_path):
    _, truth, files = drawn(
        tmp_path, duplicates=0.99, dead_links=0.0, truncated=0.0, not_pictures=0.0
    )
    assert len(truth) > 1.9 * 12 * 6 and len(set(files.values())) == 12 * 6


def test_a_seed_draws_the_same_web_and_another_seed_another(web, tmp_path):
    _, truth, files = web
    again, other = drawn(tmp_path / "again"), drawn(tmp_path / "other", seed=2)
    assert again[1].equals(truth) and again[2] == files
    assert not set(other[2]) & set(files)


def test_a_benchmark_has_its_domains_and_classes(tmp_path):
    asked = DrawnBenchmark(
        concepts="demo/concepts.yaml",
        families=[CONCEPTS[0].family],
        classes=3,
        size=24,
        train_per_class=2,
        test_per_class=4,
        train_styles=list(STYLES)[:1],
        test_styles=list(STYLES)[1:3],
        strength=[0.0, 0.5],
    )
    counts = draw_benchmark(CONCEPTS[:3], asked, 1, tmp_path / "b.zip", plain)
    with zipfile.ZipFile(tmp_path / "b.zip") as archive:
        places = [name.split("/") for name in archive.namelist()]
        assert len({archive.read(name) for name in archive.namelist()}) == len(places)
    for part, styles, each in (("train", 1, 2), ("test", 2, 4)):
        of_part = [place for place in places if place[0] == part]
        assert len(of_part) == 3 * each and len({place[1] for place in of_part}) == styles
        assert len({place[2] for place in of_part}) == 3
    assert counts["train"] == 6 and counts["test"] == 12


def test_classes_come_evenly_from_every_family():
    families = len({c.family for c in CONCEPTS})
    chosen = choose_classes(CONCEPTS, 2 * families, np.random.default_rng(0), "world.webs.x")
    counted = pl.Series([c.family for c in chosen]).value_counts()["count"]
    assert len(chosen) == len(set(chosen)) and counted.to_list() == [2] * families
    with pytest.raises(InputError, match=r"'world.webs.x.classes' asks for 9999 classes"):
        choose_classes(CONCEPTS, 9999, np.random.default_rng(0), "world.webs.x")


def test_an_unknown_style_is_named(tmp_path):
    with pytest.raises(InputError, match="unknown style 'cubist'; known styles: "):
        drawn(tmp_path, styles=["cubist"])


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a: {cat: [cat_face]}\nb: {cat: [dog_face]}", "class 'cat' is listed twice"),
        ("a: {cat: [no_such_thing]}", "a.cat: 'no_such_thing' is not an emoji name"),
    ],
)
def test_a_list_of_what_cannot_be_drawn(text, words, tmp_path):
    (tmp_path / "c.yaml").write_text(text)
    with pytest.raises(ValueError, match=words):
        load_concepts(tmp_path / "c.yaml")
