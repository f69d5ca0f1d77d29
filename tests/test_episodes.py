"""Tasks: support from one domain, query from all, disjoint, reproducible; shards that read back as written."""

import numpy as np
import pytest

from pipeline.artifacts import fingerprint, resumable_folder
from pipeline.episodes.shards import read_episodes, write_shards
from pipeline.episodes.tasks import Pool, sample_tasks
from pipeline.errors import InputError

TOPICS, DOMAINS, EACH = 12, 3, 9


@pytest.fixture(scope="module")
def pool():
    topic = np.repeat(np.arange(TOPICS), DOMAINS * EACH)
    domain = np.tile(np.repeat(np.arange(DOMAINS), EACH), TOPICS)
    shuffle = np.random.default_rng(0).permutation(len(topic))
    nearest = np.argsort(abs(np.arange(TOPICS)[:, None] - np.arange(TOPICS)), axis=1, kind="stable")
    return topic[shuffle], domain[shuffle], nearest


def draw(pool, **changes):
    settings = dict(tasks=60, ways=5, shots=4, queries=6, one_domain=True, confusable=0.0, seed=3)
    return sample_tasks(*pool, **(settings | changes))


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
    tasks = sample_tasks(topic, domain, nearest, tasks=400, ways=2, shots=4, queries=6, one_domain=True, confusable=0, seed=0)
    share = np.mean([domain[t.query].mean() for t in tasks])
    assert share == pytest.approx(0.5, abs=0.03)  # by pictures it would be 0.25


def test_uniform_support_mixes_domains(pool):
    domain = pool[1]
    mixed = [len(set(domain[s])) for task in draw(pool, one_domain=False) for s in task.support]
    assert np.mean(mixed) > 1.8


def test_same_seed_same_tasks_other_seed_others(pool):
    same = [np.array_equal(a.support, b.support) and np.array_equal(a.query, b.query) for a, b in zip(draw(pool), draw(pool))]
    assert all(same)
    assert not all(np.array_equal(a.topics, b.topics) for a, b in zip(draw(pool), draw(pool, seed=4)))


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


@pytest.fixture
def written(pool, tmp_path):
    topic, domain, _ = pool
    rng = np.random.default_rng(1)
    features = rng.normal(size=(len(topic), 8)).astype(np.float16).astype(np.float32)
    keys = [f"k{i:04d}" for i in range(len(topic))]
    pictures = {k: f"jpeg of {k}".encode() for k in keys}
    names = [f"name {t}" for t in range(TOPICS)]
    tasks = draw(pool, tasks=7)

    with resumable_folder(tmp_path / "shifted", fingerprint("x")) as work:
        write_shards(tasks, Pool(topic, domain, names, keys, features), pictures, work, lambda x, _: x)
    return tmp_path / "shifted", tasks, features, names


def test_shards_read_back_as_written(written):
    folder, tasks, features, names = written
    episodes = list(read_episodes(folder))
    assert [e.number for e in episodes] == list(range(7))
    for episode, task in zip(episodes, tasks):
        assert episode.names == tuple(names[t] for t in task.topics)
        assert np.array_equal(episode.support, features[task.support.ravel()])
        assert np.array_equal(episode.query, features[task.query.ravel()])
        assert episode.support_labels.tolist() == [k for k in range(5) for _ in range(4)]
        assert episode.query_labels.tolist() == [k for k in range(5) for _ in range(6)]


def test_a_truncated_shard_is_named(written):
    folder = written[0]
    shard = folder / "00000.parquet"
    shard.write_bytes(shard.read_bytes()[:-100])
    with pytest.raises(InputError, match="00000.parquet.*delete it and run `dvc repro` again"):
        list(read_episodes(folder))
