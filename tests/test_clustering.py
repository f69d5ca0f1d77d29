"""Topic words against values computed by hand, neighbour graphs, outliers, domains."""

import math
import sys
from types import SimpleNamespace

import hdbscan
import numpy as np
import pytest
import umap
from scipy import sparse
from sklearn.decomposition import PCA
from sklearn.metrics import adjusted_rand_score, silhouette_score
from sklearn.metrics.pairwise import cosine_distances
from sklearn.neighbors import NearestNeighbors
from tqdm import tqdm

from pipeline.clustering.domains import find_domains, separation, split_topic
from pipeline.clustering.labels import bertopic_tfidf, cluster_tfidf, coherence, count_words
from pipeline.clustering.labels import describe_topics as describe_counted
from pipeline.clustering.layout import reduce
from pipeline.clustering.neighbours import _itself_first, neighbour_graph
from pipeline.clustering.params import Domains, Label, Topics
from pipeline.clustering.topics import (
    by_density,
    centres_of,
    find_topics,
    group,
    join_outliers,
    lay_out,
    of_sample,
    persistent_size,
    stability,
)
from pipeline.errors import InputError
from pipeline.neighbours import probes, search_index, share_found


def label(**changes):
    return Label(
        **(
            dict(formula="eq3", words=5, longest_phrase=1, min_captions=1, stop_words=[], edits="")
            | changes
        )
    )


def describe_topics(captions, topic, settings):
    return describe_counted(count_words(captions, settings), topic, settings)


def test_eq_3_by_hand():
    """Four clusters; words: in one, in two, in three, in all."""
    counts = sparse.csr_matrix(np.array([[3, 1, 2, 4], [0, 2, 1, 1], [0, 0, 5, 2], [0, 0, 0, 7]]))
    totals = np.array([10, 5, 8, 9])
    scores = cluster_tfidf(counts, totals).toarray()
    assert scores[0, 0] == pytest.approx(3 / 10 * math.log(4 / 2))
    assert scores[0, 1] == pytest.approx(1 / 10 * math.log(4 / 3))
    assert scores[1, 1] == pytest.approx(2 / 5 * math.log(4 / 3))
    assert scores[2, 2] == pytest.approx(0.0)  # in all but one: log(4 / 4)
    assert scores[3, 3] == pytest.approx(7 / 9 * math.log(4 / 5))  # in all: negative
    assert scores[1, 0] == 0.0


def test_eq_3_on_captions():
    """N_l counts every word of the cluster, stop words too; L_w counts clusters, not captions."""
    captions = [
        "a lion and a lion cub",
        "the lion sleeps",
        "a red bus",
        "red bus stop",
        "a pie",
        "the pie",
    ]
    described = describe_topics(captions, np.array([0, 0, 1, 1, 2, 2]), label())
    # words of two letters at least: "lion and lion cub", "the lion sleeps" → 7; lion occurs 3
    # times, in 1 of 3 clusters
    assert described[0]["name"] == "lion"
    assert described[0]["scores"][0] == pytest.approx(3 / 7 * math.log(3 / 2))
    assert {d["name"] for d in described} == {"lion", "red", "pie"} or {
        d["name"] for d in described
    } == {"lion", "bus", "pie"}


def test_bertopic_s_formula_by_hand():
    counts = np.array([[3, 1, 0], [0, 2, 5]])
    scores = bertopic_tfidf(sparse.csr_matrix(counts)).toarray()
    average = 5  # (4 + 7) / 2 = 5.5, cut
    assert scores[0] == pytest.approx(
        [3 / 4 * math.log(1 + average / 3), 1 / 4 * math.log(1 + average / 3), 0]
    )
    assert scores[1] == pytest.approx(
        [0, 2 / 7 * math.log(1 + average / 3), 5 / 7 * math.log(1 + average / 5)]
    )


def test_a_formula_changes_the_scores_not_the_topics():
    captions = ["a red lion"] * 4 + ["a red bus"] * 4 + ["a red pie"] * 4
    eq3, bertopic = (
        describe_topics(captions, np.repeat(np.arange(3), 4), label(formula=f))
        for f in ("eq3", "bertopic")
    )
    assert [d["name"] for d in eq3] == [d["name"] for d in bertopic] == ["lion", "bus", "pie"]
    # "red" is in all clusters: Eq 3 scores it below zero and never shows it, BERTopic scores it low
    assert [d["words"] for d in eq3] == [["lion"], ["bus"], ["pie"]]
    assert bertopic[0]["words"] == ["lion", "red"] and bertopic[0]["scores"] == pytest.approx(
        [math.log(1 + 8 / 4) / 2, math.log(1 + 8 / 12) / 2]
    )


