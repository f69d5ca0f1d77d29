"""Several captions of a picture: fetched once, encoded once, and none lost to another."""

import io
import shutil
import tarfile

import numpy as np
import polars as pl
import pyarrow as pa
import pytest
from conftest import ROOT
from safetensors.torch import load_file, save_file
from test_pairs import FILTER, QUIET, Site, jpeg, settings

from pipeline.artifacts import from_vectors, read_table, to_vectors, write_table
from pipeline.clip.backbone import image_features, load_backbone, open_picture
from pipeline.errors import InputError
from pipeline.pairs import noise
from pipeline.pairs.download import Effort, download
from pipeline.pairs.features import extract_features, smaller_pictures
from pipeline.pairs.index import index_pairs
from pipeline.pairs.noise import filter_pairs, match_scores, near_duplicates
from pipeline.pairs.params import Filter
from pipeline.pairs.reading import locate_pictures, read_pairs, read_pictures
from pipeline.pairs.schemas import CAPTIONS, FETCHED, PAIRS, PICTURE, features_schema
from pipeline.report.gallery import as_data_url, topic_cards
from pipeline.report.params import Gallery

BACKBONE = ROOT / "demo" / "backbone"


def write_captions(path, rows):
    keys, texts, urls = zip(*sorted(rows), strict=True)
    table = pa.table([list(keys), list(texts), list(urls)], schema=CAPTIONS)
    write_table(table, path, CAPTIONS)
    return path


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    """Four pictures with five captions each, and one with one; keys of which one begins another."""
    top, site = tmp_path_factory.mktemp("shared"), Site()
    rows = [("12", "a picture of its own", f"{site.base}/99.jpg")]
    for picture in (0, 2, 3, 4):
        for n in range(5):
            key = "12-2" if (picture, n) == (0, 0) else f"{picture}{n}"
            # the second spelling is the same link to a browser
            url = f"{site.base}/{picture}.jpg" + ("#top" if n == 3 else "")
            rows.append((key, f"picture {picture}, caption {n}", url))
    captions = write_captions(top / "captions.parquet", rows)
    (top / "shards").mkdir()
    counts = download(
        captions,
        None,
        top / "shards",
        settings(private_addresses=True, shard_rows=3),
        Effort(1, 4),
        QUIET,
    )
    pairs, _ = index_pairs(captions, top / "shards", QUIET)
    write_table(pairs, top / "pairs.parquet", PAIRS.append(PICTURE))
    return top, rows, site, counts


def test_each_picture_is_asked_for_once(shared):
    _, _, site, counts = shared
    assert sorted(site.asked) == ["/0.jpg", "/2.jpg", "/3.jpg", "/4.jpg", "/99.jpg"]
    assert counts == {
        "links": 21,
        "shards": 2,
        "success": 21,
        "failed_to_download": 0,
        "failed_to_resize": 0,
        "urls": 5,
    }


def test_every_caption_finds_its_picture(shared):
    top, rows, *_ = shared
    table = read_pairs(top / "pairs.parquet")
    assert table["key"].to_list() == sorted(key for key, *_ in rows)
    assert table["picture"].n_unique() == table["sha256"].n_unique() == 5
    url = {key: url for key, _, url in rows}
    expected = [jpeg(int(url[k].partition(".jpg")[0].rpartition("/")[2])) for k in table["key"]]
    everything = np.arange(len(table))
    places = locate_pictures(
        top / "shards", table["key"].to_list(), table["shard"].to_list(), everything, QUIET
    )
    assert places.read(everything) == expected
    read = dict(p for s in table["shard"].unique() for p in read_pictures(top / "shards" / s))
    assert [read[k] for k in table["key"]] == expected
    # once in the file: the other names are links
    names = set()
    for shard in (top / "shards").glob("*.tar"):
        with tarfile.open(shard) as tar:
            for member in tar.getmembers():
                if member.isreg() and member.name.endswith(".jpg"):
                    names.add(member.name)
                if member.name.endswith(".txt"):
                    caption = tar.extractfile(member).read().decode()
                    assert (member.name[:-4], caption) in {r[:2] for r in rows}
    assert len(names) == 5


@pytest.fixture(scope="module")
def features(shared):
    """Folder of features, and how often a picture was opened for them."""
    top = shared[0]
    opened = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            "pipeline.pairs.features.open_picture",
            lambda content: opened.append(content) or open_picture(content),
        )
        (top / "features").mkdir()
        counts = extract_features(
            top / "pairs.parquet", top / "shards", top / "features", BACKBONE, QUIET
        )
    assert counts == (21, 128, {})
    return top / "features", opened


