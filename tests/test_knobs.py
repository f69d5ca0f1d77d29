"""From a parameter to what it is meant for: each line that hands one on, seen by a quick test.

Values are such that a neighbour's, a default's or none gives another result.
"""

from types import SimpleNamespace

import numpy as np
import polars as pl
import pyarrow as pa
import pytest
import torch
from tqdm import tqdm

from pipeline.artifacts import to_vectors, write_table
from pipeline.benchmarks.cache import Draw
from pipeline.benchmarks.params import Sgd
from pipeline.clustering import domains, labels, layout, naming, topics
from pipeline.clustering.params import Domains, Label, Topics
from pipeline.episodes.params import Episodes
from pipeline.episodes.tasks import Pool
from pipeline.episodes.tasks import draw as draw_tasks
from pipeline.errors import InputError
from pipeline.gram import learn, trial
from pipeline.gram.params import Learning, MetaMethod, Method, Outer, Regulator
from pipeline.gram.regulator import initial_phi
from pipeline.gram.tune import tune
from pipeline.pairs.noise import filter_pairs
from pipeline.pairs.params import Filter
from pipeline.pairs.schemas import PAIRS, features_schema
from pipeline.prompts.starts import Start

# --- tasks ---

TOPICS, EACH = 24, 8  # pictures of each of three domains


@pytest.fixture(scope="module")
def pool():
    """Topics on a quarter of a circle: the nearer in number, the nearer in features."""
    topic = np.repeat(np.arange(TOPICS), 3 * EACH)
    angle = topic / TOPICS * np.pi / 2
    features = np.stack([np.cos(angle), np.sin(angle)], axis=1).astype(np.float16)
    domain = np.tile(np.repeat(np.arange(3), EACH), TOPICS)
    names = [f"t{t}" for t in range(TOPICS)]
    return Pool(topic, domain, names, [f"k{i}" for i in range(len(topic))], features)


def tasks_of(pool, support="one_domain", tasks=40, confusable=0.0, **sizes):
    settings = Episodes(support=support, tasks=tasks, confusable=confusable)
    return draw_tasks(pool, settings, **{"ways": 4, "shots": 3, "queries": 5, "seed": 1} | sizes)


def domains_of_support(pool, tasks):
    return [len(set(pool.domain[rows])) for task in tasks for rows in task.support]


def test_the_domain_shift_is_on_if_it_is_asked_for_and_off_if_not(pool):
    assert set(domains_of_support(pool, tasks_of(pool))) == {1}
    assert np.mean(domains_of_support(pool, tasks_of(pool, "all_domains"))) > 1.8


def test_confusable_tasks_are_of_near_topics(pool):
    """Of the nearest 2 · ways topics, whichever the first is; of all, otherwise."""
    near = [np.ptp(task.topics) for task in tasks_of(pool, confusable=1.0)]
    far = [np.ptp(task.topics) for task in tasks_of(pool)]
    half = [np.ptp(task.topics) for task in tasks_of(pool, confusable=0.5, tasks=200)]
    assert max(near) <= 8 < np.mean(far)
    assert 0.3 < np.mean(np.array(half) <= 8) < 0.8


def test_a_task_has_the_size_that_was_asked_for(pool):
    found = tasks_of(pool, tasks=7, ways=5, shots=2, queries=6)
    assert len(found) == 7
    assert {task.support.shape for task in found} == {(5, 2)}
    assert {task.query.shape for task in found} == {(5, 6)}
    again, other = (tasks_of(pool, tasks=7, seed=seed) for seed in (1, 2))
    same = [np.array_equal(a.rows, b.rows) for a, b in zip(again, other, strict=True)]
    assert not any(same)


# --- tuning ---


class Linear:
    """Logits are products of learned rows and features: a gradient that can be written down."""

    sees_pixels = False

    def __init__(self):
        self.backbone = SimpleNamespace(device=torch.device("cpu"))

    def prepare(self, tasks):
        return tasks

    def look(self, images):
        return images

    def logits(self, tokens, classes, seen):
        return seen @ tokens["text"].transpose(-1, -2)