def test_coherence_by_hand():
    """Ten captions: lion with cub in 3 of 4, never with bus."""
    counted = count_words(["lion cub"] * 3 + ["lion"] + ["red bus"] * 6, label())
    npmi = math.log(0.3 / (0.4 * 0.3)) / -math.log(0.3)
    assert coherence(counted, [["lion", "cub"]]) == pytest.approx(npmi)
    assert coherence(counted, [["lion", "bus"]]) == -1
    # a caption holds a word or does not
    twice = count_words(["lion lion cub"] * 3 + ["lion"] + ["red bus"] * 6, label())
    assert coherence(twice, [["lion", "cub"]]) == pytest.approx(npmi)
    assert coherence(counted, [["red", "bus"]]) == pytest.approx(1)
    # one word has no pair
    assert coherence(counted, [["lion", "cub"], ["lion", "bus"], ["lion"]]) == pytest.approx(
        (npmi - 1) / 2
    )


def test_names_are_unique_and_go_to_the_stronger_topic():
    captions = (
        ["bear bear bear"] * 3
        + ["bear honey jar"] * 3
        + ["car wheel"] * 3
        + ["tea cup"] * 3
        + ["key ring"] * 3
    )
    described = describe_topics(captions, np.repeat(np.arange(5), 3), label())
    names = [d["name"] for d in described]
    assert len(set(names)) == 5
    assert names[0] == "bear" and names[1] in ("honey", "jar")


def test_a_phrase_beats_its_parts():
    captions = ["a polar bear"] * 4 + ["a red bus"] * 4 + ["one apple pie"] * 4
    names = [
        d["name"]
        for d in describe_topics(captions, np.repeat(np.arange(3), 4), label(longest_phrase=2))
    ]
    assert names[0] == "polar bear"


def test_rare_and_stop_words_name_nothing():
    captions = ["stock lion"] * 4 + ["lion xyzzy"] + ["stock bus"] * 5 + ["stock pie"] * 5
    described = describe_topics(
        captions, np.repeat(np.arange(3), 5), label(min_captions=3, stop_words=["stock"])
    )
    assert not {"stock", "xyzzy"} & {w for d in described for w in d["words"]}


def unit(x):
    return (x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float32)


def test_neighbour_graph_is_exact_and_starts_with_the_row_itself():
    rng = np.random.default_rng(0)
    x = unit(rng.normal(size=(60, 8)))
    x[10:14] = x[9]  # equal captions
    (found, distance), recall = neighbour_graph(x, 6, exact_up_to=60, recall=0.5, seed=0)
    assert recall == 1.0
    assert (found[:, 0] == np.arange(60)).all()
    assert all(len(set(row)) == 6 for row in found)
    brute = np.sort(1 - x @ x.T, axis=1)[:, :6]
    assert np.allclose(np.sort(distance, axis=1), np.clip(brute, 0, 2), atol=1e-6)


def groups(count, each, d=16, spread=0.25, seed=0):
    """(count · each, d) rows around `count` random directions, shuffled, and the group of each
    row.
    """
    rng = np.random.default_rng(seed)
    centres = unit(rng.normal(size=(count, d)))
    group = rng.permutation(np.repeat(np.arange(count), each))
    return unit(centres[group] + spread * rng.normal(size=(len(group), d)) / d**0.5), group


def test_cells_reach_the_recall_that_was_asked_for_and_no_more_than_needed():
    x, _ = groups(200, 20, spread=1.0)
    true = np.argsort(-(x @ x.T), axis=1)[:, :10]
    looked = []
    for recall in (0.5, 0.9, 0.99):
        index, reached = search_index(x, 10, exact_up_to=1000, recall=recall, seed=1)
        found = index.search(x, 10)[1]
        measured = np.mean([len(set(a) & set(b)) / 10 for a, b in zip(true, found)])
        assert reached >= recall and measured == pytest.approx(reached, abs=0.05)
        looked.append(index.nprobe)
    assert looked[0] < looked[2] < 253  # 4 √4000 cells


@pytest.mark.slow
def test_approximate_search_repeats_exactly():
    x, _ = groups(100, 20)
    one, other = (neighbour_graph(x, 8, exact_up_to=10, recall=0.9, seed=3)[0] for _ in range(2))
    assert all(np.array_equal(a, b) for a, b in zip(one, other))
    one, other = (
        search_index(x, 8, exact_up_to=10, recall=0.9, seed=3)[0].search(x, 8)[1] for _ in range(2)
    )
    assert np.array_equal(one, other)


