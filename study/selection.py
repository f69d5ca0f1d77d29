"""Other ways to topics than HDBSCAN's leaves, on the demo's artifacts after `dvc repro`.

    python study/selection.py                  # every way, three seeds
    python study/selection.py --planted 20000  # synthetic sentence vectors in topics known before

* `leaf`, `eom` and `plscan`: what the stage `topics` does, with each `topics.selection`.
* `evoc`: EVoC's own graph and layout of the sentence vectors; of its layers, the one in which
  topics persist longest.
* `evoc_leaf`: its finest layer, with `topics.min_cluster_size` as the least size.

Equal captions are one point for every way. The stage counts all captions of a point where the size
of a topic is asked for; EVoC takes no weights. Outliers then join the nearest topic, names, domains
and tasks follow, all as the stages do it with `params.yaml`.

Of every way: topics; share of the captions in one, as found (`in_one`) and after outliers have
joined (`coverage`); agreement between seeds (`stability`: ARI over captions before outliers join,
as the stage has it; `stability_joined`: after); NPMI of the topics' words; ARI and NMI with the
captions' classes; share of the tasks' queries that zero-shot CLIP has right (`right`: 300 tasks as
`episodes.shifted` draws them, by three seeds); topics in these tasks; processor seconds of the
clustering once all is compiled. `worse` has, of stability, coverage, NPMI, right, ARI and NMI, what
is lower than with `leaf` by more than both standard deviations over seeds together. The last line
is JSON.
"""

from __future__ import annotations

import argparse
import itertools
import json
import sys
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import numba  # noqa: E402
import numpy as np  # noqa: E402
import polars as pl  # noqa: E402
from sklearn.metrics import adjusted_rand_score, normalized_mutual_info_score  # noqa: E402

from pipeline.artifacts import read_table  # noqa: E402
from pipeline.clip.backbone import Backbone, load_backbone, text_features  # noqa: E402
from pipeline.clip.params import BackboneParams  # noqa: E402
from pipeline.clustering.domains import find_domains  # noqa: E402
from pipeline.clustering.labels import (  # noqa: E402
    Counted,
    coherence,
    count_words,
    describe_topics,
)
from pipeline.clustering.layout import reduce  # noqa: E402
from pipeline.clustering.naming import TEMPLATE  # noqa: E402
from pipeline.clustering.neighbours import neighbour_graph  # noqa: E402
from pipeline.clustering.params import Clustering, Domains, Label  # noqa: E402
from pipeline.clustering.points import Points, distinct  # noqa: E402
from pipeline.clustering.sentences import read_sentences  # noqa: E402
from pipeline.clustering.topics import by_density, join_outliers  # noqa: E402
from pipeline.episodes.params import Episodes, Shots, Ways  # noqa: E402
from pipeline.episodes.tasks import Pool, Task, draw, each_picture_once  # noqa: E402
from pipeline.pairs.reading import read_image_features, read_pairs  # noqa: E402
from pipeline.pairs.schemas import CAPTIONS, KEPT  # noqa: E402
from pipeline.params import Seed, load_params  # noqa: E402
from pipeline.stage import progress  # noqa: E402
from pipeline.world.schemas import TRUTH  # noqa: E402

READS = {
    "seed": ("seed", Seed),
    "topics": ("topics", Clustering),
    "label": ("label", Label),
    "domains": ("domains", Domains),
    "episodes": ("episodes.shifted", Episodes),
    "ways": ("ways", Ways),
    "shots": ("support_shots", Shots),
    "queries": ("query_shots", Shots),
    "backbone": ("backbone", BackboneParams),
}
DRAWS = (1, 2, 3)  # of the tasks
WARM_UP = 800  # points that everything is compiled on before seconds count
REFERENCE, JUDGED = "leaf", ("stability", "npmi", "coverage", "right", "ari", "nmi")


@dataclass(frozen=True)
class Captions:
    """What is clustered.

    Attributes:
        points: the distinct ones. vectors: (d, e) their sentence embeddings, float32. true: (n,)
        what each of the captions is of; −1 for what is of nothing.
    """

    points: Points
    vectors: np.ndarray
    true: np.ndarray