def test_each_picture_is_encoded_once_and_joined_by_key(shared, features):
    """`12-2.jpg` comes before `12.jpg` among files, and after it among keys."""
    _, rows, *_ = shared
    folder, opened = features
    assert len(opened) == len(set(opened)) == 5
    model = load_backbone(BACKBONE)
    url = {key: url for key, _, url in rows}
    for path in folder.glob("*.parquet"):
        table = read_table(path, features_schema(128))
        numbers = [
            int(url[k].partition(".jpg")[0].rpartition("/")[2]) for k in table["key"].to_pylist()
        ]
        views = (model.test_view(open_picture(jpeg(n))) for n in numbers)
        expected = image_features(model, views).numpy()
        assert np.allclose(from_vectors(table["image"]), expected, atol=2e-3)


def any_score(**changes):
    rules = {
        "min_words": 1,
        "min_characters": 1,
        "max_characters": 100,
        "score": "cosine",
        "select": "threshold",
        "threshold": -1.0,
    }
    return Filter(**FILTER | rules | changes)


def test_no_caption_is_lost_to_another_of_its_picture(shared, features):
    top = shared[0]
    _, counts = filter_pairs(top / "pairs.parquet", features[0], any_score())
    assert counts["kept"] == counts["pairs"] == 21


def test_shards_of_another_order_are_joined_by_key(shared, tmp_path):
    """A picture's place in a file says nothing of its place among keys."""
    top = shared[0]
    pictures = dict(read_pictures(top / "shards" / "00000.tar"))
    with tarfile.open(tmp_path / "00000.tar", "w") as tar:
        for key in sorted(pictures, reverse=True):
            entry = tarfile.TarInfo(f"{key}.jpg")
            entry.size = len(pictures[key])
            tar.addfile(entry, io.BytesIO(pictures[key]))
    rows = [(key, "a picture", "x") for key in pictures]
    captions = write_captions(tmp_path / "captions.parquet", rows)
    keys = sorted(pictures)
    table = pa.table([keys, ["success"] * len(keys), [None] * len(keys)], schema=FETCHED)
    write_table(table, tmp_path / "fetched.parquet", FETCHED)
    write_table(index_pairs(captions, tmp_path, QUIET)[0], tmp_path / "pairs.parquet", PAIRS)
    (tmp_path / "features").mkdir()
    extract_features(tmp_path / "pairs.parquet", tmp_path, tmp_path / "features", BACKBONE, QUIET)
    found = read_table(tmp_path / "features" / "00000.parquet", features_schema(128))
    model = load_backbone(BACKBONE)
    expected = image_features(model, (model.test_view(open_picture(pictures[k])) for k in keys))
    assert np.allclose(from_vectors(found["image"]), expected.numpy(), atol=2e-3)


def pairs_of(tmp_path, rows, image, text, **columns):
    """pairs.parquet and features of (caption, sha256) rows."""
    count = len(rows)
    keys = [f"k{i:02d}" for i in range(count)]
    table = pl.DataFrame(
        {
            "key": keys,
            "caption": [caption for caption, _ in rows],
            "status": ["success"] * count,
            "error": [None] * count,
            "shard": ["00000.tar"] * count,
            "width": [64] * count,
            "height": [64] * count,
            "bytes": [1] * count,
            "sha256": [sha for _, sha in rows],
        }
        | columns
    )
    schema = PAIRS.append(PICTURE) if "picture" in columns else PAIRS
    write_table(table.to_arrow(), tmp_path / "pairs.parquet", schema)
    (tmp_path / "features").mkdir(exist_ok=True)
    schema = features_schema(image.shape[1])
    vectors = [to_vectors(unit(np.asarray(v, float))) for v in (image, text)]
    table = pa.table([pa.array(keys), *vectors], schema=schema)
    write_table(table, tmp_path / "features" / "00000.parquet", schema)
    return tmp_path / "pairs.parquet", tmp_path / "features"


def unit(x):
    return x / np.linalg.norm(x, axis=1, keepdims=True)


def test_of_copies_the_best_caption_stays(tmp_path):
    """Not the first one; and none is lost to a copy that another rule drops."""
    image = np.array([[1, 0, 0]] * 4 + [[0, 1, 0]] * 3 + [[0, 1, 0.01]])
    of_a = [0.1, 1, 0], [1, 0.5, 0], [1, 0.1, 0], [-1, 0, 0]
    of_b = [0, 1, 0.2], [0, 1, 0.1], [0, -1, 0]
    text = np.array([*of_a, *of_b, [0, 1, 0.01]])
    rows = [("useless", "a"), ("fair", "a"), ("right", "a"), ("wrong", "a")]
    rows += [("fair", "b"), ("x" * 200, "b"), ("wrong", "b"), ("a better file", "c")]
    where = pairs_of(tmp_path, rows, image, text)
    kept, counts = filter_pairs(*where, any_score(threshold=0.5))
    assert kept["reason"].to_pylist() == [
        "mismatch",
        "same file",
        "",
        "mismatch",
        "near duplicate",
        "long caption",
        "mismatch",
        "",
    ]
    assert sum(v for k, v in counts.items() if k not in ("pairs", "least_score")) == 8