@pytest.mark.whole
def test_approximate_graph_says_what_it_finds():
    x, _ = groups(200, 20, spread=1.0)
    true = np.argsort(-(x @ x.T), axis=1)[:, :10]
    (found, distance), reached = neighbour_graph(x, 10, exact_up_to=1000, recall=0.8, seed=1)
    assert (found[:, 0] == np.arange(len(x))).all()
    assert reached < 1 and np.mean(
        [len(set(a) & set(b)) / 10 for a, b in zip(true, found)]
    ) == pytest.approx(reached, abs=0.03)
    assert np.allclose(distance, 1 - np.einsum("nd,nkd->nk", x, x[found]), atol=1e-5)


@pytest.mark.whole
def test_a_graph_that_falls_short_is_searched_for_wider(monkeypatch, capsys):
    """Nearest-neighbour descent misses some of these."""
    x, _ = groups(100, 15, spread=1.0)
    monkeypatch.setattr("pipeline.clustering.neighbours.WIDENED", (1,))
    (_, narrow), reached = neighbour_graph(x, 10, exact_up_to=1000, recall=0.1, seed=1)
    assert 0.9 < reached < 1 and not capsys.readouterr().err
    neighbour_graph(x, 10, exact_up_to=1000, recall=1.0, seed=1)
    assert f"has a recall of {reached:.3f} at best" in capsys.readouterr().err
    monkeypatch.setattr("pipeline.clustering.neighbours.SHORT", 0.0)
    with pytest.raises(
        InputError,
        match=(
            f"a recall of {reached:.3f} at best, but 'topics.recall' is 1.0; raise "
            "'topics.exact_up_to'"
        ),
    ):
        neighbour_graph(x, 10, exact_up_to=1000, recall=1.0, seed=1)
    monkeypatch.undo()
    (found, distance), wider = neighbour_graph(x, 10, exact_up_to=1000, recall=1.0, seed=1)
    assert found.shape == distance.shape == narrow.shape and wider > reached
    assert (found[:, 0] == np.arange(1500)).all() and (np.diff(distance, axis=1) >= 0).all()


def with_repeats(rng):
    x, _ = groups(100, 15, spread=1.0)
    return np.concatenate([x, np.repeat(x[:20], 30, axis=0)])[rng.permutation(2100)]


@pytest.mark.whole
def test_a_graph_of_vectors_that_repeat_is_found_as_well():
    """Of vectors that repeat, a search may give any: it is no fault not to give the same ones."""
    x = with_repeats(np.random.default_rng(5))
    _, recall = neighbour_graph(x, 10, exact_up_to=1000, recall=0.9, seed=1)
    assert recall > 0.97


def test_recall_counts_ties_by_their_distance():
    rng = np.random.default_rng(5)
    x = with_repeats(rng)
    rows, least = probes(x, 10, seed=0)
    similarity = x[rows] @ x.T
    shuffled = rng.permutation(2100)  # ties in another order than faiss's
    true = shuffled[np.argsort(-similarity[:, shuffled], axis=1)[:, :10]]
    assert share_found(x, rows, true, least) == 1.0
    half = true.copy()
    half[:, ::2] = -1
    assert share_found(x, rows, half, least) == 0.5
    far = np.argsort(similarity, axis=1)[:, :10]
    assert share_found(x, rows, far, least) == 0.0


TOPICS = dict(
    neighbours=8,
    exact_up_to=10**6,
    recall=0.95,
    fit_on=10**6,
    map_on=10**6,
    components=3,
    min_dist=0.0,
    min_cluster_size=15,
    min_samples=3,
    selection="eom",
    repeats=1,
    outliers="nearest",
    nearest_similarity=0.5,
)


def silent(items, label, total=None):
    return tqdm(items, total=total, disable=True)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        pytest.param({"exact_up_to": 100}, marks=pytest.mark.whole),
        {"fit_on": 400},
        pytest.param({"map_on": 300}, marks=pytest.mark.whole),
    ],
)
def test_groups_become_topics(changes):
    """Also with an approximate graph, and when all but a sample follow their nearest caption."""
    x, group = groups(12, 60)
    settings = Topics(**TOPICS | changes)
    found = find_topics(x, settings, 1, silent)
    counts, fitted = found.counts, changes.get("fit_on", 720)
    assert adjusted_rand_score(group, found.topic) > 0.95
    assert len(found.strength) == len(found.topic) == len(x) == counts["captions"]
    reduced, sample = found.grouped.reduced, x[found.fitted]
    assert len(found.fitted) == len(reduced) == len(found.grouped.topic) == fitted
    shown, place = lay_out(sample, reduced, settings, 1)
    assert len(shown) == changes.get("map_on", fitted) and place.shape == (len(shown), 2)
    # the groups lie apart on the map too
    near = np.linalg.norm(place[:, None] - place[None], axis=2)
    np.fill_diagonal(near, np.inf)
    of = group[found.fitted][shown]
    assert (of[near.argmin(axis=1)] == of).mean() > 0.95
    assert counts["fitted"] == fitted and counts["topics"] == 12 and counts["coverage"] > 0.98
    assert counts["recall"] >= TOPICS["recall"] and 0.5 < counts["validity"] <= 1
    smaller, weight = of_sample(settings, fitted / len(x)), np.ones(fitted, int)
    assert 0.95 < stability(sample, weight, found.grouped.topic, smaller, 1, silent) <= 1