@dataclass(frozen=True)
class Way:
    """(d, e) vectors, (d, c) place in UMAP's space, (d,) weights, settings and seed → (d,) topics.

    `laid_out`: whether it looks at the places.
    """

    package: str | None
    laid_out: bool
    find: Callable[[np.ndarray, np.ndarray, np.ndarray, Clustering, int], np.ndarray]


def of_stage(selection: str, package: str | None = None) -> Way:
    def find(vectors, reduced, weight, settings, seed):
        return by_density(reduced, weight, settings.model_copy(update={"selection": selection}))[0]

    return Way(package, True, find)


def evoc(finest: bool) -> Way:
    def find(vectors, reduced, weight, settings, seed):
        from evoc import EVoC

        size = {"base_min_cluster_size": settings.min_cluster_size} if finest else {}
        found = EVoC(
            n_neighbors=settings.neighbours,
            min_samples=settings.min_samples,
            random_state=seed,
            **size,
        ).fit(vectors)
        return found.cluster_layers_[0] if finest else found.labels_

    return Way("evoc", False, find)


WAYS = {
    "leaf": of_stage("leaf"),
    "eom": of_stage("eom"),
    "plscan": of_stage("plscan", "fast_hdbscan"),
    "evoc": evoc(finest=False),
    "evoc_leaf": evoc(finest=True),
}


def check_packages(ways: Sequence[str]) -> None:
    """Ends the program, naming all packages that these ways need and that are not installed."""
    missing = sorted({p for w in ways if (p := WAYS[w].package) and find_spec(p) is None})
    if missing:
        sys.exit(
            f"selection: {' and '.join(missing)} not installed; run `pip install -c "
            'constraints.txt -e ".[perf]"`, or leave their ways out of --ways'
        )


@dataclass(frozen=True)
class Found:
    """One clustering: (n,) topics of captions as found, and with outliers joined; processor
    seconds.
    """

    way: str
    seed: int
    before: np.ndarray
    topic: np.ndarray
    seconds: float


def timed(make: Callable[[], Any]) -> tuple[Any, float]:
    """What is made, and the processor seconds that it takes."""
    began = time.process_time()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        made = make()
    return made, time.process_time() - began


def clusterings(
    captions: Captions, settings: Clustering, ways: Sequence[str], seeds: Sequence[int]
) -> list[Found]:
    """Every way with every seed; the graph is made once, UMAP's space once for each seed."""
    points, vectors, found = captions.points, captions.vectors, []
    how = (settings.neighbours, settings.exact_up_to, settings.recall)
    (graph, _), searching = timed(lambda: neighbour_graph(vectors, *how, seeds[0]))
    size = (settings.components, settings.min_dist)
    for seed in seeds:
        places, laying = timed(lambda: reduce(vectors, graph, *size, seed))
        for name in ways:
            way = WAYS[name]
            topic, own = timed(lambda: way.find(vectors, places, points.weight, settings, seed))
            seconds = own + (searching + laying) * way.laid_out
            joined = topic
            if settings.outliers == "nearest" and topic.max() >= 0:
                joined = join_outliers(vectors, topic, settings.nearest_similarity, points.weight)
            found.append(Found(name, seed, topic[points.point], joined[points.point], seconds))
            print(f"{name}, seed {seed}: {topic.max() + 1} topics, {seconds:.1f} s", flush=True)
    return found


def between_seeds(found: Sequence[Found]) -> list[dict]:
    """ARI of every two clusterings of one way, in which −1 counts as a topic."""
    return [
        {
            "way": a.way,
            "stability": adjusted_rand_score(a.before, b.before),
            "stability_joined": adjusted_rand_score(a.topic, b.topic),
        }
        for a, b in itertools.combinations(found, 2)
        if a.way == b.way
    ]


