"""Tasks: support from one domain, query from all, disjoint, reproducible; shards that read back
as written.
"""

import gc
import itertools
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import polars as pl
import pytest
from tqdm import tqdm

from pipeline.ahead import ahead, each_ahead
from pipeline.artifacts import Keep, fingerprint, made_anew, resumable_folder
from pipeline.episodes import shards
from pipeline.episodes.params import Episodes
from pipeline.episodes.shards import read_episodes, write_shards
from pipeline.episodes.tasks import (
    Drawing,
    HeldOut,
    Pool,
    draw_split,
    drawing_of,
    each_picture_once,
    sample_tasks,
)
from pipeline.episodes.tasks import draw as draw_from
from pipeline.errors import InputError

TOPICS, DOMAINS, EACH = 12, 3, 9


@pytest.fixture(scope="module")
def pool():
    topic = np.repeat(np.arange(TOPICS), DOMAINS * EACH)
    domain = np.tile(np.repeat(np.arange(DOMAINS), EACH), TOPICS)
    shuffle = np.random.default_rng(0).permutation(len(topic))
    nearest = np.argsort(abs(np.arange(TOPICS)[:, None] - np.arange(TOPICS)), axis=1, kind="stable")
    return topic[shuffle], domain[shuffle], nearest


def test_a_picture_of_several_captions_is_in_tasks_once():
    """Under the topic of most of its captions: no picture is its own query, or has two names."""
    rows = [
        ("a", "p", 1),
        ("b", "p", 0),
        ("c", "p", 1),
        ("d", "q", 2),
        ("e", "r", 0),
        ("f", "r", 3),
    ]
    table = pl.DataFrame(rows, schema=["key", "picture", "topic"], orient="row")
    found = each_picture_once(table.with_columns(domain=pl.col("topic") + 10))
    assert list(found.iter_rows()) == [("a", "p", 1, 11), ("d", "q", 2, 12), ("e", "r", 0, 10)]
    alone = table.with_columns(picture="key")
    assert each_picture_once(alone).equals(alone)


def draw(pool, **changes):
    settings = dict(tasks=60, ways=5, shots=4, queries=6, one_domain=True, confusable=0.0, seed=3)
    return sample_tasks(*pool, Drawing(**(settings | changes)))


def test_support_comes_from_one_domain_and_query_from_all(pool):
    topic, domain, _ = pool
    seen = set()
    for task in draw(pool):
        assert len(set(task.topics)) == 5
        for k, t in enumerate(task.topics):
            assert len(set(domain[task.support[k]])) == 1
            assert set(topic[task.support[k]]) == set(topic[task.query[k]]) == {t}
            assert len(set(task.support[k])) == 4 and len(set(task.query[k])) == 6
            assert not set(task.support[k]) & set(task.query[k])
            seen |= set(domain[task.query[k]])
    assert seen == {0, 1, 2}


def test_query_is_uniform_over_domains_of_unlike_sizes():
    topic = np.zeros(200, int)
    domain = np.array([0] * 150 + [1] * 50)
    topic = np.concatenate([topic, topic + 1])
    domain = np.concatenate([domain, domain])
    nearest = np.array([[0, 1], [1, 0]])
    tasks = sample_tasks(
        topic,
        domain,
        nearest,
        Drawing(tasks=400, ways=2, shots=4, queries=6, one_domain=True, confusable=0, seed=0),
    )
    share = np.mean([domain[t.query].mean() for t in tasks])
    assert share == pytest.approx(0.5, abs=0.03)  # by pictures it would be 0.25


def test_uniform_support_mixes_domains(pool):
    domain = pool[1]
    mixed = [len(set(domain[s])) for task in draw(pool, one_domain=False) for s in task.support]
    assert np.mean(mixed) > 1.8


def test_same_seed_same_tasks_other_seed_others(pool):
    same = [
        np.array_equal(a.support, b.support) and np.array_equal(a.query, b.query)
        for a, b in zip(draw(pool), draw(pool))
    ]
    assert all(same)
    assert not all(
        np.array_equal(a.topics, b.topics) for a, b in zip(draw(pool), draw(pool, seed=4))
    )


