"""Samples K-way classification tasks with a domain shift between support and query."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, fields, replace

import numpy as np
import polars as pl

from pipeline.artifacts import Arrays, Keep, made_anew
from pipeline.episodes.params import Episodes
from pipeline.errors import InputError


@dataclass(frozen=True)
class Pool:
    """What tasks are drawn from.

    Attributes:
        topic: (n,) cluster or label of every picture, from 0; no outliers. names: one per topic,
        None for one that can be no class: none of its pictures is here.
        domain: (n,) visual domain within the topic.
        keys: n names of pictures. features: (n, e) their image features.
    """

    topic: np.ndarray
    domain: np.ndarray
    names: Sequence[str | None]
    keys: Sequence[str]
    features: np.ndarray


HELD_OUT = 1  # beside the seed: the choice of topics is another stream than the tasks'

ReadPictures = Callable[[np.ndarray], list[bytes]]  # rows of a pool → the files of its pictures


@dataclass(frozen=True)
class Task:
    """Row numbers of a task's pictures, by class.

    Attributes:
        topics: (ways,) the topics that are its classes.
        support: (ways, support_shots) rows.
        query: (ways, query_shots) rows, none of them in `support`.
    """

    topics: np.ndarray
    support: np.ndarray
    query: np.ndarray

    @property
    def rows(self) -> np.ndarray:
        """All of them, support first, class by class."""
        return np.concatenate([self.support.ravel(), self.query.ravel()])


def usable_topics(
    topic: np.ndarray, domain: np.ndarray, shots: int, queries: int, least_domains: int
) -> dict[int, list[np.ndarray]]:
    """Topic → rows of each of its domains, for topics that can give a task's pictures.

    A topic is usable if it has `shots + queries` pictures, `least_domains` domains, and, where
    these are several, one of at least `shots` pictures to draw the support from.
    """
    order = np.lexsort((domain, topic))  # stable: rows stay in order within a domain
    starts = np.flatnonzero(
        np.diff(topic[order], prepend=-1).astype(bool)
        | np.diff(domain[order], prepend=-1).astype(bool)
    )
    of_topic: dict[int, list[np.ndarray]] = {}
    for rows in np.split(order, starts[1:]) if len(order) else []:
        of_topic.setdefault(int(topic[rows[0]]), []).append(rows)
    return {
        t: domains
        for t, domains in of_topic.items()
        if sum(map(len, domains)) >= shots + queries
        and len(domains) >= least_domains
        and max(map(len, domains)) >= (shots if least_domains > 1 else 1)
    }


def draw_class(
    domains: list[np.ndarray], shots: int, queries: int, one_domain: bool, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Support rows (from one domain, or from all) and disjoint query rows, uniform over all
    domains.

    The query takes a domain at random for every picture, so that small domains weigh as much as
    large ones.
    """
    if one_domain:
        large = [d for d in domains if len(d) >= shots]
        support = rng.choice(large[rng.integers(len(large))], shots, replace=False)
    else:
        support = rng.choice(np.concatenate(domains), shots, replace=False)
    left = [
        rng.permutation(d[np.isin(d, support, assume_unique=True, invert=True)]).tolist()
        for d in domains
    ]
    query = []
    while len(query) < queries:
        filled = [d for d in left if d]
        query.append(filled[rng.integers(len(filled))].pop())
    return support, np.array(query)


@dataclass(frozen=True)
class Drawing:
    """What tasks are drawn.

    Attributes:
        ways, shots, queries: classes of a task; pictures of each in its support and in its query.
        one_domain: support from a single domain per class (the paper), or from all (its ablation).
        confusable: share of tasks made of a random topic and its nearest neighbours; these tasks
            are hard.
        least_domains: a topic of fewer gives no tasks. Two for clusters, also without the shift, so
            that the ablation sees the same topics.
    """

    tasks: int
    ways: int
    shots: int
    queries: int
    one_domain: bool
    confusable: float
    seed: int
    least_domains: int = 2