def test_stability_tells_groups_from_noise():
    noise = unit(np.random.default_rng(0).normal(size=(720, 32)))
    settings = Topics(**TOPICS | {"min_cluster_size": 8, "selection": "leaf", "outliers": "drop"})
    found, weight = find_topics(noise, settings, 1, silent).grouped.topic, np.ones(720, int)
    assert stability(noise, weight, found, settings, 0, silent) == 1  # its one other seed is 1
    assert stability(noise, weight, found, settings, 1, silent) < 0.5


def test_the_least_size_of_a_topic_counts_the_captions_outside_the_sample_too():
    x, _ = groups(12, 60)
    topic = find_topics(
        x, Topics(**TOPICS | {"fit_on": 240, "min_cluster_size": 40}), 1, silent
    ).topic
    # 20 of each group are in the sample: as they stand, 40 would be too many
    assert topic.max() + 1 == 12


def test_no_topics_and_too_few_captions():
    x, _ = groups(1, 40)
    with pytest.raises(
        InputError, match="0 topics came out of 40 captions; lower 'topics.min_cluster_size'"
    ):
        find_topics(x, Topics(**TOPICS | {"min_cluster_size": 30}), 1, silent)
    with pytest.raises(InputError, match="only 8 captions are left to cluster"):
        find_topics(x[:8], Topics(**TOPICS), 1, silent)


def test_outliers_join_the_nearest_topic_only_if_similar():
    x = unit(np.array([[1, 0.1], [1, -0.1], [0.1, 1], [-0.1, 1], [0.9, 0.2], [-1, -1]]))
    joined = join_outliers(x, np.array([0, 0, 1, 1, -1, -1]), 0.6)
    assert joined.tolist() == [0, 0, 1, 1, 0, -1]


def test_an_outlier_joins_from_the_least_similarity_on():
    """Centres are at 0 and 90 degrees; an outlier's similarities to them are its cosine and sine.
    What is opposite is not near.
    """
    centres = [[1, 0], [1, 0], [0, 1]]
    outliers = [[0.5, -(0.75**0.5)], [-0.96, 0.28], [-0.6, -0.8]]
    x, topic = np.array(centres + outliers, np.float32), np.array([0, 0, 1, -1, -1, -1])
    for least, wanted in (
        (0.5, [0, -1, -1]),
        (0.501, [-1, -1, -1]),
        (0.28, [0, 1, -1]),
        (0.281, [0, -1, -1]),
        (-0.59, [0, 1, -1]),
        (-0.61, [0, 1, 0]),
    ):
        assert join_outliers(x, topic, least).tolist() == [0, 0, 1, *wanted], least


def test_a_topic_s_centre_is_the_mean_of_its_captions():
    """A row that stands for nine captions draws it nine times as strongly."""
    x = np.array([[1, 0], [0, 1], [0.6, 0.8], [1, 0]], np.float32)
    topic, weight = np.array([0, 0, -1, 1]), np.array([1, 9, 1, 1])
    assert centres_of(x, topic, weight)[0] == pytest.approx(np.array([1, 9]) / np.sqrt(82))
    similar = (0.6 + 0.8 * 9) / np.sqrt(82)  # unweighted, 0.99 at both
    for least, joined in ((similar - 1e-4, 0), (similar + 1e-4, -1)):
        assert join_outliers(x, topic, least, weight)[2] == joined


@pytest.fixture(scope="module")
def crowd():
    """Groups, captions that are like nothing, and some of all that stand several times."""
    rng = np.random.default_rng(8)
    x, _ = groups(6, 40)
    x = np.concatenate([x, unit(rng.normal(size=(300, x.shape[1])))])
    return x[np.repeat(np.arange(len(x)), rng.choice([1, 1, 1, 5], len(x)))]