@pytest.mark.parametrize("batch", [3, 100])
def test_tuning_is_sgd_with_the_settings_of_params_yaml(batch):
    """By hand: rates of the epochs, momentum, weight decay, batches, the order of a seed."""
    rng = np.random.default_rng(5)
    views, labels = rng.normal(size=(4, 7, 2)).astype(np.float32), np.arange(7) % 3
    start = rng.normal(size=(3, 2)).astype(np.float32)
    settings = Sgd(lr=0.3, warmup_lr=0.01, momentum=0.8, weight_decay=0.05, batch=batch)
    found = tune(
        Linear(),
        Start("coop", 1, {"text": torch.from_numpy(start)}, {}, "none"),
        Draw(views, labels, ["a", "b", "c"]),
        settings,
        9,
    )
    order, w, velocity = np.random.default_rng(9), start.astype(np.float64), 0.0
    rates = [0.01] + [0.15 * (1 + np.cos(np.pi * e / 4)) for e in range(3)]
    size = min(batch, 7)
    for epoch, rate in enumerate(rates):
        shuffled = order.permutation(7)
        for first in range(0, 7 - size + 1, size):
            rows = shuffled[first : first + size]
            scores = views[epoch][rows] @ w.T
            chances = np.exp(scores) / np.exp(scores).sum(axis=1, keepdims=True)
            chances[np.arange(size), labels[rows]] -= 1
            gradient = chances.T @ views[epoch][rows] / size + 0.05 * w
            velocity = 0.8 * velocity + gradient
            w = w - rate * velocity
        assert found[epoch]["text"].numpy() == pytest.approx(w, abs=1e-5), epoch


@pytest.mark.parametrize("scale", ["rms", "none"])
def test_tuning_goes_through_the_regulator_of_the_start(scale):
    """One step by hand: ĝ = s (tanh(W^γ g/s + b^γ) g/s + tanh(W^β g/s + b^β)), and s is 1 or the
    gradient's root mean square.
    """
    rng = np.random.default_rng(6)
    views, labels = rng.normal(size=(1, 4, 2)).astype(np.float32), np.arange(4) % 3
    w = rng.normal(size=(3, 2))
    phi = {
        f"text.{part}": rng.normal(size=(2, 2) if part[0] == "W" else (1, 2))
        for part in ("W_gamma", "b_gamma", "W_beta", "b_beta")
    }
    settings = Sgd(lr=9.0, warmup_lr=0.5, momentum=0.8, weight_decay=0.1, batch=4)
    tensors = {name: torch.from_numpy(rows).float() for name, rows in phi.items()}
    start = Start("coop", 1, {"text": torch.from_numpy(w).float()}, tensors, scale)
    (found,) = tune(Linear(), start, Draw(views, labels, ["a", "b", "c"]), settings, 1)
    scores = views[0] @ w.T
    chances = np.exp(scores) / np.exp(scores).sum(axis=1, keepdims=True)
    chances[np.arange(4), labels] -= 1
    g = chances.T @ views[0] / 4
    s = np.sqrt((g**2).mean()) if scale == "rms" else 1.0
    gamma = np.tanh(g / s @ phi["text.W_gamma"].T + phi["text.b_gamma"])
    beta = np.tanh(g / s @ phi["text.W_beta"].T + phi["text.b_beta"])
    wanted = w - 0.5 * (s * (gamma * g / s + beta) + 0.1 * w)
    assert found["text"].numpy() == pytest.approx(wanted, abs=1e-5)


# --- meta-learning ---

REGULATOR = Regulator(input_scale="rms", bias=1.5, weight_std=0.0, bias_per_token=False)
OUTER = Outer(
    optimiser="sgd",
    weight_decay=0.1,
    schedule="constant",
    clip_norm=3.0,
    precision="fp32",
    recompute=False,
    measure_every=5,
    checkpoint_every=7,
)
LEARNING = Learning(
    context_tokens=4,
    inner_lr=0.25,
    inner_steps=3,
    outer_lr=0.01,
    regulator_lr=0.07,
    meta_batch=6,
    meta_steps=11,
    regulator=REGULATOR,
    outer=OUTER,
)


def training(**own):
    return learn.training_of(MetaMethod(prompt="coop", episodes="e", **own), LEARNING)