def test_a_copied_picture_stays_or_goes_with_all_its_captions(tmp_path):
    """k00 and k01 caption one picture, k02 and k03 a copy of it elsewhere."""
    image, text = np.array([[1, 0]] * 4), np.array([[1, 1], [1, 0.9], [1, 2], [1, 0]])
    rows = [("one", "a"), ("two", "a"), ("three", "a"), ("four", "a")]
    where = pairs_of(tmp_path, rows, image, text, picture=["k00", "k00", "k02", "k02"])
    kept, _ = filter_pairs(*where, any_score())
    assert kept["reason"].to_pylist() == ["same file", "same file", "", ""]


def test_the_same_caption_of_the_same_picture_is_a_copy(tmp_path):
    """Of a table with keys of its own, in which a row is repeated."""
    rows = [("one", "a"), ("two", "a"), ("one", "a"), ("one", "b")]
    image, text = np.array([[1, 0]] * 3 + [[0, 1]]), np.array([[1, 1]] * 4)
    where = pairs_of(tmp_path, rows, image, text, picture=["k00", "k00", "k00", "k03"])
    kept, _ = filter_pairs(*where, any_score())
    assert kept["reason"].to_pylist() == ["", "", "same file", ""]


def test_a_picture_of_many_captions_is_one_neighbour():
    """With `csls`, five rows of one picture would be half of a caption's ten nearest pictures."""
    rng = np.random.default_rng(0)
    image, text = (unit(rng.normal(size=(20, 6))).astype(np.float32) for _ in range(2))
    alone = match_scores(image, text, "csls", 4)
    again = np.concatenate([np.arange(20), [3] * 5])
    shared = match_scores(image[again], text[again], "csls", 4, picture=again)
    of_text = lambda x, y: np.sort(y @ x.T, axis=1)[:, -4:].mean(axis=1)
    own = np.einsum("nd,nd->n", image, text)
    expected = 2 * own - of_text(text[again], image) - of_text(image, text)
    assert np.allclose(shared[:20], expected, atol=1e-5)
    assert np.allclose(alone, match_scores(image, text, "csls", 4, np.arange(20)))


def test_a_placeholder_is_compared_with_its_copies_once(monkeypatch):
    """20,000 copies have 400 million pairs; they need not all be in memory, nor be looked at."""
    count, most, looked = 20_000, [], []
    x = np.tile(np.array([[1.0, 0, 0, 0]], np.float32), (count, 1))
    x[::1000] = np.eye(4, dtype=np.float32)[1]
    search = noise.exact_index

    class Counting:
        def __init__(self, index):
            self.index, self.ntotal = index, index.ntotal

        def range_search(self, rows, least):
            found = self.index.range_search(rows, least)
            most.append(len(found[2]))
            looked.append(len(rows))
            return found

    def counting(vectors):
        return Counting(search(vectors))

    monkeypatch.setattr(noise, "exact_index", counting)
    repeated = near_duplicates(x, any_score(neighbours=4))
    assert np.flatnonzero(~repeated).tolist() == [0, 1]
    assert max(most) <= noise.COPY_ROWS * count and sum(looked) <= 2 * noise.COPY_ROWS


def test_pairs_without_a_direction_are_dropped_with_their_reason(shared, tmp_path):
    """A backbone that knows no "zebra": its caption's feature overflows."""
    shutil.copytree(BACKBONE, tmp_path / "backbone")
    model = load_backbone(BACKBONE)
    weights = load_file(BACKBONE / "open_clip_model.safetensors")
    token = int(model.tokenize(["99"])[0, 1])
    name = next(n for n in weights if n.endswith("token_embedding.weight"))
    weights[name] = weights[name].float()
    weights[name][token, ::2], weights[name][token, 1::2] = (
        3e38,
        -3e38,
    )  # finite, but no sum of them
    save_file(weights, tmp_path / "backbone" / "open_clip_model.safetensors")
    top = shared[0]
    captions = {"01": "99", "12": "99"}
    table = read_pairs(top / "pairs.parquet").with_columns(
        caption=pl.col("key").replace_strict(captions, default=pl.col("caption"))
    )
    write_table(table.to_arrow(), tmp_path / "pairs.parquet", PAIRS.append(PICTURE))
    (tmp_path / "features").mkdir()
    counts = extract_features(
        tmp_path / "pairs.parquet",
        top / "shards",
        tmp_path / "features",
        tmp_path / "backbone",
        QUIET,
    )
    assert counts == (19, 128, {"text": 2})
    for select, threshold in (("threshold", -1.0), ("quantile", 0.3), ("quantile", 0.9)):
        settings_ = any_score(select=select, threshold=threshold, score="csls")
        kept, counts = filter_pairs(tmp_path / "pairs.parquet", tmp_path / "features", settings_)
        rows = pl.from_arrow(kept).filter(pl.col("reason") == "unusable features")
        assert rows["key"].to_list() == ["01", "12"] and rows["score"].null_count() == 2
        assert counts["unusable_features"] == 2 and counts["kept"] >= 1