def sample_tasks(
    topic: np.ndarray,
    domain: np.ndarray,
    nearest: np.ndarray,
    wanted: Drawing,
    allowed: Collection[int] | None = None,
) -> list[Task]:
    """Draws tasks (§3.3, "Automatic Meta-Training Task Generation").

    Args:
        topic, domain: (n,) cluster of every picture; no outliers. nearest: (L, L) topics in order
        of nearness to each topic, itself first. allowed: the topics that may be classes; None: all
        that are large enough.

    Raises:
        InputError if fewer than `wanted.ways` topics are large enough.
    """
    ways, shots, queries = wanted.ways, wanted.shots, wanted.queries
    usable = usable_topics(topic, domain, shots, queries, wanted.least_domains)
    if allowed is not None:
        usable = {t: domains for t, domains in usable.items() if t in allowed}
    if len(usable) < ways:
        raise InputError(
            f"only {len(usable)} of {len(np.unique(topic))} topics have {shots} + {queries} "
            f"pictures{' and two domains' if wanted.least_domains > 1 else ''}, but 'ways' is "
            f"{ways}; lower 'ways', 'support_shots' or 'query_shots', or make more or larger "
            "topics"
        )
    rng = np.random.default_rng(wanted.seed)
    names = np.array(sorted(usable))
    drawn = []
    for _ in range(wanted.tasks):
        if rng.random() < wanted.confusable:
            around = [t for t in nearest[rng.choice(names)] if t in usable]
            # Twice as many neighbours as ways, so that one topic does not always bring the same
            # task.
            chosen = (
                np.concatenate(
                    [around[:1], rng.choice(around[1 : 2 * ways], ways - 1, replace=False)]
                )
                if len(around) >= 2 * ways
                else rng.choice(names, ways, replace=False)
            )
            chosen = rng.permutation(chosen)
        else:
            chosen = rng.choice(names, ways, replace=False)
        pairs = [draw_class(usable[t], shots, queries, wanted.one_domain, rng) for t in chosen]
        drawn.append(Task(chosen, np.stack([s for s, _ in pairs]), np.stack([q for _, q in pairs])))
    return drawn


def mean_features(pool: Pool) -> np.ndarray:
    """(L, e) mean feature of every topic, normalised, float32; zero for one without pictures."""
    centres = np.zeros((len(pool.names), pool.features.shape[1]), np.float32)
    order = np.argsort(pool.topic, kind="stable")
    found, starts = np.unique(pool.topic[order], return_index=True)
    for t, rows in zip(found, np.split(order, starts[1:])[: len(found)], strict=True):
        centres[t] = pool.features[rows].astype(np.float32).mean(axis=0)
    # opposite features cancel out
    return centres / np.maximum(np.linalg.norm(centres, axis=1, keepdims=True), 1e-12)


def each_picture_once(table: pl.DataFrame) -> pl.DataFrame:
    """One row for each picture: of its captions' topics the one that most of them are in, so that
    no task asks for the name of a picture that it has shown, or has one under two names.

    Args:
        table: key, picture, topic, and whatever else belongs to a row.
    """
    topics = table.group_by("picture", "topic").agg(pl.len(), pl.col("key").min())
    chosen = topics.sort("len", "key", descending=[True, False]).unique(
        "picture", keep="first", maintain_order=True
    )
    return table.join(chosen.select("key"), on="key", how="semi", maintain_order="left")


def draw(
    pool: Pool,
    settings: Episodes,
    *,
    ways: int,
    shots: int,
    queries: int,
    seed: int,
    least_domains: int = 2,
) -> list[Task]:
    """`sample_tasks` from a whole pool; topics are near each other if their mean features are.

    Raises InputError if there are fewer than `ways` topics with a name.
    """
    wanted = drawing_of(settings, ways, shots, queries, seed, least_domains)
    return draw_split(pool, wanted, HeldOut(0.0, 1, seed))[0]