def test_meta_training_gets_each_of_its_settings():
    found = training()
    assert (found.inner.lr, found.inner.steps, found.inner.second_order) == (0.25, 3, True)
    assert found.inner.input_scale == "rms" and found.outer == OUTER
    assert (found.outer_lr, found.regulator_lr) == (0.01, 0.07)
    assert (found.batch, found.steps) == (6, 11)
    assert found.judged == found.inner


def test_an_entry_s_own_values_come_before_the_common_ones():
    found = training(inner_lr_factor=0.2, outer_lr_factor=3.0, steps=2, order="first")
    assert found.inner.lr == pytest.approx(0.05) and found.outer_lr == pytest.approx(0.03)
    assert found.steps == 2 and not found.inner.second_order and found.regulator_lr == 0.07
    assert training(algorithm="pretrain").inner.steps == 0


def test_a_method_begins_as_its_entry_says(monkeypatch):
    class Seen:
        def __init__(self, backbone, depth):
            self.depth = depth

        def initial(self, count, generator, words):
            return {"count": count, "words": words, "drawn": torch.rand(1, generator=generator)}

    monkeypatch.setitem(learn.METHODS, "vpt", Seen)

    def begun(**own):
        generator = torch.Generator().manual_seed(3)
        return learn.initial_tokens(None, Method(prompt="vpt", **own), 4, generator)

    made, tokens = begun(depth=2, tokens=6, init="random")
    assert (made.depth, tokens["count"], tokens["words"]) == (2, 6, "random")
    made, tokens = begun()
    assert (made.depth, tokens["count"], tokens["words"]) == (1, 4, None)
    assert tokens["drawn"] == torch.rand(1, generator=torch.Generator().manual_seed(3))


def test_the_regulator_begins_as_params_yaml_says():
    tokens = {"text": torch.zeros(3, 40)}

    def begun(**changes):
        return initial_phi(
            tokens, REGULATOR.model_copy(update=changes), torch.Generator().manual_seed(0)
        )

    plain = begun()
    assert plain["text.b_gamma"].unique().tolist() == [1.5] and not plain["text.b_beta"].any()
    assert plain["text.b_gamma"].shape == (1, 40) and not plain["text.W_gamma"].any()
    assert begun(bias_per_token=True)["text.b_gamma"].shape == (3, 40)
    drawn = begun(weight_std=0.2)
    for part in ("gamma", "beta"):
        assert drawn[f"text.W_{part}"].std().item() == pytest.approx(0.2, rel=0.1)


def test_a_trial_gives_each_benchmark_what_the_study_says(monkeypatch, tmp_path):
    told, drawn = [], SimpleNamespace(labels=[0] * 8)
    tuning = Sgd(lr=1.0, warmup_lr=0.5, momentum=0.0, weight_decay=0.0, batch=1)
    monkeypatch.setattr(trial, "method_of", lambda about, backbone, template: template)
    monkeypatch.setattr(trial, "few_shots", lambda *given: told.append(given) or drawn)
    monkeypatch.setattr(trial, "tune", lambda *given: told.append(given[:5]) or [{"a": 1}])
    monkeypatch.setattr(trial, "judge_source", lambda *given: told.append(given[:3]))
    monkeypatch.setattr(trial, "save_judged", lambda *given: None)
    monkeypatch.setattr(trial, "save_start", lambda *given: None)
    monkeypatch.setattr(trial, "read_verdicts", lambda *given: None)
    monkeypatch.setattr(trial, "headline", lambda *given: {"base": 1.0})
    start = Start("cocoop", 1, {"a": 0}, {}, "none")
    entries = {name: f"{name} {{}}." for name in ("x", "y")}
    for seed, draw in ((1, 7), (2, 9), (3, 7)):
        told.clear()
        trial.tune_and_judge(
            None, start, seed, trial.Trial(entries, ["y"], 8, [7, 9], tuning), tmp_path, tmp_path
        )
        of_draw, of_tuning, of_judging = told
        assert of_draw == (tmp_path / "y", "y {}.", "base", 8, draw)
        assert of_tuning[:3] == ("y {}.", start, drawn) and of_tuning[4] == draw
        assert of_tuning[3].batch == 1
        assert of_judging[0] == "y" and of_judging[1].base_to_new == [8]
        assert of_judging[2]["base"] == {(8, draw, 0): {"a": 0}, (8, draw, 1): {"a": 1}}
    told.clear()
    both = trial.Trial(entries, ["y"], 8, [7, 9], tuning, "all")
    trial.tune_and_judge(None, start, 2, both, tmp_path, tmp_path)
    assert [given[4] for given in (told[0], told[2])] == [9, 7]
    # after every epoch on its own draw, after the last on the other
    assert list(told[4][2]["base"]) == [(8, 9, 0), (8, 9, 1), (8, 7, 1)]