def test_confusable_tasks_stay_among_neighbours(pool):
    spread = lambda tasks: np.mean([np.ptp(t.topics) for t in tasks])
    near = draw(pool, confusable=1.0, ways=3)
    assert all(np.ptp(t.topics) <= 6 for t in near)
    assert spread(near) < spread(draw(pool, ways=3))


def test_too_few_topics_say_what_to_lower(pool):
    with pytest.raises(InputError, match="only 12 of 12 topics.*lower 'ways'"):
        draw(pool, ways=13)
    with pytest.raises(InputError, match="only 0 of 12 topics"):
        draw(pool, shots=10)


def test_too_few_topics_to_draw_from():
    settings = Episodes(support="one_domain", tasks=3, confusable=0.5)
    for names in ([], ["lion"]):
        pool = Pool(
            np.zeros(8 * len(names), int),
            np.zeros(8 * len(names), int),
            names,
            [],
            np.zeros((8 * len(names), 4), np.float16),
        )
        with pytest.raises(
            InputError,
            match=f"only {len(names)} topics, but 'ways' is 2; lower 'ways', or make more topics",
        ):
            draw_from(pool, settings, ways=2, shots=1, queries=1, seed=0)


def whole_pool(pool):
    topic, domain, _ = pool
    features = np.random.default_rng(1).normal(size=(len(topic), 8)).astype(np.float16)
    keys = [f"k{i:04d}" for i in range(len(topic))]
    return Pool(topic, domain, [f"name {t}" for t in range(TOPICS)], keys, features)


def split(pool, share=0.25, seed=3, tasks=60, ways=3, confusable=0.5, keep=made_anew):
    settings = Episodes(support="one_domain", tasks=tasks, confusable=confusable)
    wanted = drawing_of(settings, ways, 4, 6, seed)
    return draw_split(whole_pool(pool), wanted, HeldOut(share, 20, 1), keep)


def topics_of(tasks):
    return {int(t) for task in tasks for t in task.topics}


@pytest.mark.parametrize(("share", "count"), [(0.25, 3), (0.5, 6), (0.01, 3)])
def test_held_out_topics_are_in_no_training_task(pool, share, count):
    """Whole topics, and with them all of their pictures; at least as many as a task has."""
    training, validation = split(pool, share)
    assert len(training) == 60 and len(validation) == 20
    kept_apart = topics_of(validation)
    assert len(kept_apart) == count and not kept_apart & topics_of(training)
    assert topics_of(training) == set(range(TOPICS)) - kept_apart
    topic = pool[0]
    assert not {int(topic[row]) for task in training for row in task.rows} & kept_apart


def test_other_training_tasks_are_judged_by_the_same_validation_tasks(pool):
    (one, judged), (other, judged_alike) = split(pool, seed=3), split(pool, seed=4)
    rows = lambda tasks: [task.rows.tolist() for task in tasks]
    assert rows(judged) == rows(judged_alike) and rows(one) != rows(other)
    # as many tasks as wanted do not change which topics are apart
    assert topics_of(split(pool, tasks=5)[1]) == topics_of(judged)


def test_nothing_held_out_is_what_was_drawn_before(pool):
    training, validation = split(pool, share=0.0)
    assert validation == [] and topics_of(training) == set(range(TOPICS))
    settings = Episodes(support="one_domain", tasks=60, confusable=0.5)
    before = draw_from(whole_pool(pool), settings, ways=3, shots=4, queries=6, seed=3)
    assert [t.rows.tolist() for t in training] == [t.rows.tolist() for t in before]


@pytest.mark.parametrize("share", [0.25, 0.0])
def test_tasks_that_were_drawn_are_not_drawn_again(pool, tmp_path, monkeypatch, share):
    before = split(pool, share, keep=Keep(tmp_path))
    monkeypatch.setattr("pipeline.episodes.tasks.sample_tasks", None)
    again = split(pool, share, keep=Keep(tmp_path))
    for one, other in zip(before, again, strict=True):
        assert [t.topics.tolist() for t in one] == [t.topics.tolist() for t in other]
        for had, has in zip(one, other, strict=True):
            assert np.array_equal(had.support, has.support) and had.support.shape == (3, 4)
            assert np.array_equal(had.query, has.query) and has.query.shape == (3, 6)


