"""Topic words against values computed by hand, neighbour graphs, outliers, domains."""

import math

import numpy as np
import pytest
from scipy import sparse

from pipeline.clustering.domains import separation, split_topic
from pipeline.clustering.labels import bertopic_tfidf, cluster_tfidf, describe_topics
from pipeline.clustering.params import Domains, Label
from pipeline.clustering.topics import join_outliers, neighbour_graph


def label(**changes):
    return Label(**(dict(formula="eq3", words=5, longest_phrase=1, min_captions=1, stop_words=[], edits="") | changes))


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
    captions = ["a lion and a lion cub", "the lion sleeps", "a red bus", "red bus stop", "a pie", "the pie"]
    described = describe_topics(captions, np.array([0, 0, 1, 1, 2, 2]), label())
    # words of two letters at least: "lion and lion cub", "the lion sleeps" → 7; lion occurs 3 times, in 1 of 3 clusters
    assert described[0]["name"] == "lion"
    assert described[0]["scores"][0] == pytest.approx(3 / 7 * math.log(3 / 2))
    assert {d["name"] for d in described} == {"lion", "red", "pie"} or {d["name"] for d in described} == {"lion", "bus", "pie"}


def test_bertopic_s_formula_by_hand():
    counts = np.array([[3, 1, 0], [0, 2, 5]])
    scores = bertopic_tfidf(sparse.csr_matrix(counts)).toarray()
    average = 5  # (4 + 7) / 2 = 5.5, cut
    assert scores[0] == pytest.approx([3 / 4 * math.log(1 + average / 3), 1 / 4 * math.log(1 + average / 3), 0])
    assert scores[1] == pytest.approx([0, 2 / 7 * math.log(1 + average / 3), 5 / 7 * math.log(1 + average / 5)])


def test_a_formula_changes_the_scores_not_the_topics():
    captions = ["a red lion"] * 4 + ["a red bus"] * 4 + ["a red pie"] * 4
    eq3, bertopic = (describe_topics(captions, np.repeat(np.arange(3), 4), label(formula=f)) for f in ("eq3", "bertopic"))
    assert [d["name"] for d in eq3] == [d["name"] for d in bertopic] == ["lion", "bus", "pie"]
    # "red" is in all clusters: Eq 3 scores it below zero and never shows it, BERTopic scores it low
    assert [d["words"] for d in eq3] == [["lion"], ["bus"], ["pie"]]
    assert bertopic[0]["words"] == ["lion", "red"] and bertopic[0]["scores"] == pytest.approx([math.log(1 + 8 / 4) / 2, math.log(1 + 8 / 12) / 2])


def test_names_are_unique_and_go_to_the_stronger_topic():
    captions = ["bear bear bear"] * 3 + ["bear honey jar"] * 3 + ["car wheel"] * 3 + ["tea cup"] * 3 + ["key ring"] * 3
    described = describe_topics(captions, np.repeat(np.arange(5), 3), label())
    names = [d["name"] for d in described]
    assert len(set(names)) == 5
    assert names[0] == "bear" and names[1] in ("honey", "jar")


def test_a_phrase_beats_its_parts():
    captions = ["a polar bear"] * 4 + ["a red bus"] * 4 + ["one apple pie"] * 4
    names = [d["name"] for d in describe_topics(captions, np.repeat(np.arange(3), 4), label(longest_phrase=2))]
    assert names[0] == "polar bear"


def test_rare_and_stop_words_name_nothing():
    captions = ["stock lion"] * 4 + ["lion xyzzy"] + ["stock bus"] * 5 + ["stock pie"] * 5
    described = describe_topics(captions, np.repeat(np.arange(3), 5), label(min_captions=3, stop_words=["stock"]))
    assert not {"stock", "xyzzy"} & {w for d in described for w in d["words"]}


def unit(x):
    return (x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float32)


def test_neighbour_graph_is_exact_and_starts_with_the_row_itself():
    rng = np.random.default_rng(0)
    x = unit(rng.normal(size=(60, 8)))
    x[10:14] = x[9]  # equal captions
    found, distance = neighbour_graph(x, 6)
    assert (found[:, 0] == np.arange(60)).all()
    assert all(len(set(row)) == 6 for row in found)
    brute = np.sort(1 - x @ x.T, axis=1)[:, :6]
    assert np.allclose(np.sort(distance, axis=1), np.clip(brute, 0, 2), atol=1e-6)


def test_outliers_join_the_nearest_topic_only_if_similar():
    x = unit(np.array([[1, 0.1], [1, -0.1], [0.1, 1], [-0.1, 1], [0.9, 0.2], [-1, -1]]))
    joined = join_outliers(x, np.array([0, 0, 1, 1, -1, -1]), 0.6)
    assert joined.tolist() == [0, 0, 1, 1, 0, -1]


def test_domains_find_separate_groups_and_number_them_by_size():
    rng = np.random.default_rng(0)
    centres = np.eye(3)[:, [0, 1, 2]]
    x = unit(np.concatenate([c + 0.05 * rng.normal(size=(n, 3)) for c, n in zip(centres, (12, 30, 20))]))
    domain = split_topic(x, Domains(per_topic=3, min_size=3, iterations=20), seed=1)
    assert [len(set(domain[a:b])) for a, b in ((0, 12), (12, 42), (42, 62))] == [1, 1, 1]
    assert np.bincount(domain).tolist() == [30, 20, 12]
    assert separation(x, domain) > 0.9 > 0.1 > separation(x, np.zeros(62, int))


@pytest.mark.parametrize("count", [1, 2, 5, 7])
def test_small_topics_get_fewer_domains(count):
    x = unit(np.random.default_rng(count).normal(size=(count, 4)))
    domain = split_topic(x, Domains(per_topic=4, min_size=3, iterations=5), seed=1)
    assert len(domain) == count and domain.max() + 1 <= max(1, count // 3)
    assert set(domain) == set(range(domain.max() + 1))


def test_domains_repeat_exactly():
    x = unit(np.random.default_rng(5).normal(size=(80, 16)))
    settings = Domains(per_topic=4, min_size=3, iterations=20)
    assert (split_topic(x, settings, 7) == split_topic(x, settings, 7)).all()