def test_too_few_scores_for_a_distribution(tmp_path):
    where = pairs_of(tmp_path, [("one", "a")], np.array([[1, 0]]), np.array([[1, 0]]))
    for select in ("mixture", "quantile"):
        with pytest.raises(InputError, match="there are only 1; select by 'threshold'"):
            filter_pairs(*where, any_score(select=select, threshold=0.5))


@pytest.mark.parametrize(
    ("rules", "words"),
    [
        ({"min_words": 3}, r"none of 2 pairs \(2 short caption\); mend the captions"),
        ({"threshold": 0.9}, r"\(2 mismatch\); lower 'filter.threshold'.* from 0.000 to 0.707"),
    ],
)
def test_nothing_kept_says_which_rule(tmp_path, rules, words):
    rows, image = [("one", "a"), ("two", "b")], np.array([[1, 0], [1, 1]])
    with pytest.raises(InputError, match=words):
        filter_pairs(*pairs_of(tmp_path, rows, image, [[0, 1], [1, 0]]), any_score(**rules))


def test_pictures_smaller_than_what_is_read_are_counted(shared):
    """One of several captions is one picture."""
    assert smaller_pictures(shared[0] / "pairs.parquet", 41) == (5, 5)
    assert smaller_pictures(shared[0] / "pairs.parquet", 40) == (0, 5)


def test_rows_that_are_lost_are_missed(shared, tmp_path):
    """In what became of the links, or in the pictures: a stage's counts add up, or it fails."""
    top = shared[0]
    shutil.copytree(top / "shards", tmp_path / "shards")
    whole = read_table(tmp_path / "shards" / "fetched.parquet", FETCHED)
    write_table(whole.slice(2), tmp_path / "shards" / "fetched.parquet", FETCHED)
    with pytest.raises(InputError, match=r"no fetch result for key '00'|'01' \(2 such keys\)"):
        index_pairs(top / "captions.parquet", tmp_path / "shards", QUIET)
    more = pa.concat_tables([whole, pa.table([["zz"], ["success"], [None]], schema=FETCHED)])
    write_table(more, tmp_path / "shards" / "fetched.parquet", FETCHED)
    with pytest.raises(InputError, match="an unknown fetch result for key 'zz'"):
        index_pairs(top / "captions.parquet", tmp_path / "shards", QUIET)
    write_table(whole, tmp_path / "shards" / "fetched.parquet", FETCHED)
    (tmp_path / "shards" / "00001.tar").unlink()
    with pytest.raises(InputError, match="no picture for key"):
        index_pairs(top / "captions.parquet", tmp_path / "shards", QUIET)


def test_nothing_fetched_is_said_as_such(shared, tmp_path):
    table = read_pairs(shared[0] / "pairs.parquet").with_columns(status=pl.lit("broken"))
    write_table(table.to_arrow(), tmp_path / "pairs.parquet", PAIRS.append(PICTURE))
    with pytest.raises(InputError, match="none of its 21 pairs has a whole picture"):
        extract_features(tmp_path / "pairs.parquet", tmp_path, tmp_path, BACKBONE, QUIET)


def test_a_page_shows_a_picture_once(shared):
    top = shared[0]
    pairs = read_pairs(top / "pairs.parquet", ["key", "shard"])
    keys = ["01", "02", "03", "20", "21"]
    domains = pl.DataFrame({"key": keys, "topic": [0] * 5, "domain": [0] * 5})
    kept = pl.DataFrame({"key": keys, "caption": keys, "strength": [1.0] * 5})
    labels = pl.DataFrame({"topic": [0], "name": ["a"], "size": [5], "words": [["a"]]})
    settings_ = Gallery(topics=1, pictures_per_domain=4, map_points=10)
    (card,) = topic_cards(labels, domains, kept, pairs, top / "shards", settings_, QUIET)
    (domain,) = card["domains"]
    assert domain["pictures"] == [as_data_url(jpeg(0)), as_data_url(jpeg(2))]
    assert domain["size"] == 2
