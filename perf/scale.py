"""The stages from captions to episodes, run on synthetic artifacts of any size.

    python perf/scale.py --rows 100000
    python perf/scale.py --rows 3100000 --stages captions index filter label domains episodes

Makes, in the stages' own schemas, what is fetched or computed by a neural network: a table of
captions, shards of one-pixel pictures, CLIP features and sentence embeddings. A fifth of the pairs
is in no topic; the others are in topics of heavy-tailed sizes, each in four styles. Planted are
captions that repeat, pictures that are almost an earlier one, and captions of another picture.
Then it runs the stages with the paper's profile, each in a process of its own, and prints wall
clock, processor seconds, the peak of resident memory (the kernel's, of that process), and how far
what was planted was found. The profile's tasks are drawn in proportion, all of them at 3.1 million
rows; `filter.min_side` is 1, and `label.edits` a file without edits.

`download`, `features` and `embed` are not run: a network's and two neural networks' time, which
grow with the rows and nothing else. Where `topics` is not among `--stages`, the stages behind it
read the topics that were planted. What was made for `--rows` stays in `--out`, so that stages can
be run one by one; `--beside` is the folder of a smaller run, to print how the seconds grow.
`--kill` runs stages that have run once more, and kills them (SIGKILL) each time that a process has
used `--kill-every` of the seconds that they took: it says what each kill cost, as a share of what
had been done, and whether the result has the same bytes. `--exact-copies` looks for all copies of
that share of the pictures by plain products with all of them, and says what the cells of `filter`
find of these, and in which part of the time.

The last line is JSON: rows; peak_gib, the highest peak of a stage; hours of the processor in all;
ratio_memory, that peak over the bytes of the vectors that the stages read; and each stage's own.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import os
import shutil
import signal
import sys
import tarfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from math import inf
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import numpy as np  # noqa: E402
import polars as pl  # noqa: E402
from PIL import Image  # noqa: E402
from ruamel.yaml import YAML  # noqa: E402
from sklearn.metrics import adjusted_rand_score, normalized_mutual_info_score  # noqa: E402

from pipeline.artifacts import numbered, to_vectors, write_json, write_table  # noqa: E402
from pipeline.clustering.schemas import TOPICS, sentences_schema  # noqa: E402
from pipeline.neighbours import BLOCK, close_rows  # noqa: E402
from pipeline.pairs.noise import COPY_ROWS  # noqa: E402
from pipeline.pairs.reading import read_features  # noqa: E402
from pipeline.pairs.schemas import FETCHED, features_schema  # noqa: E402
from pipeline.world.concepts import load_concepts  # noqa: E402

SENTENCE, FEATURE = 384, 512  # dimensions of MiniLM and of CLIP ViT-B/16
SHARD, SENTENCES = 10_000, 20_000  # rows of a shard of pictures, and of sentence embeddings
STYLES = 4
OUTSIDE, REPEATED, COPIED, WRONG = 0.2, 0.07, 0.02, 0.1  # shares of the rows
OF_THE_PAPER = 3_100_000  # rows
STAGES = {
    "captions": {"out": "captions.parquet"},
    "index": {"captions": "captions.parquet", "shards": "shards", "out": "pairs.parquet"},
    "filter": {"pairs": "pairs.parquet", "features": "features", "out": "kept.parquet"},
    "topics": {"sentences": "sentences", "reduced": "reduced.parquet", "out": "topics.parquet"},
    "label": {"kept": "kept.parquet", "topics": "topics.parquet", "clusters": "clusters.parquet"}
    | {"out": "labels.parquet"},
    "domains": {"clusters": "clusters.parquet", "features": "features", "out": "domains.parquet"},
    "episodes": {"domains": "domains.parquet", "labels": "labels.parquet", "features": "features"}
    | {"pairs": "pairs.parquet", "shards": "shards", "out": "episodes"},
}
PLACES = ("on a beach", "in the snow", "on a table", "under a tree", "in the city", "at a market")


@dataclass(frozen=True)
class Planted:
    """What is true of n rows, which are numbered as their keys are sorted.

    Attributes:
        key: 16 hex digits. topic: −1 outside. style: 0 to 3. like: the row whose caption it
        repeats, or itself. copy: the row whose picture it almost is, or itself. wrong: whether the
        caption is another picture's.
    """

    key: np.ndarray
    topic: np.ndarray
    style: np.ndarray
    like: np.ndarray
    copy: np.ndarray
    wrong: np.ndarray


def plant(rows: int, seed: int) -> Planted:
    rng = np.random.default_rng(seed)
    key = np.unique(rng.integers(2**62, size=rows + 1000))[:rows]  # sorted; equal ones are unlikely
    share = rng.pareto(1.5, max(4, rows // 400)) + 0.5
    topic = rng.choice(len(share), rows, p=share / share.sum())
    topic[rng.random(rows) < OUTSIDE] = -1
    own = np.arange(rows)
    before = (rng.random(rows) * own).astype(int)  # any row that comes earlier
    like = np.where(rng.random(rows) < REPEATED, before, own)
    copy = np.where(rng.random(rows) < COPIED, before, own)
    style, wrong = rng.integers(STYLES, size=rows), rng.random(rows) < WRONG
    like, copy = like[like], copy[copy]  # of what repeats a repeat: the row itself
    first = like == own  # what repeats, repeats a caption that itself is said once
    like = np.where(first[like], like, own)
    copy = np.where((copy == own)[copy], copy, own)
    return Planted(np.array([f"{k:016x}" for k in key]), topic[like], style, like, copy, wrong)


def captions(planted: Planted, seed: int) -> list[str]:
    """A topic's captions share two nouns; beside them stand a third, a place, a word that is the
    rarer the later it came (a third of the captions), and a number that makes them differ.
    """
    rng, n = np.random.default_rng(seed), len(planted.key)
    nouns = sorted({c.name for c in load_concepts(ROOT / "demo" / "concepts.yaml")})
    topic = planted.topic.astype(np.int64)
    first, second, third = rng.integers(len(nouns), size=(3, n))
    first = np.where(topic >= 0, topic % len(nouns), first).tolist()
    second = np.where(topic >= 0, (7 * topic + topic // len(nouns)) % len(nouns), second).tolist()
    places = rng.integers(len(PLACES), size=n).tolist()
    rare = np.minimum(rng.zipf(1.3, n), int(20 * n**0.5)).tolist()
    return [
        f"{nouns[a]} {nouns[b]} and {nouns[c]} {PLACES[place]} {_word(r)}{row}"
        for row, (a, b, c, place, r) in enumerate(
            zip(first, second, third.tolist(), places, rare, strict=True)
        )
    ]


def _word(number: int) -> str:
    """A made-up word, none for the commonest."""
    letters = ""
    while number > 1:
        number, letter = divmod(number, 26)
        letters += chr(97 + letter)
    return f"q{letters}x " if letters else ""


def unit(x: np.ndarray) -> np.ndarray:
    return x / np.linalg.norm(x, axis=1, keepdims=True)


def noise(rng: np.random.Generator, count: int, dim: int) -> np.ndarray:
    """(count, dim) random rows of about unit length."""
    return rng.standard_normal((count, dim), dtype=np.float32) / np.float32(dim**0.5)


def near_topics(
    planted: Planted, dim: int, seed: int, spread: float
) -> Iterator[tuple[slice, np.ndarray]]:
    """Rows of SHARD at a time, and their (b, dim) directions: near their topic's, or anywhere."""
    rng, n = np.random.default_rng(seed), len(planted.key)
    centres = unit(noise(rng, int(planted.topic.max()) + 1, dim))
    for start in range(0, n, SHARD):
        rows = slice(start, min(start + SHARD, n))
        made = noise(rng, rows.stop - start, dim)
        inside = planted.topic[rows] >= 0
        made[inside] = centres[planted.topic[rows][inside]] + spread * made[inside]
        yield rows, unit(made)