def test_every_caption_counts_where_outliers_join(crowd):
    """The centres are of all captions as they stand, equal ones too; counts are of captions."""
    changes = {"outliers": "drop", "min_cluster_size": 25, "selection": "leaf"}
    apart = Topics(**TOPICS | changes)
    found = find_topics(crowd, apart, 1, silent)
    topic, outside = found.topic, found.topic < 0
    names = range(topic.max() + 1)
    centres = unit(np.stack([crowd[topic == t].mean(axis=0) for t in names]))
    similar = crowd[outside] @ centres.T
    least = float(np.median(similar.max(axis=1))) + 1e-4
    wanted = topic.copy()
    wanted[outside] = np.where(similar.max(axis=1) >= least, similar.argmax(axis=1), -1)
    together = apart.model_copy(update={"outliers": "nearest", "nearest_similarity": least})
    joined = find_topics(crowd, together, 1, silent)
    assert (joined.topic == wanted).all() and 10 < (wanted < 0).sum() < outside.sum() - 10
    for counts, after in ((found.counts, topic), (joined.counts, wanted)):
        assert (
            counts["captions"] == len(crowd) > counts["distinct"] == len(np.unique(crowd, axis=0))
        )
        assert counts["outliers_before"] == outside.sum()
        assert counts["outliers"] == (after < 0).sum()
        assert counts["coverage"] == pytest.approx((after >= 0).mean(), abs=1e-4)
    # one row a caption, the centres would be others
    alone = np.unique(crowd, axis=0, return_index=True)[1]
    other = unit(np.stack([crowd[alone][topic[alone] == t].mean(axis=0) for t in names]))
    assert ((crowd[outside] @ other.T).max(axis=1) >= least).sum() != (wanted[outside] >= 0).sum()


def test_the_others_follow_their_nearest_of_the_sample(crowd):
    """With its topic and its strength."""
    asked = Topics(**TOPICS | {"outliers": "drop", "fit_on": 150, "min_cluster_size": 40})
    found = find_topics(crowd, asked, 1, silent)
    assert len(found.fitted) == 150 == len(set(found.fitted))
    nearest = (crowd @ crowd[found.fitted].T).argmax(axis=1)
    assert (found.topic == found.grouped.topic[nearest]).all()
    assert (found.strength == found.grouped.strength[nearest]).all()
    assert len(np.unique(found.strength)) > 10
    other = find_topics(crowd, asked, 2, silent)
    assert set(found.fitted) != set(other.fitted)  # another sample with another seed


@pytest.mark.parametrize("selection", ["leaf", "eom"])
def test_topics_are_hdbscan_s_among_umap_s_places(crowd, selection):
    """Two kinds of two groups each: leaf finds four, eom two; each point as one, and weighted."""
    rng = np.random.default_rng(0)
    centres = np.array([[0, 0], [1.8, 0], [30, 0], [31.8, 0]])
    places = np.repeat(centres, 40, axis=0) + 0.5 * rng.normal(size=(160, 2))
    asked = Topics(**TOPICS | {"selection": selection, "min_cluster_size": 15, "min_samples": 3})
    found, strength, validity = by_density(places, np.ones(160, int), asked)
    wanted = hdbscan.HDBSCAN(15, 3, cluster_selection_method=selection, gen_min_span_tree=True).fit(
        places
    )
    assert found.max() + 1 == {"leaf": 4, "eom": 2}[selection]
    assert (found == wanted.labels_).all() and (strength == wanted.probabilities_).all()
    assert validity == pytest.approx(wanted.relative_validity_)
    # a topic of 100 captions is there only where points are counted by their captions
    large = asked.model_copy(update={"min_cluster_size": 100})
    weight = np.where(np.arange(160) % 80 < 40, 9, 1)
    assert by_density(places, np.ones(160, int), large)[0].max() == -1
    assert by_density(places, weight, large)[0].max() >= 1
    # the places are UMAP's on the graph of neighbours, as params.yaml says
    x = np.unique(crowd, axis=0)
    settings = Topics(**TOPICS | {"min_dist": 0.05})
    graph, _ = neighbour_graph(x, settings.neighbours, 10_000, 1.0, 3)
    made = group(x, np.ones(len(x), int), graph, settings, 3, silent)
    assert np.array_equal(made.reduced, reduce(x, graph, settings.components, 0.05, 3))