def drawing_of(
    settings: Episodes, ways: int, shots: int, queries: int, seed: int, least_domains: int = 2
) -> Drawing:
    """What an entry of `episodes:` asks for."""
    return Drawing(
        tasks=settings.tasks,
        ways=ways,
        shots=shots,
        queries=queries,
        one_domain=settings.support == "one_domain",
        confusable=settings.confusable,
        seed=seed,
        least_domains=least_domains,
    )


@dataclass(frozen=True)
class HeldOut:
    """What is kept apart for validation.

    Attributes:
        share: of the topics that give tasks; at least `ways` of them, none if it is 0.
        tasks: validation tasks. seed: of the choice of topics, and of these tasks; not that of the
            training tasks, so that trainings on tasks drawn anew are judged alike.
    """

    share: float
    tasks: int
    seed: int


def held_out_topics(usable: Sequence[int], ways: int, held: HeldOut) -> list[int]:
    """The topics that no training task may have: a random share, but enough for a task.

    Raises InputError if too few would be left to draw training tasks from.
    """
    if not held.share:
        return []
    count = max(ways, round(held.share * len(usable)))
    if len(usable) - count < ways:
        raise InputError(
            f"only {len(usable)} topics give tasks, but 'held_out_topics' keeps {count} of them "
            f"for validation (a task has {ways}) and as many at least must be left; make more "
            "topics, lower 'ways', or set 'held_out_topics' to 0 to train without validation"
        )
    rng = np.random.default_rng((held.seed, HELD_OUT))
    return sorted(rng.choice(np.array(sorted(usable)), count, replace=False).tolist())


def draw_split(
    pool: Pool, wanted: Drawing, held: HeldOut, keep: Keep = made_anew
) -> tuple[list[Task], list[Task]]:
    """Training tasks, and validation tasks of the same kind from topics that no training task has;
    none of these if nothing is held out. `keep` is given all of them.

    Raises InputError if there are fewer than `ways` topics with a name, or too few for both.
    """
    parts = len(fields(Task))
    drawn = keep("tasks", lambda: _arrays(*_draw_split(pool, wanted, held)))
    training, validation = (
        [Task(*rows) for rows in zip(*drawn[first : first + parts], strict=True)]
        for first in (0, parts)
    )
    return training, validation


def _arrays(*groups: list[Task]) -> Arrays:
    """The parts of a task, each as one array for all tasks of a group, group after group."""
    return tuple(
        np.array([getattr(task, part.name) for task in tasks], np.int64)
        for tasks in groups
        for part in fields(Task)
    )


def _draw_split(pool: Pool, wanted: Drawing, held: HeldOut) -> tuple[list[Task], list[Task]]:
    named = sum(name is not None for name in pool.names)
    if named < wanted.ways:
        without = len(pool.names) - named
        raise InputError(
            f"there are only {named} topics{f' with a name ({without} without)' * bool(without)}, "
            f"but 'ways' is {wanted.ways}; lower 'ways', or make more topics "
            "('topics.min_cluster_size'); what the label stage says may help too"
        )
    centres = mean_features(pool)
    similarity = centres @ centres.T
    np.fill_diagonal(similarity, np.inf)
    nearest = np.argsort(-similarity, axis=1, kind="stable")
    sizes = wanted.shots, wanted.queries, wanted.least_domains
    usable = set(usable_topics(pool.topic, pool.domain, *sizes))
    # too few of them for one task: drawing says so
    apart = held_out_topics(sorted(usable), wanted.ways, held) if len(usable) >= wanted.ways else []
    training = sample_tasks(pool.topic, pool.domain, nearest, wanted, usable - set(apart))
    if not apart:
        return training, []
    judged = replace(wanted, tasks=held.tasks, seed=held.seed)
    return training, sample_tasks(pool.topic, pool.domain, nearest, judged, apart)


def rows_of(tasks: Sequence[Task]) -> np.ndarray:
    """The pictures that the tasks show, each once."""
    return np.unique(np.concatenate([task.rows for task in tasks]))