# --- noise filter ---

RULES = {
    "min_words": 2,
    "min_characters": 5,
    "max_characters": 12,
    "min_side": 40,
    "max_aspect": 2.0,
    "duplicate_similarity": 1.01,
    "exact_up_to": 100,
    "recall": 0.9,
    "score": "cosine",
    "neighbours": 2,
    "select": "threshold",
    "threshold": 0.5,
}


def reasons(tmp_path, rows, **changes):
    """Of pairs (caption, width, height, score); scores are exact in 16 bits."""
    keys, dim = [f"k{i:02d}" for i in range(len(rows))], len(rows) + 1
    captions, widths, heights, scores = zip(*rows, strict=True)
    count = len(rows)
    columns = [keys, captions, ["success"] * count, [None] * count, ["0.tar"] * count]
    columns += [widths, heights, [1] * count, keys]
    pairs = pa.table(
        [pa.array(c, f.type) for c, f in zip(columns, PAIRS, strict=True)], schema=PAIRS
    )
    write_table(pairs, tmp_path / "pairs.parquet", PAIRS)
    image, text = np.zeros((2, count, dim), np.float32)
    for i, score in enumerate(scores):
        image[i, i], text[i, i], text[i, -1] = 1, score, np.sqrt(1 - score**2)
    found = pa.table(
        [pa.array(keys), to_vectors(image), to_vectors(text)], schema=features_schema(dim)
    )
    write_table(found, tmp_path / "features" / "00000.parquet", features_schema(dim))
    kept, _ = filter_pairs(
        tmp_path / "pairs.parquet", tmp_path / "features", Filter(**RULES | changes)
    )
    return pl.from_arrow(kept).sort("key")["reason"].to_list()


def test_what_just_reaches_a_limit_is_kept_and_what_just_does_not_is_dropped(tmp_path):
    good = ("two words", 64, 64, 0.75)
    rows = [
        good,
        ("a bcd", 64, 64, 0.75),  # as few characters as may be
        ("a bc", 64, 64, 0.75),
        ("oneword", 64, 64, 0.75),  # one word
        ("twelve chars", 64, 64, 0.75),  # as many characters as may be
        ("thirteen char", 64, 64, 0.75),
        ("two words", 64, 40, 0.75),  # as small as may be
        ("two words", 64, 39, 0.75),
        ("two words", 80, 40, 0.75),  # as long as may be
        ("two words", 81, 40, 0.75),
        ("two words", 64, 64, 0.5),  # the least score
        ("two words", 64, 64, 0.49),
    ]
    short, long_ = "short caption", "long caption"
    assert reasons(tmp_path, rows) == [
        *("", "", short, short),
        *("", long_),
        *("", "small picture"),
        *("", "long picture"),
        *("", "mismatch"),
    ]


def test_a_quantile_drops_its_share(tmp_path):
    rows = [("two words", 64, 64, s) for s in (0.125, 0.25, 0.375, 0.5, 0.625)]
    found = reasons(tmp_path, rows, select="quantile", threshold=0.25)
    assert found == ["mismatch", "", "", "", ""]  # the one at the quantile stays


# --- topics, names, domains ---

TOPIC_SETTINGS = Topics(
    neighbours=6,
    exact_up_to=1000,
    recall=0.9,
    fit_on=1000,
    map_on=30,
    components=3,
    min_dist=0.125,
    min_cluster_size=5,
    min_samples=2,
    selection="leaf",
    repeats=2,
    outliers="nearest",
    nearest_similarity=0.625,
)