def test_stability_is_the_rand_index_over_captions(crowd):
    x, weight = np.unique(crowd, axis=0, return_counts=True)
    noise = unit(np.random.default_rng(3).normal(size=x.shape))
    settings = Topics(
        **TOPICS | {"min_cluster_size": 20, "selection": "leaf", "outliers": "drop", "repeats": 2}
    )
    graph, _ = neighbour_graph(noise, settings.neighbours, 10_000, 1.0, 1)
    one, *others = (group(noise, weight, graph, settings, s, silent).topic for s in (1, 2, 3))
    each = [adjusted_rand_score(np.repeat(one, weight), np.repeat(o, weight)) for o in others]
    found = stability(noise, weight, one, settings, 1, silent)
    assert found == pytest.approx(np.mean(each), abs=1e-4) and found < 0.9
    assert found != pytest.approx(np.mean([adjusted_rand_score(one, o) for o in others]), abs=1e-3)


@pytest.mark.filterwarnings("ignore::UserWarning")  # UMAP's, of a seed and a graph that is given
def test_the_map_is_umap_s_from_the_principal_components(crowd):
    x = np.unique(crowd, axis=0)
    reduced = np.random.default_rng(2).normal(size=(len(x), 5)) * [9, 5, 1, 1, 1]
    shown, found = lay_out(x, reduced, Topics(**TOPICS), 4)
    graph, _ = neighbour_graph(x, TOPICS["neighbours"], 10_000, 1.0, 4)
    start = PCA(2, random_state=4).fit_transform(reduced)
    wanted = umap.UMAP(
        n_neighbors=TOPICS["neighbours"],
        min_dist=0.5,
        metric="cosine",
        init=10 * start / np.abs(start).max(),
        n_epochs=100,
        random_state=4,
        precomputed_knn=(*graph, None),
    ).fit_transform(x)
    assert (shown == np.arange(len(x))).all() and np.array_equal(found, wanted)


def test_plscan_s_size_is_the_one_that_topics_outlast(monkeypatch):
    """Of PLSCAN's answer, without its compiler; the slow tier asks PLSCAN itself."""

    class Plscan:
        def __init__(self, **settings):
            assert settings == {"min_samples": 3, "reproducible": True}

        def fit(self, places):
            return self

        base_min_cluster_size = 7
        layer_persistence_scores_ = np.array([0.5, 2.0, 1.0])
        total_persistence_ = np.array([0.1, 0.5, 1.0, 2.0, 0.7])
        min_cluster_sizes_ = np.array([2.0, 5.0, 9.0, 14.0, 30.0])

    monkeypatch.setitem(sys.modules, "fast_hdbscan", SimpleNamespace(PLSCAN=Plscan))
    assert persistent_size(np.zeros((5, 2)), 3) == 15
    monkeypatch.setattr(Plscan, "layer_persistence_scores_", np.array([2.0]))
    assert persistent_size(np.zeros((5, 2)), 3) == 7


def test_a_row_that_is_not_found_takes_the_last_one_s_place():
    found = np.array([[2, 1, 3], [1, 0, 2], [0, 1, 2], [3, -1, -1]])
    distance = np.array([[0.1, 0.2, 0.3], [0.0, 0.1, 0.4], [0.0, 0.0, 0.0], [0.0, 9.0, 9.0]])
    rows, far = _itself_first(found.copy(), distance.copy())
    assert rows.tolist() == [[0, 1, 2], [1, 0, 2], [2, 1, 0], [3, -1, -1]]
    assert far == pytest.approx(
        np.array([[0, 0.2, 0.1], [0, 0.1, 0.4], [0, 0, 0], [0, np.inf, np.inf]])
    )


def test_the_graph_s_distances_are_scikit_learn_s():
    x = unit(np.random.default_rng(1).normal(size=(50, 3)))  # opposite ones are 2 apart
    (rows, far), recall = neighbour_graph(x, 50, 1000, 1.0, 0)
    wanted = np.sort(cosine_distances(x), axis=1)
    assert far == pytest.approx(wanted, abs=1e-5) and far.max() > 1.5 and recall == 1
    assert np.take_along_axis(cosine_distances(x), rows, axis=1) == pytest.approx(far, abs=1e-5)


def test_what_is_in_all_topics_but_one_names_none():
    """Eq 3 gives log(4 / (3 + 1)) = 0."""
    captions = ["red lion", "red bus", "red pie", "cup"] * 3
    described = describe_topics(captions, np.arange(12) % 4, label())
    assert [d["words"] for d in described] == [["lion"], ["bus"], ["pie"], ["cup"]]