def right_answers(tasks: Sequence[Task], pictures: np.ndarray, texts: np.ndarray) -> float:
    """Share of all queries whose nearest of the task's classes is their own.

    Args:
        pictures: (n, e) features that the tasks' rows number. texts: (L, e) features of the topics'
        names.
    """
    hits = [
        (pictures[task.query] @ texts[task.topics].T).argmax(axis=-1)
        == np.arange(len(task.topics))[:, None]
        for task in tasks
    ]
    return float(np.mean(hits))


class Demo:
    """What the stages behind `topics` make of a clustering."""

    def __init__(self, data: Path, params: SimpleNamespace) -> None:
        self.params, self.data = params, data
        keys, vectors = read_sentences(data / "sentences")
        kept = pl.from_arrow(read_table(data / "kept.parquet", KEPT, ["key", "caption"]))
        links = pl.from_arrow(read_table(data / "captions.parquet", CAPTIONS, ["key", "url"]))
        truth = pl.from_arrow(read_table(data / "world" / "demo" / "truth.parquet", TRUTH))
        table = (
            pl.DataFrame({"key": pl.from_arrow(keys)})
            .join(kept, on="key", how="left", maintain_order="left")
            .join(links.join(truth, on="url"), on="key", how="left", maintain_order="left")
            .join(
                read_pairs(data / "pairs.parquet", ["key"]),
                on="key",
                how="left",
                maintain_order="left",
            )
        )
        true = table["name"].rank("dense").cast(pl.Int64).to_numpy()
        points = distinct(vectors)
        self.captions = Captions(points, vectors[points.rows].astype(np.float32), true)
        self.table = table.select("key", picture=pl.coalesce("picture", "key"))
        self.features = read_image_features(data / "features", table["key"])
        self.counted: Counted = count_words(table["caption"].to_list(), params.label)
        self.backbone: Backbone = load_backbone(ROOT / params.backbone.path)

    def judged(self, topic: np.ndarray) -> dict[str, float]:
        """NPMI of the words, right answers at the start, topics in tasks."""
        described = describe_topics(self.counted, topic, self.params.label)
        names = [d["name"] for d in described]
        pool = self.pool(topic, names)
        p = self.params
        sizes = {"ways": p.ways, "shots": p.shots, "queries": p.queries}
        said = [TEMPLATE.format(name or "") for name in names]
        texts, right, drawn = text_features(self.backbone, said).numpy(), [], set()
        for seed in DRAWS:
            tasks = draw(pool, p.episodes, **sizes, seed=seed)
            right.append(right_answers(tasks, pool.features.astype(np.float32), texts))
            drawn |= {int(t) for task in tasks for t in task.topics}
        return {
            "npmi": coherence(self.counted, [d["words"] for d in described]) or 0.0,
            "right": float(np.mean(right)),
            "in_tasks": len(drawn),
        }

    def pool(self, topic: np.ndarray, names: Sequence[str | None]) -> Pool:
        """The pictures of the topics that have a name, each once, with its domain."""
        quiet = lambda items, label, total=None: items
        domain, _ = find_domains(self.features, topic, self.params.domains, self.params.seed, quiet)
        named = np.array([name is not None for name in names])
        rows = self.table.with_row_index("row").with_columns(
            topic=pl.Series(topic), domain=pl.Series(domain)
        )
        rows = each_picture_once(rows.filter(pl.Series((topic >= 0) & named[topic])))
        return Pool(
            rows["topic"].to_numpy(),
            rows["domain"].to_numpy(),
            names,
            rows["key"].to_list(),
            self.features[rows["row"].to_numpy()],
        )


def planted(count: int, seed: int) -> Captions:
    """`perf/scale.py`'s sentence vectors, and the topics that they were made in."""
    sys.path.insert(0, str(ROOT / "perf"))
    import scale

    truth = scale.plant(count, seed)
    made = scale.near_topics(truth, scale.SENTENCE, seed + 2, 0.9)
    vectors = np.concatenate([near for _, near in made]).astype(np.float16)[truth.like]
    points = distinct(vectors)
    return Captions(points, vectors[points.rows].astype(np.float32), truth.topic)