@pytest.fixture
def told(monkeypatch):
    """What UMAP and HDBSCAN are asked for, and what outliers are joined by."""
    told = {"umap": [], "hdbscan": [], "join": []}

    class Umap:
        def __init__(self, **options):
            told["umap"].append(options)

        def fit_transform(self, rows, vectors=None, **_):
            vectors = rows if vectors is None else vectors
            return vectors[:, : told["umap"][-1]["n_components"]]

    real, joined = topics.hdbscan.HDBSCAN, topics.join_outliers
    monkeypatch.setattr(layout, "KeptUMAP", Umap)
    monkeypatch.setattr(
        topics.hdbscan,
        "HDBSCAN",
        lambda **options: told["hdbscan"].append(options) or real(**options),
    )
    monkeypatch.setattr(
        topics, "join_outliers", lambda *given: told["join"].append(given[2]) or joined(*given)
    )
    return told


def sentences():
    rng = np.random.default_rng(2)
    rows = np.repeat(np.eye(4, 8), 15, axis=0) + 0.1 * rng.normal(size=(60, 8))
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def steps(items, _label, total=None):
    return tqdm(items, total=total, disable=True)


def test_clustering_gets_each_of_its_settings(told):
    x = sentences()
    found = topics.find_topics(x, TOPIC_SETTINGS, 17, steps)
    of = np.asarray(x)[found.fitted], np.ones(len(found.fitted), int)
    topics.stability(*of, found.grouped.topic, TOPIC_SETTINGS, 17, steps)
    first, *others = told["umap"]
    assert (first["n_components"], first["min_dist"], first["random_state"]) == (3, 0.125, 17)
    assert first["n_neighbors"] == 6
    assert len({options["random_state"] for options in others if options["n_components"] == 3}) == 2
    assert len(told["hdbscan"]) == 3  # once, and twice for the stability
    for options in told["hdbscan"]:
        assert (options["min_cluster_size"], options["min_samples"]) == (5, 2)
        assert options["cluster_selection_method"] == "leaf"
    assert told["join"] == [0.625]


def test_clustering_heeds_the_other_choices(told):
    changed = {"outliers": "drop", "selection": "eom", "fit_on": 40}
    counts = topics.find_topics(
        sentences(), TOPIC_SETTINGS.model_copy(update=changed), 17, steps
    ).counts
    assert told["join"] == [] and [o["cluster_selection_method"] for o in told["hdbscan"]] == [
        "eom"
    ]
    assert counts["fitted"] == 40


def test_plscan_is_leaves_at_a_size_that_is_found(told, monkeypatch):
    """In the space that HDBSCAN looks at, with its own neighbourhood."""
    asked = []
    size = lambda reduced, min_samples: asked.append((reduced.shape, min_samples)) or 7
    monkeypatch.setattr(topics, "persistent_size", size)
    monkeypatch.setattr("pipeline.errors.find_spec", lambda name: True)
    topics.find_topics(
        sentences(), TOPIC_SETTINGS.model_copy(update={"selection": "plscan"}), 17, steps
    )
    (options,) = told["hdbscan"]
    assert options["cluster_selection_method"] == "leaf" and options["min_cluster_size"] == 7
    ((shape, min_samples),) = asked
    assert shape[1] == 3 and min_samples == 2


def test_plscan_says_which_package_brings_it(told, monkeypatch):
    """Before anything is laid out."""
    monkeypatch.setattr("pipeline.errors.find_spec", lambda name: None)
    wanted = TOPIC_SETTINGS.model_copy(update={"selection": "plscan"})
    with pytest.raises(
        InputError,
        match=r"'topics.selection' is 'plscan', but the package fast_hdbscan .*"
        r"\.\[plscan\]",
    ):
        topics.find_topics(sentences(), wanted, 17, steps)
    assert told["umap"] == []


def test_words_are_counted_by_the_label_s_settings():
    captions = ["polar bear", "polar bear", "polar fox", "a rare ant", "photo of a bear"]
    settings = Label(
        formula="eq3",
        words=3,
        longest_phrase=1,
        min_captions=2,
        stop_words=["photo"],
        edits="",
    )

    def counted(**changes):
        return set(labels.count_words(captions, settings.model_copy(update=changes)).words)

    assert counted() == {"polar", "bear"}
    assert counted(longest_phrase=2) == {"polar", "bear", "polar bear"}
    assert counted(min_captions=1) == {"polar", "bear", "fox", "rare", "ant"}
    assert "photo" in counted(min_captions=1, stop_words=[])