def test_distances_of_an_approximate_graph_are_cosines(monkeypatch):
    """With scikit-learn's search in the place of the descent, which compiles for a minute; the
    whole tier runs that one.
    """

    class Exact:
        def __init__(self, vectors, metric, n_neighbors, **rest):
            search = NearestNeighbors(n_neighbors=n_neighbors, metric=metric).fit(vectors)
            self.neighbor_graph = search.kneighbors(vectors)[::-1]

    monkeypatch.setattr("pipeline.clustering.neighbours.NNDescent", Exact)
    x = unit(np.random.default_rng(1).normal(size=(80, 6)))
    (rows, far), recall = neighbour_graph(x, 5, 10, 0.9, 0)
    (wanted, exact), _ = neighbour_graph(x, 5, 80, 0.9, 0)
    assert recall == 1 and (rows == wanted).all() and far == pytest.approx(exact, abs=1e-5)


def domains(**changes):
    return Domains(**(dict(choose="fixed", per_topic=4, min_size=3, iterations=20) | changes))


def test_domains_find_separate_groups_and_number_them_by_size():
    rng = np.random.default_rng(0)
    centres = np.eye(3)[:, [0, 1, 2]]
    x = unit(
        np.concatenate([c + 0.05 * rng.normal(size=(n, 3)) for c, n in zip(centres, (12, 30, 20))])
    )
    domain = split_topic(x, domains(per_topic=3, min_size=3, iterations=20), seed=1)
    assert [len(set(domain[a:b])) for a, b in ((0, 12), (12, 42), (42, 62))] == [1, 1, 1]
    assert np.bincount(domain).tolist() == [30, 20, 12]
    assert separation(x, domain) > 0.9 > 0.1 > separation(x, np.zeros(62, int))


def test_domains_are_spherical_k_means_at_rest():
    """Every picture is in the domain whose mean, normalised, is most similar; another seed may
    find others.
    """
    x = np.random.default_rng(7).normal(size=(300, 6))
    x[:, 0] += 1.5
    x = unit(x)
    found = [split_topic(x, domains(iterations=200), seed) for seed in (1, 2, 3)]
    for domain in found:
        means = unit(np.stack([x[domain == d].mean(axis=0) for d in range(4)]))
        assert ((x @ means.T).argmax(axis=1) == domain).all()
    assert any((found[0] != other).any() for other in found[1:])


def test_the_counts_of_domains_by_hand():
    """Of 9, 6 and 3 pictures, 5 at least to a domain: one domain each, and one is too small."""
    x = unit(np.random.default_rng(6).normal(size=(38, 5)))
    topic = np.repeat([0, 1, 2, 3], [20, 9, 6, 3])
    domain, counts = find_domains(x, topic, domains(per_topic=2, min_size=5), 1, silent)
    shares = []
    for rows in (x[topic == t] for t in range(4)):
        of = domain[topic == len(shares)]
        parts = [rows[of == d] for d in np.unique(of)]
        between = sum(len(p) * ((p.mean(0) - rows.mean(0)) ** 2).sum() for p in parts)
        shares.append(between / ((rows - rows.mean(0)) ** 2).sum())
    assert counts["between_share"] == pytest.approx(np.mean(shares), abs=1e-4)
    assert counts["domains"] == len({*zip(topic.tolist(), domain.tolist(), strict=True)}) == 5
    assert counts["small_domains"] == 1
    even = unit(np.repeat(np.eye(2), 5, axis=0) + 0.01)
    counts = find_domains(even, np.zeros(10, int), domains(per_topic=2, min_size=5), 1, silent)[1]
    assert counts["domains"] == 2 and counts["small_domains"] == 0  # five each are enough