def figures(found: Found, true: np.ndarray) -> dict[str, Any]:
    """What is known of a clustering without names; agreement is over what is in a topic of both."""
    inside = (true >= 0) & (found.topic >= 0)
    both = true[inside], found.topic[inside]
    return {
        "way": found.way,
        "seed": found.seed,
        "topics": int(found.topic.max()) + 1,
        "in_one": float((found.before >= 0).mean()),
        "coverage": float((found.topic >= 0).mean()),
        "ari": adjusted_rand_score(*both),
        "nmi": normalized_mutual_info_score(*both),
        "seconds": found.seconds,
    }


def summary(rows: list[dict], agreed: list[dict]) -> pl.DataFrame:
    """A row a way: means over seeds (of what agrees between seeds: over pairs of these), and
    standard deviations as `…_sd`.
    """
    tables = []
    for table in (pl.DataFrame(rows).drop("seed"), pl.DataFrame(agreed)):
        names = [c for c in table.columns if c != "way"]
        means = [pl.col(n).mean() for n in names]
        spread = [pl.col(n).std().alias(f"{n}_sd") for n in names]
        tables.append(table.group_by("way", maintain_order=True).agg(*means, *spread))
    return tables[0].join(tables[1], on="way", how="left", maintain_order="left")


def worse(table: pl.DataFrame) -> dict[str, list[str]]:
    """Way → the figures of `JUDGED` that are lower than the reference's by more than both standard
    deviations together.
    """
    rows = {row["way"]: row for row in table.iter_rows(named=True)}
    known = [name for name in JUDGED if name in table.columns]
    spread = lambda way, name: rows[way][f"{name}_sd"] or 0.0
    return {
        way: [
            name
            for name in known
            if rows[REFERENCE][name] - row[name] > spread(way, name) + spread(REFERENCE, name)
        ]
        for way, row in rows.items()
        if way != REFERENCE
    }


def warm_up(captions: Captions, settings: Clustering, ways: Sequence[str]) -> None:
    """Compiles what compiles itself on first use."""
    few = captions.vectors[:WARM_UP]
    little = Captions(distinct(few), few, captions.true[:WARM_UP])
    clusterings(little, settings.model_copy(update={"min_cluster_size": 5}), ways, [0])


def main() -> None:
    cli = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    cli.add_argument("--ways", default=",".join(WAYS), help=f"{REFERENCE} among them (%(default)s)")
    cli.add_argument("--seeds", default="1,2,3", help="two at least (default: %(default)s)")
    cli.add_argument("--data", type=Path, default=ROOT / "data", help="the demo's artifacts")
    cli.add_argument("--params", type=Path, default=ROOT / "params.yaml")
    cli.add_argument("--planted", type=int, help="so many synthetic captions, instead of the demo")
    args = cli.parse_args()
    ways, seeds = args.ways.split(","), [int(seed) for seed in args.seeds.split(",")]
    if not set(ways) <= set(WAYS) or REFERENCE not in ways or len(seeds) < 2:
        cli.error(f"--ways are of {', '.join(WAYS)}, {REFERENCE} among them; --seeds are several")
    check_packages(ways)
    numba.set_num_threads(1)  # processor seconds are those of one thread
    params = load_params(args.params, READS)
    demo = None if args.planted else Demo(args.data, params)
    captions = demo.captions if demo else planted(args.planted, params.seed)
    warm_up(captions, params.topics, ways)
    found = clusterings(captions, params.topics, ways, seeds)
    rows = [
        figures(f, captions.true) | (demo.judged(f.topic) if demo else {})
        for f in progress(found, "names and tasks")
    ]
    table = summary(rows, between_seeds(found))
    spreads = [c for c in table.columns if c.endswith("_sd")]
    with pl.Config(tbl_rows=-1, tbl_cols=-1, tbl_width_chars=250, float_precision=4):
        print(table.drop(spreads), table.select("way", *spreads), sep="\n")
    told = {row.pop("way"): row for row in table.iter_rows(named=True)}
    print(json.dumps({"captions": len(captions.true), "ways": told, "worse": worse(table)}))


if __name__ == "__main__":
    main()