def test_phrases_that_pictures_choose_among_stand_in_a_caption():
    captions = ["a Polar  bear in the snow", "bears of stock snow", "a bear, snow; riding a bike"]
    settings = Label(
        formula="eq3",
        words=3,
        longest_phrase=3,
        min_captions=1,
        stop_words=["stock"],
        edits="",
    )

    def phrases(choose):
        counted = labels.count_words(captions, settings.model_copy(update={"choose": choose}))
        assert {"polar", "bear", "bears", "snow", "riding", "bike"} < set(counted.words)
        assert counted.lengths.tolist() == [5, 4, 4]  # "a" is no word of two letters
        return {word for word in counted.words if " " in word}

    assert phrases("pictures") == {"polar bear"}
    assert {"polar bear snow", "bears snow", "bear snow", "riding bike"} < phrases("words")


def test_topics_are_described_by_the_label_s_settings():
    captions = ["polar bear snow"] * 4 + ["red fox wood"] * 4 + ["green ant leaf"] * 4
    topic = np.repeat([0, 1, 2], 4)
    settings = Label(
        formula="eq3", words=2, longest_phrase=1, min_captions=1, stop_words=[], edits=""
    )
    counted = labels.count_words(captions, settings)
    found = labels.describe_topics(counted, topic, settings)
    other = labels.describe_topics(
        counted, topic, settings.model_copy(update={"formula": "bertopic", "words": 3})
    )
    assert [len(d["words"]) for d in found] == [2] * 3 and [len(d["words"]) for d in other] == [
        3
    ] * 3
    assert found[0]["scores"][:2] != other[0]["scores"][:2]


def test_names_are_chosen_and_merged_by_the_label_s_settings():
    said = ["bear bear bear snow", "bear bear bear cub", "ant ant leaf", "wasp wasp sky"]
    captions, topic = np.repeat(said, [4, 5, 4, 4]).tolist(), np.repeat(np.arange(4), [4, 5, 4, 4])
    settings = Label(
        formula="eq3", words=3, longest_phrase=1, min_captions=1, stop_words=[], edits=""
    )
    counted = labels.count_words(captions, settings)
    angle = {"bear": 0, "ant": 1.5, "wasp": 2.1, "snow": 0, "cub": 0.3, "leaf": 3, "sky": 4}

    def chosen(**changes):
        found, names = naming.chosen_names(
            counted,
            topic,
            settings.model_copy(update=changes),
            lambda ranked: ranked.reverse(),
            lambda names: np.array([[np.cos(angle[n]), np.sin(angle[n])] for n in names]),
        )
        return names, [found[topic == t].tolist()[0] for t in range(4)]

    alone = [0, 1, 2, 3]
    assert chosen() == (None, alone)
    assert chosen(merge_same=1) == (["bear", "ant", "wasp"], [0, 0, 1, 2])
    assert chosen(merge_same=0.9)[0] == ["bear", "ant", "wasp"]
    assert chosen(merge_same=0.8) == (["bear", "ant"], [0, 0, 1, 1])
    assert chosen(choose="pictures") == (["snow", "cub", "leaf", "sky"], alone)
    assert chosen(choose="pictures", merge_same=0.9) == (["cub", "leaf", "sky"], [0, 0, 1, 2])


def test_domains_are_found_by_their_settings(monkeypatch):
    told, real = [], domains.faiss.Kmeans

    def spied(dim, count, **options):
        told.append((count, options["niter"], options["seed"]))
        return real(dim, count, **options)

    monkeypatch.setattr(domains.faiss, "Kmeans", spied)
    features = sentences()[:24]
    settings = Domains(choose="fixed", per_topic=3, min_size=4, iterations=9)
    domains.split_topic(features, settings, 21)
    domains.split_topic(features, settings.model_copy(update={"min_size": 12}), 21)
    assert told == [(3, 9, 21), (2, 9, 21)]
    told.clear()
    domains.split_topic(features, settings.model_copy(update={"choose": "silhouette"}), 21)
    assert told == [(2, 9, 21), (3, 9, 21)]