@pytest.mark.parametrize("count", [1, 2, 5, 7])
def test_small_topics_get_fewer_domains(count):
    x = unit(np.random.default_rng(count).normal(size=(count, 4)))
    domain = split_topic(x, domains(per_topic=4, min_size=3, iterations=5), seed=1)
    assert len(domain) == count and domain.max() + 1 <= max(1, count // 3)
    assert set(domain) == set(range(domain.max() + 1))


@pytest.mark.parametrize("choose", ["fixed", "silhouette"])
def test_threads_change_no_domain(monkeypatch, choose):
    rng = np.random.default_rng(4)
    x, topic = unit(rng.normal(size=(900, 12))).astype(np.float16), rng.integers(-1, 9, 900)
    found = []
    for threads in ("1", "3"):
        monkeypatch.setenv("OMP_NUM_THREADS", threads)
        found.append(find_domains(x, topic, domains(choose=choose), 1, silent))
    assert (found[0][0] == found[1][0]).all() and found[0][1] == found[1][1]
    alone = split_topic(x[topic == 5].astype(np.float32), domains(choose=choose), 1)
    assert (found[0][0][topic == 5] == alone).all()


def test_domains_repeat_exactly():
    x = unit(np.random.default_rng(5).normal(size=(80, 16)))
    settings = domains(per_topic=4, min_size=3, iterations=20)
    assert (split_topic(x, settings, 7) == split_topic(x, settings, 7)).all()


@pytest.mark.parametrize("true", [2, 3, 4])
def test_silhouette_finds_the_number_of_separate_groups(true):
    x, group = groups(true, 40)
    domain = split_topic(x, domains(choose="silhouette", per_topic=6), seed=1)
    assert adjusted_rand_score(group, domain) == 1
    assert (domain == split_topic(x, domains(choose="silhouette", per_topic=6), seed=1)).all()
    assert split_topic(x, domains(per_topic=6), seed=1).max() == 5


def test_silhouette_is_scikit_learn_s_and_the_best_of_all():
    x = unit(np.random.default_rng(2).normal(size=(90, 6)))
    by_count = [split_topic(x, domains(per_topic=n), seed=1) for n in range(2, 7)]
    scores = [silhouette_score(x, d, metric="cosine") for d in by_count]
    assert (
        split_topic(x, domains(choose="silhouette", per_topic=6), seed=1)
        == by_count[int(np.argmax(scores))]
    ).all()


def test_silhouette_of_a_large_topic_is_measured_on_a_sample(monkeypatch):
    x, group = groups(2, 60)
    measured = []
    monkeypatch.setattr("pipeline.clustering.domains.JUDGED", 50)
    monkeypatch.setattr(
        "pipeline.clustering.domains.silhouette_score",
        lambda d, labels, **rest: measured.append(d.shape) or silhouette_score(d, labels, **rest),
    )
    assert adjusted_rand_score(group, split_topic(x, domains(choose="silhouette"), seed=1)) == 1
    assert set(measured) == {(50, 50)}


@pytest.mark.parametrize("choose", ["fixed", "silhouette"])
def test_equal_pictures_are_one_domain(choose):
    x = np.repeat(unit(np.ones((1, 8))), 30, axis=0)
    assert split_topic(x, domains(choose=choose), seed=1).tolist() == [0] * 30
    x[:10] = unit(np.eye(8)[:1])  # two different ones cannot fill four domains
    assert np.bincount(split_topic(x, domains(choose=choose), seed=1)).tolist() == [20, 10]


@pytest.mark.parametrize("choose", ["fixed", "silhouette"])
def test_topics_of_every_size_and_pairs_outside(choose):
    """One topic or several, some with fewer pictures than U; a pair outside all topics has no
    domain.
    """
    x = unit(np.random.default_rng(3).normal(size=(44, 8))).astype(np.float16)
    for sizes in ([40], [30, 8, 2]):
        topic = np.array(
            [-1] * (44 - sum(sizes)) + [t for t, n in enumerate(sizes) for _ in range(n)]
        )
        domain, counts = find_domains(x, topic, domains(choose=choose), 1, silent)
        assert (domain[topic < 0] == -1).all() and (domain[topic >= 0] >= 0).all()
        assert counts["domains"] == sum(len(set(domain[topic == t])) for t in range(len(sizes)))
        assert 0 <= counts["between_share"] < 1
        if len(sizes) == 3:
            assert domain[topic == 2].tolist() == [0, 0] and domain[topic == 1].max() == 1


@pytest.mark.parametrize("outside", [0, 5])
def test_no_topic_to_split_is_explained(outside):
    with pytest.raises(InputError, match="no pair lies in a topic"):
        find_domains(np.ones((outside, 4), np.float16), np.full(outside, -1), domains(), 1, silent)


@pytest.mark.parametrize("topic, count", [([-1, -1, -1, -1], 0), ([0, 0, -1, 0], 1), ([], 0)])
def test_names_need_two_topics(topic, count):
    counted = count_words(["lion cub", "lion", "red bus", "bus"], label())
    with pytest.raises(
        InputError,
        match=(
            f"there are {count} topics, and names tell two or more apart; lower "
            "'topics.min_cluster_size'"
        ),
    ):
        describe_counted(counted, np.array(topic, int), label())


@pytest.mark.parametrize(
    "captions, least, words",
    [
        (["a lion", "a bus"], 2, r"no word stands in 2 of 2 .*'bus', in 1\); lower 'label.min_cap"),
        (["a lion"], 3, r"no word stands in 3 of 1 .*'lion', in 1\); lower 'label.min_captions'"),
        (["the", "of the"], 1, "all 3 words of 2 captions are stop words; 'label.language' and"),
        (["12 34", "!!", "5"], 1, "none of 3 captions holds a word.*numbers or signs"),
    ],
)
def test_no_word_to_name_topics_with(captions, least, words):
    with pytest.raises(InputError, match=words):
        count_words(captions, label(min_captions=least))