def write_captions(planted: Planted, out: Path, seed: int) -> None:
    """The table in an order of its own."""
    said = captions(planted, seed)
    order = np.random.default_rng(seed).permutation(len(said))
    key, like = planted.key.tolist(), planted.like.tolist()
    with open(out / "source" / "captions.tsv", "w", encoding="utf-8") as table:
        for row in order.tolist():
            table.write(f"{said[like[row]]}\thttps://host{row % 997}.test/{row}.jpg\t{key[row]}\n")


def write_pictures(planted: Planted, out: Path) -> None:
    """Shards of one-pixel JPEGs, each with its number in a comment, so that no two are one file."""
    buffer = io.BytesIO()
    Image.new("RGB", (1, 1), (200, 100, 50)).save(buffer, "JPEG")
    pixel = buffer.getvalue()
    for start in range(0, len(planted.key), SHARD):
        with tarfile.open(out / "shards" / f"{start // SHARD:05d}.tar", "w") as tar:
            for row, key in enumerate(planted.key[start : start + SHARD].tolist(), start):
                comment = row.to_bytes(8, "big")
                content = pixel[:2] + b"\xff\xfe\x00\x0a" + comment + pixel[2:]
                member = tarfile.TarInfo(f"{key}.jpg")
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
    table = pl.DataFrame({"key": planted.key}).with_columns(status=pl.lit("success"), error=None)
    write_table(table.to_arrow(), out / "shards" / "fetched.parquet", FETCHED)


