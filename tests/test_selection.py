"""study/selection.py: how other ways to topics are judged beside HDBSCAN's leaves."""

import importlib

import numpy as np
import pytest
from conftest import ROOT
from sklearn.metrics import homogeneity_score

from pipeline.episodes.tasks import Task


@pytest.fixture
def selection(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "study")
    return importlib.import_module("selection")


def test_answers_are_right_among_the_classes_of_the_task_alone(selection):
    """Topic 2's name fits every picture best, and counts only where topic 2 is a class."""
    pictures = np.array([[1, 0, 0.9], [0, 1, 0.9], [1, 0, 0.9], [0.1, 1, 0]], np.float32)
    texts = np.array([[1, 0, 0], [0, 1, 0], [1, 1, 1]], np.float32)
    none = np.empty((2, 0), int)
    without = Task(np.array([0, 1]), none, np.array([[0, 2], [1, 3]]))
    swapped = Task(np.array([1, 0]), none, np.array([[1, 3], [0, 2]]))
    with_it = Task(np.array([2, 1]), none, np.array([[0, 1], [2, 3]]))
    assert selection.right_answers([without], pictures, texts) == 1.0
    assert selection.right_answers([swapped], pictures, texts) == 1.0
    assert selection.right_answers([with_it], pictures, texts) == 0.5
    assert selection.right_answers([without, with_it], pictures, texts) == 0.75


def test_seeds_are_compared_pair_by_pair_within_a_way(selection):
    same, other = np.array([0, 0, 1, 1]), np.array([0, 1, 0, 1])
    runs = [("leaf", same, other), ("eom", other, same), ("leaf", 1 - same, other)]
    runs += [("leaf", other, same), ("eom", other, other)]
    found = [selection.Found(way, 0, before, topic, 1.0) for way, before, topic in runs]
    assert [tuple(row.values()) for row in selection.between_seeds(found)] == [
        ("leaf", 1.0, 1.0),
        ("leaf", -0.5, -0.5),
        ("eom", 1.0, -0.5),
        ("leaf", -0.5, -0.5),
    ]


def test_a_selection_of_the_stage_looks_at_the_places_that_are_there(selection):
    from pipeline.clustering.params import Topics
    from pipeline.params import load_params

    settings = load_params(ROOT / "params.yaml", {"topics": ("topics", Topics)}).topics
    rng, of = np.random.default_rng(3), np.repeat(np.arange(4), 30)
    places = (10 * np.eye(4)[of] + 0.1 * rng.normal(size=(120, 4))).astype(np.float32)
    vectors = rng.normal(size=(120, 8)).astype(np.float32)
    found = selection.WAYS["leaf"].find(vectors, places, np.ones(120, int), settings, 1)
    inside = found >= 0
    assert inside.mean() > 0.8 and selection.adjusted_rand_score(of[inside], found[inside]) == 1


def rows(**ways):
    return [
        {"way": way, "seed": seed, "topics": 7, "right": right}
        for way, found in ways.items()
        for seed, right in enumerate(found)
    ]


def test_a_figure_is_worse_beyond_both_spreads_together(selection):
    """Those of `leaf` and of the way itself: 0.1 and 0.05 in `right`."""
    made = rows(leaf=[0.6, 0.7, 0.8], below=[0.45, 0.5, 0.55], near=[0.51, 0.56, 0.61], one=[0.59])
    agreed = {"leaf": [0.9, 0.9], "below": [0.9, 0.9], "near": [0.89, 0.9], "one": [0.9]}
    pairs = [{"way": way, "stability": ari} for way, found in agreed.items() for ari in found]
    table = selection.summary(made, pairs)
    assert table["way"].to_list() == ["leaf", "below", "near", "one"]
    assert table["right"].to_list() == pytest.approx([0.7, 0.5, 0.56, 0.59])
    assert table["right_sd"].to_list()[:3] == pytest.approx([0.1, 0.05, 0.05])
    assert table["stability"].to_list()[:3] == pytest.approx([0.9, 0.9, 0.895])
    assert selection.worse(table) == {"below": ["right"], "near": [], "one": ["right"]}


def test_all_missing_packages_are_named_at_once(selection, monkeypatch):
    monkeypatch.setattr(selection, "find_spec", lambda name: None)
    selection.check_packages(["leaf", "eom"])
    with pytest.raises(SystemExit, match=r"evoc and fast_hdbscan not installed.*\[perf\]"):
        selection.check_packages(["leaf", "plscan", "evoc", "evoc_leaf"])


def test_planted_captions_that_repeat_are_one_point_of_one_topic(selection):
    captions = selection.planted(3000, 1)
    assert len(captions.true) == captions.points.weight.sum() == 3000
    assert len(captions.vectors) == len(captions.points.rows) < 2900
    of_point = captions.true[captions.points.rows]
    np.testing.assert_array_equal(captions.true, of_point[captions.points.point])
    centre = captions.vectors[of_point == of_point.max()].mean(axis=0)
    inside = (captions.vectors @ centre)[of_point == of_point.max()].min()
    assert inside > np.quantile((captions.vectors @ centre)[of_point < 0], 0.9)


def test_a_way_finds_what_was_planted_with_each_seed(selection):
    from pipeline.clustering.params import Topics
    from pipeline.params import load_params

    settings = load_params(ROOT / "params.yaml", {"topics": ("topics", Topics)}).topics
    captions = selection.planted(1500, 1)
    found = selection.clusterings(captions, settings, ["leaf"], [1, 2])
    assert [(of.way, of.seed) for of in found] == [("leaf", 1), ("leaf", 2)]
    for of in found:
        both = (of.topic >= 0) & (captions.true >= 0)
        assert both.mean() > 0.4 and of.seconds > 0
        assert homogeneity_score(captions.true[both], of.topic[both]) > 0.9  # many topics of each