def test_too_few_topics_to_hold_some_out(pool):
    with pytest.raises(
        InputError,
        match="only 12 topics give tasks, but 'held_out_topics' keeps 7 of them.*set "
        "'held_out_topics' to 0",
    ):
        split(pool, ways=7)
    with pytest.raises(InputError, match="only 12 of 12 topics have.*but 'ways' is 13|only 12"):
        split(pool, ways=13)


def test_validation_tasks_have_shards_of_their_own(pool, tmp_path):
    both = split(pool, tasks=7)
    shards.write_split(both, whole_pool(pool), lambda rows: [b"jpeg"] * len(rows), tmp_path, silent)
    for folder, tasks in zip((tmp_path, tmp_path / "validation"), both, strict=True):
        assert [e.names for e in read_episodes(folder)] == [
            tuple(f"name {t}" for t in task.topics) for task in tasks
        ]


def silent(items, label, total=None):
    return tqdm(items, total=total, disable=True)


@pytest.fixture
def drawn(pool):
    """A pool, its pictures by row, and seven tasks."""
    topic, domain, _ = pool
    features = np.random.default_rng(1).normal(size=(len(topic), 8)).astype(np.float16)
    keys = [f"k{i:04d}" for i in range(len(topic))]
    return (
        Pool(topic, domain, [f"name {t}" for t in range(TOPICS)], keys, features),
        [f"jpeg of {k}".encode() * 20 for k in keys],
        draw(pool, tasks=7),
    )


def write(drawn, out, read=None):
    whole, pictures, tasks = drawn
    with resumable_folder(out, fingerprint("x")) as work:
        write_shards(tasks, whole, read or (lambda rows: [pictures[r] for r in rows]), work, silent)
    return out


@pytest.fixture
def written(drawn, tmp_path):
    return write(drawn, tmp_path / "shifted")


def test_shards_read_back_as_written(written, drawn):
    whole, pictures, tasks = drawn
    episodes = list(read_episodes(written, pictures=True))
    assert [e.number for e in episodes] == list(range(7))
    for episode, task in zip(episodes, tasks):
        assert episode.names == tuple(whole.names[t] for t in task.topics)
        assert np.array_equal(episode.support, whole.features[task.support.ravel()])
        assert np.array_equal(episode.query, whole.features[task.query.ravel()])
        assert episode.support_labels.tolist() == [k for k in range(5) for _ in range(4)]
        assert episode.query_labels.tolist() == [k for k in range(5) for _ in range(6)]
        assert episode.query_pictures == tuple(pictures[r] for r in task.query.ravel())


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture
def small_shards(monkeypatch):
    # two and a half of these tasks
    monkeypatch.setattr(shards, "SHARD_BYTES", 2.5 * 50 * (8 * 2 + 13 * 20))


def test_any_number_of_threads_writes_the_same_bytes(drawn, tmp_path, monkeypatch, small_shards):
    sizes = []

    def slowly(rows):  # the first shards last longest, so that threads overtake each other
        sizes.append(len(rows))
        time.sleep(0.02 if len(sizes) < 20 else 0)
        return [drawn[1][r] for r in rows]

    found = []
    for threads in (1, 2, 5):
        monkeypatch.setenv("EPISODE_THREADS", str(threads))
        found.append(contents(write(drawn, tmp_path / str(threads), slowly)))
    assert sorted(found[0]) == [f"{i:05d}.parquet" for i in range(4)]
    assert found[0] == found[1] == found[2]
    assert set(sizes) == {50}  # one task's pictures at a time, whatever the number of tasks


@pytest.mark.parametrize("lost", [0, 2, 3])
def test_a_lost_shard_is_no_smaller_world(drawn, tmp_path, small_shards, lost):
    """Meta-training would learn on fewer tasks without a word; the last shard is missed too."""
    folder = write(drawn, tmp_path / "whole")
    (folder / f"{lost:05d}.parquet").unlink()
    with pytest.raises(InputError, match=f"0000{lost}.parquet: missing; `dvc checkout"):
        next(read_episodes(folder))