def write_features(planted: Planted, out: Path, seed: int) -> None:
    """Pictures near their topic and style, captions near their picture or, wrong, near none."""
    rng, n = np.random.default_rng(seed), len(planted.key)
    styles = unit(noise(rng, STYLES, FEATURE))
    kept, own, parts = np.empty((n, FEATURE), np.float16), np.arange(n), -(-n // SHARD)
    for shard, (rows, near) in enumerate(near_topics(planted, FEATURE, seed + 1, 0.5)):
        image = unit(near + 0.8 * styles[planted.style[rows]])
        copied = planted.copy[rows] != own[rows]
        earlier = kept[planted.copy[rows][copied]].astype(np.float32)
        within = planted.copy[rows][copied] >= rows.start  # of this very shard
        earlier[within] = image[planted.copy[rows][copied][within] - rows.start]
        image[copied] = unit(earlier + 0.1 * noise(rng, len(earlier), FEATURE))
        kept[rows] = image
        right = np.where(planted.wrong[rows, None], np.float32(0), image)
        text = unit(right + 0.8 * noise(rng, len(image), FEATURE))
        table = pl.DataFrame({"key": planted.key[rows]}).to_arrow()
        for name, vectors in (("image", image), ("text", text)):
            table = table.append_column(name, to_vectors(vectors))
        schema = numbered(features_schema(FEATURE), shard, parts)
        write_table(table, out / "features" / f"{shard:05d}.parquet", schema)


def write_sentences(planted: Planted, out: Path, seed: int) -> None:
    """Of the pairs that were kept; captions that repeat have one vector, in one shard."""
    kept = pl.read_parquet(out / "kept.parquet", columns=["kept"])["kept"].to_numpy()
    vectors = np.empty((len(planted.key), SENTENCE), np.float16)
    for rows, near in near_topics(planted, SENTENCE, seed + 2, 0.9):
        vectors[rows] = near
    chosen = np.flatnonzero(kept)
    _, first, number = np.unique(planted.like[chosen], return_index=True, return_inverse=True)
    by_appearance = np.argsort(np.argsort(first))[number]
    shard = by_appearance // SENTENCES
    order = np.argsort(shard, kind="stable")
    for part, here in enumerate(np.split(chosen[order], np.cumsum(np.bincount(shard))[:-1])):
        table = pl.DataFrame({"key": planted.key[here]}).to_arrow()
        table = table.append_column("embedding", to_vectors(vectors[planted.like[here]]))
        schema = numbered(sentences_schema(SENTENCE), part, int(shard.max()) + 1)
        write_table(table, out / "sentences" / f"{part:05d}.parquet", schema)


def write_params(rows: int, fit_on: int | None, out: Path) -> None:
    yaml = YAML()
    params = yaml.load((ROOT / "profiles" / "paper.yaml").read_text())
    params["source"] |= {"path": str(out / "source"), "table": "captions.tsv"}
    params["source"]["columns"] = ["caption", "url", "key"]
    params["filter"]["min_side"] = 1
    params["label"]["edits"] = str(out / "edits.yaml")
    tasks = params["episodes"]["shifted"]["tasks"] * min(1, rows / OF_THE_PAPER)
    params["episodes"]["shifted"]["tasks"] = max(100, round(tasks))
    if fit_on:
        params["topics"]["fit_on"] = fit_on
    yaml.dump(params, out / "params.yaml")
    (out / "edits.yaml").write_text("merge: {}\nrename: {}\ndrop: []\n")


MARK = ".scale"  # file of a folder that this script made, and may remove


def make(rows: int, seed: int, out: Path) -> Planted:
    """All that does not depend on a stage; what is there for the same rows and seed stays."""
    planted, mark = plant(rows, seed), out / f"made-{rows}-{seed}"
    if not mark.exists():
        if out.exists() and any(out.iterdir()) and not (out / MARK).is_file():
            sys.exit(f"scale: {out} holds something else; choose another --out")
        shutil.rmtree(out, ignore_errors=True)
        out.mkdir(parents=True)
        (out / MARK).touch()
        for folder in ("source", "shards", "features", "sentences"):
            (out / folder).mkdir(parents=True)
        write_captions(planted, out, seed)
        write_pictures(planted, out)
        write_features(planted, out, seed)
        mark.touch()
    return planted


@dataclass(frozen=True)
class Used:
    """Seconds by the clock and of the processor, and the peak of resident memory in GiB."""

    wall: float
    processor: float
    gib: float


def peak(process: int) -> float:
    """GiB of resident memory at most so far; 0 for a process that has ended. The kernel counts it
    anew for each program, while rusage starts with the peak of whoever started it.
    """
    try:
        status = Path(f"/proc/{process}/status").read_text()
    except OSError:
        return 0.0
    found = [line.split()[1] for line in status.splitlines() if line.startswith("VmHWM")]
    return int(found[0]) / 2**20 if found else 0.0


def words_of(stage: str, out: Path) -> list[str]:
    words = [sys.executable, str(ROOT / "stages" / f"{stage}.py")]
    words += ["--params", str(out / "params.yaml"), "--metrics", str(out / f"{stage}.json")]
    words += ["--name", "shifted"] if stage == "episodes" else []
    for name, value in STAGES[stage].items():
        words += [f"--{name}", str(out / value)]
    return words


def spent(process: int) -> float:
    """Processor seconds of a process so far, all its threads."""
    try:
        user, system = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[11:13]
    except OSError:
        return 0.0
    return (int(user) + int(system)) / os.sysconf("SC_CLK_TCK")


def watched(stage: str, out: Path, most_seconds: float = inf) -> tuple[bool, Used]:
    """Whether a stage ended before it had used so many processor seconds (else it is killed), and
    what it used.
    """
    words, began, most = words_of(stage, out), time.perf_counter(), 0.0
    child, killed = os.posix_spawn(words[0], words, os.environ), False
    while True:
        most = max(most, peak(child))
        ended, status, used = os.wait4(child, os.WNOHANG)
        if ended:
            break
        if not killed and spent(child) > most_seconds:
            os.kill(child, signal.SIGKILL)
            killed = True
        time.sleep(0.05)
    if status and not killed:
        sys.exit(f"scale: {stage} failed")
    return not status, Used(time.perf_counter() - began, used.ru_utime + used.ru_stime, most)


def run(stage: str, out: Path) -> Used:
    return watched(stage, out)[1]


def killed_on_the_way(stage: str, share: float, out: Path) -> dict[str, float]:
    """Runs a stage once more, killed each time that a process has used `share` of the `whole` run's
    processor seconds; `lost`: what each kill cost, as a share of what had been done by then.
    """
    whole = json.loads((out / "used.json").read_text())["stages"][stage]["processor"]
    result = out / STAGES[stage]["out"]
    before = digest(result)
    shutil.rmtree(result) if result.is_dir() else result.unlink()
    kills, total, ended = 0, 0.0, False
    while not ended:
        ended, used = watched(stage, out, share * whole)
        total, kills = total + used.processor, kills + (not ended)
    done = share * whole * kills * (kills + 1) / 2
    return {
        "whole": whole,
        "killed": kills,
        "in all": total,
        "lost": (total - whole) / done if kills else 0.0,
        "same bytes": digest(result) == before,
    }


def digest(path: Path) -> str:
    """SHA-256 of a file, or of all files of a folder with their names."""
    found = hashlib.sha256()
    for file in sorted(f for f in path.rglob("*") if f.is_file()) if path.is_dir() else [path]:
        found.update(f"|{file.relative_to(path)}|".encode() + file.read_bytes())
    return found.hexdigest()


def plant_topics(planted: Planted, out: Path) -> None:
    """What `topics` would write if it found what was planted."""
    kept = pl.read_parquet(out / "kept.parquet", columns=["kept"])["kept"].to_numpy()
    topic = planted.topic[kept]
    table = pl.DataFrame({"key": planted.key[kept], "topic": topic}).with_columns(
        strength=pl.lit(1.0)
    )
    write_table(table.to_arrow(), out / "topics.parquet", TOPICS)


def found_by(stage: str, planted: Planted, out: Path) -> dict[str, float]:
    """How far a stage found what was planted."""
    rows_of = pl.DataFrame({"key": planted.key, "row": np.arange(len(planted.key))})

    def read(name: str) -> pl.DataFrame:
        return pl.read_parquet(out / name).join(rows_of, on="key", maintain_order="left")

    if stage == "filter":
        kept = read("kept.parquet")
        dropped, wrong = (kept["reason"] == "mismatch").to_numpy(), planted.wrong
        copies = (planted.copy != np.arange(len(wrong))) & ~dropped & ~dropped[planted.copy]
        both = kept["kept"].to_numpy() & kept["kept"].to_numpy()[planted.copy]
        return {
            "wrong captions dropped": float(dropped[wrong].mean()),
            "copies of what passes found": float(1 - both[copies].mean()),
        }
    if stage == "topics":
        topics = read("topics.parquet")
        true, found = planted.topic[topics["row"].to_numpy()], topics["topic"].to_numpy()
        both = (true >= 0) & (found >= 0)
        return {
            "topics (ARI)": adjusted_rand_score(true[both], found[both]),
            "topics (NMI)": normalized_mutual_info_score(true[both], found[both]),
            "of the planted in a topic": float((found >= 0)[true >= 0].mean()),
            "topics found": float(found.max() + 1),
            "topics planted": float(len(np.unique(true)) - 1),
        }
    if stage == "domains":
        domains = read("domains.parquet").filter(pl.col("domain") >= 0)
        domains = domains.with_columns(style=planted.style[domains["row"].to_numpy()])
        found = [
            normalized_mutual_info_score(of["style"], of["domain"])
            for _, of in domains.group_by("topic", maintain_order=True)
        ]
        return {"styles in domains (NMI)": float(np.mean(found))}
    return {}


def pairs_found(queries: np.ndarray, search) -> tuple[np.ndarray, float]:
    """(p, 2) whatever `search` finds for rows of float32 `queries`, and its processor seconds."""
    found, began = [], time.process_time()
    for start in range(0, len(queries), COPY_ROWS):
        near = search(queries[start : start + COPY_ROWS])
        found.append(near + np.array([start, 0]))
    return np.concatenate(found), time.process_time() - began


def copies_beside_exact(share: float, out: Path, seed: int) -> dict[str, float]:
    """What the cells find of all copies of a share of the pictures that the score let pass; seconds
    are of the processor, those of searches for all pictures, by the share.
    """
    asked = YAML(typ="safe").load((out / "params.yaml").read_text())["filter"]
    least, recall = asked["duplicate_similarity"], asked["recall"]
    reasons = pl.read_parquet(out / "kept.parquet", columns=["reason"])["reason"]
    passed = reasons.is_in(["", "same file", "near duplicate"]).to_numpy()
    image = read_features(out / "features", texts=False).image[passed]
    count = round(share * len(image))
    rows, began = np.random.default_rng(seed).choice(len(image), count, False), time.process_time()
    index = close_rows(image, least, recall, 0)
    rows = rows[np.argsort(index.cell[rows], kind="stable")]  # cell by cell, as the filter does
    made = time.process_time() - began
    queries = image[rows].astype(np.float32)

    def in_cells(block: np.ndarray) -> np.ndarray:
        limits, _, near = index.range_search(block, least)
        return np.stack([np.repeat(np.arange(len(block)), np.diff(limits)), near], axis=1)

    def exactly(block: np.ndarray) -> np.ndarray:
        found = [
            np.argwhere(block @ image[start : start + BLOCK].astype(np.float32).T > least)
            + np.array([0, start])
            for start in range(0, len(image), BLOCK)
        ]
        return np.concatenate(found)

    (cells, quick), (true, slow) = (pairs_found(queries, by) for by in (in_cells, exactly))
    numbers = [p[:, 0] * len(image) + p[:, 1] for p in (cells, true)]
    own = rows + np.arange(count) * len(image)
    cells, true = (np.setdiff1d(p, own) for p in numbers)
    quick, slow = made + quick * len(image) / count, slow * len(image) / count
    return {
        "pictures": len(image),
        "searched": count,
        "copies": len(true),
        "of them found": float(np.isin(true, cells).mean()),
        "wrongly found": int((~np.isin(cells, true)).sum()),
        "seconds in cells": quick,
        "seconds exactly": slow,
        "ratio": quick / slow,
    }


def exponents(rows: int, used: dict[str, Used], beside: Path) -> dict[str, float]:
    """b of processor seconds ∝ rowsᵇ between two runs."""
    told = json.loads((beside / "used.json").read_text())
    return {
        stage: float(np.log(u.processor / told["stages"][stage]["processor"]))
        / float(np.log(rows / told["rows"]))
        for stage, u in used.items()
        if stage in told["stages"]
    }


def main() -> None:
    cli = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    cli.add_argument("--rows", type=int, default=100_000)
    cli.add_argument("--seed", type=int, default=1)
    cli.add_argument("--out", type=Path, default=ROOT / "data" / "perf" / "scale")
    cli.add_argument("--stages", nargs="*", choices=STAGES, default=list(STAGES))
    cli.add_argument("--fit-on", type=int, help="topics.fit_on, if not the profile's")
    cli.add_argument("--beside", type=Path, help="the --out of a smaller run")
    cli.add_argument("--kill", nargs="*", choices=STAGES, default=[], help="stages that have run")
    cli.add_argument("--kill-every", type=float, default=0.4, help="share of the stage's seconds")
    cli.add_argument("--exact-copies", type=float, help="share of the pictures, 0 to 1")
    args = cli.parse_args()
    out = args.out.resolve()
    os.chdir(ROOT)
    planted = make(args.rows, args.seed, out)
    write_params(args.rows, args.fit_on, out)
    told = out / "used.json"
    before = json.loads(told.read_text())["stages"] if told.exists() else {}
    used = {stage: Used(**figures) for stage, figures in before.items()}
    for stage in (stage for stage in STAGES if stage in args.stages):
        if stage == "topics" and not any((out / "sentences").iterdir()):
            write_sentences(planted, out, args.seed)
        if stage == "label" and "topics" not in args.stages:
            plant_topics(planted, out)
        used[stage] = run(stage, out)
        write_json({"rows": args.rows, "stages": {s: asdict(u) for s, u in used.items()}}, told)
        figures = {name: round(value, 2) for name, value in asdict(used[stage]).items()}
        found = found_by(stage, planted, out)
        print(stage, figures, {k: round(v, 4) for k, v in found.items()}, flush=True)
    for stage in args.kill:
        told_of = killed_on_the_way(stage, args.kill_every, out)
        print(stage, "killed", {k: round(v, 3) for k, v in told_of.items()}, flush=True)
    if args.exact_copies:
        beside = copies_beside_exact(args.exact_copies, out, args.seed)
        print("copies beside exact", {k: round(v, 4) for k, v in beside.items()}, flush=True)
    if args.beside:
        grown = exponents(args.rows, used, args.beside)
        print("seconds grow with rows to the power of", {k: round(v, 2) for k, v in grown.items()})
    most = max(u.gib for u in used.values())
    vectors = args.rows * 2 * (2 * FEATURE + SENTENCE) / 2**30
    hours = sum(u.processor for u in used.values()) / 3600
    print(
        json.dumps(
            {"rows": args.rows, "peak_gib": round(most, 3), "hours": round(hours, 4)}
            | {"ratio_memory": round(most / vectors, 3)}
            | {"stages": {s: [round(u.processor, 1), round(u.gib, 2)] for s, u in used.items()}}
        )
    )


if __name__ == "__main__":
    main()