def test_writing_goes_on_where_it_was_cut_off(drawn, tmp_path, monkeypatch, small_shards):
    monkeypatch.setenv("EPISODE_THREADS", "2")
    expected = contents(write(drawn, tmp_path / "whole"))
    asked = []

    def read(rows, fails=False):
        asked.append(tuple(rows))
        # the first time it is only sized
        if fails and tuple(rows) == tuple(drawn[2][4].rows) and asked.count(asked[-1]) == 2:
            raise InputError("00002.tar: it ends inside a picture")
        return [drawn[1][r] for r in rows]

    with pytest.raises(InputError, match="00002.tar"):
        write(drawn, tmp_path / "cut", lambda rows: read(rows, fails=True))
    assert not (tmp_path / "cut").exists()
    done = {p.name for p in (tmp_path / ".partial").glob("cut-*/*")}
    assert {"00000.parquet", "00001.parquet"} <= done and "00002.parquet" not in done
    asked.clear()
    assert contents(write(drawn, tmp_path / "cut", read)) == expected
    # each is sized; shards that are there are not made again
    assert [asked.count(tuple(task.rows)) for task in drawn[2][:6]] == [1, 1, 1, 1, 2, 2]


def test_a_shard_cut_at_any_byte_is_named(written):
    shard = written / "00000.parquet"
    whole = shard.read_bytes()
    for cut in itertools.chain(range(0, len(whole), 61), range(len(whole) - 20, len(whole))):
        shard.write_bytes(whole[:cut])
        with pytest.raises(InputError, match="00000.parquet.*delete it and run `dvc repro` again"):
            list(read_episodes(written))


def test_a_damaged_shard_is_named_or_read(written):
    """Bytes that were lost inside: never another error."""
    shard, named = written / "00000.parquet", 0
    whole = shard.read_bytes()
    for at in range(0, len(whole) - 64, 197):
        shard.write_bytes(whole[:at] + bytes(64) + whole[at + 64 :])
        try:
            list(read_episodes(written, pictures=True))
        except InputError as error:
            named += 1
            assert "00000.parquet" in str(error) and "delete it" in str(error)
    assert named > 10


def test_ahead_keeps_the_order_and_its_bound():
    made = []
    items = (made.append(i) or i for i in range(20))
    for item in ahead(items, 3):
        time.sleep(0.002)
        assert len(made) <= item + 4
        if item == 0:
            time.sleep(0.05)
            assert made == [0, 1, 2, 3]  # three more are ready
    assert made == list(range(20))
    assert list(ahead(iter([]), 3)) == []


def test_ahead_raises_in_the_item_s_place_and_ends_its_thread(written):
    def failing():
        yield from read_episodes(written)
        raise InputError("00001.parquet: damaged")

    before, seen = threading.active_count(), []
    with pytest.raises(InputError, match="00001.parquet: damaged"):
        for episode in ahead(failing(), 4):
            seen.append(episode.number)  # noqa: PERF401 — what was seen before it raised
    assert seen == list(range(7)) and threading.active_count() == before


def test_each_ahead_works_at_several_and_keeps_order_and_bound():
    together, asked = threading.Barrier(3, timeout=30), []

    def make(item):
        together.wait()  # passed only if three are made at once
        return 2 * item

    with ThreadPoolExecutor(3) as threads:
        items = (asked.append(i) or i for i in range(12))
        for place, made in enumerate(each_ahead(make, items, threads, 5)):
            assert made == 2 * place and len(asked) <= place + 6
        assert len(asked) == 12 and list(each_ahead(make, [], threads, 5)) == []


def test_each_ahead_raises_in_the_item_s_place_and_takes_back_the_rest():
    begun, seen = [], []

    def make(item):
        begun.append(item)
        time.sleep(0.05)
        return 12 // (3 - item)

    with ThreadPoolExecutor(1) as thread, pytest.raises(ZeroDivisionError):
        seen.extend(each_ahead(make, range(9), thread, 8))
    assert seen == [4, 6, 12] and len(begun) <= 5


def test_a_reader_that_stops_early_leaves_nothing_behind(written):
    closed = []

    def items():
        try:
            yield from itertools.cycle(read_episodes(written))
        finally:
            closed.append(True)

    before = threading.active_count()
    for _ in itertools.islice(ahead(items(), 4), 2):
        pass
    gc.collect()
    assert threading.active_count() == before and closed == [True]
