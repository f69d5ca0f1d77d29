"""`auto` against what people usually take, on pictures in styles that no shot shows; and how long
`gram adapt` takes.

    python perf/adapt.py --start data/starts/coop_gram
    python perf/adapt.py --folder office/amazon --test office/dslr --backbone B --template "a {}."

Accuracy at 1, 2, 4, 8 and 16 pictures per class over draws, on the demo's `broad`, `animals` and
`things` (data/world/*.zip; tests in the styles that training pictures do not have), or on one's own
folders. Alternatives: zero-shot; scikit-learn's logistic regression on the same features with C by
cross-validation; a cache in Tip-Adapter's manner, its two numbers at the published defaults; CoOp.

The last line is JSON: ratio_best, the mean over settings (benchmark × shots) of `auto`'s mean
accuracy over that of the alternative that is best there; its 95% interval over draws and settings;
seconds of a whole `gram adapt` process of 10 classes × 16 pictures, as it passed and of processors
(null with --folder). Features are made once a benchmark; a draw costs the tunings of its folds.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
import warnings
import zipfile
from collections import defaultdict
from pathlib import Path

import numpy as np
import torch
from sklearn.linear_model import LogisticRegressionCV

from gram.choice import choose
from gram.collection import read_collection
from gram.looking import all_opened, features_of_views, opened, test_features
from gram.methods import METHODS, VIEWS, candidates, unmeasured
from gram.prompted import Seen, Task, features_of, logits_of, matrix_logits
from pipeline.benchmarks.reader import read_samples
from pipeline.clip.backbone import load_backbone
from pipeline.pictures import Pictures
from pipeline.prompts.starts import load_start

DEMO = ("broad", "animals", "things")
FIXED = ("zero-shot", "logistic", "cache", "coop")


def from_zip(path, backbone, seed):
    """names, the training part and its labels, tests in other styles and theirs."""
    pictures = Pictures(path)
    table = read_samples(pictures).to_pylist()
    train = [row for row in table if row["split"] == "train"]
    shown = {row["domain"] for row in train}
    test = [row for row in table if row["split"] == "test" and row["domain"] not in shown]
    names = [name for _, name in sorted({(row["label"], row["name"]) for row in table})]

    def labels(rows):
        return np.array([row["label"] for row in rows], dtype=np.int64)

    def files(rows):
        return [row["file"] for row in rows]

    return (
        names,
        (training(backbone, pictures.read, files(train), seed), labels(train)),
        (testing(backbone, pictures.read, files(test)), labels(test)),
    )


def training(backbone, read, files, seed):
    """Centres and augmented views, once for all draws."""
    features = features_of_views(backbone, all_opened(read, files), VIEWS, seed)
    return Seen(features, lambda i: opened(files[i], lambda: read(files[i])))


def testing(backbone, read, files):
    features = test_features(backbone, all_opened(read, files))
    return Seen(features[:, None], lambda i: opened(files[i], lambda: read(files[i])))


def from_folders(folder, test, backbone, seed):
    """The same from two folders of class/picture."""
    train, other = read_collection(folder), read_collection(test)
    assert train.names == other.names, "the two folders have other classes"
    return (
        train.names,
        (training(backbone, train.read, train.files, seed), train.targets),
        (testing(backbone, other.read, other.files), other.targets),
    )


def logistic(task, seen, labels, test):
    """C by cross-validation where every class has two pictures, 1 otherwise."""
    least = np.bincount(labels).min()
    folds = min(5, least)
    grid = np.logspace(-2, 4, 7)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if folds > 1:
            made = LogisticRegressionCV(Cs=grid, cv=folds, max_iter=1000)
        else:
            from sklearn.linear_model import LogisticRegression

            made = LogisticRegression(C=1.0, max_iter=1000)
        return made.fit(centres(seen), labels).predict(centres(test))


def centres(seen):
    return seen.features[:, 0].numpy()


def cache(task, seen, labels, test, alpha=1.0, beta=5.5):
    """logits + α · exp(−β (1 − cosine)) · one-hot labels."""
    zero_shot = METHODS["zero-shot"](task, seen, torch.from_numpy(labels)).matrix
    features = test.features[:, 0]
    nearness = torch.exp(-beta * (1 - features @ seen.features[:, 0].T))
    votes = nearness @ torch.eye(len(task.names))[torch.from_numpy(labels)]
    return (matrix_logits(task.backbone, zero_shot, features) + alpha * votes.numpy()).argmax(
        axis=1
    )


def by_method(task, method, seen, labels, test):
    learned = METHODS[method](task, seen, torch.from_numpy(labels))
    return logits_of(task, learned, features_of(task, learned, test)).argmax(axis=1)


def auto(task, seen, labels, test):
    """As `gram adapt` chooses, with five folds or as many as there are pictures of a class."""
    tried = candidates(task.start)
    folds = min(5, np.bincount(labels).min())
    if folds > 1:
        method = choose(task, tried, seen, labels, folds).method
    else:
        method = unmeasured(task.start)
    return by_method(task, method, seen, labels, test), method


def one_draw(task, train, test, shots, draw):
    """{what: accuracy}, and the method that `auto` took."""
    (seen, labels), (tests, truth) = train, test
    rng = np.random.default_rng([draw, shots])
    rows = np.concatenate(
        [rng.permutation(np.flatnonzero(labels == k))[:shots] for k in range(len(task.names))]
    )
    given = (task, seen[rows], labels[rows], tests)
    guessed, method = auto(*given)
    found = {"auto": guessed, "logistic": logistic(*given), "cache": cache(*given)}
    found |= {m: by_method(task, m, *given[1:]) for m in ("zero-shot", "coop")}
    return {name: float((g == truth).mean()) for name, g in found.items()}, method


def interval(accuracies):
    """The mean ratio over settings, and its percentile interval over draws of each setting."""
    rng = np.random.default_rng(0)

    def ratio(rows):
        return np.mean(rows["auto"]) / max(np.mean(rows[name]) for name in FIXED)

    def resampled(rows):
        drawn = rng.integers(len(rows["auto"]), size=len(rows["auto"]))
        return {name: np.array(values)[drawn] for name, values in rows.items()}

    means = [np.mean([ratio(resampled(r)) for r in accuracies.values()]) for _ in range(2000)]
    return np.mean([ratio(r) for r in accuracies.values()]), np.quantile(means, [0.025, 0.975])


def seconds_of_adapt(path, backbone, start):
    """Seconds of a whole process for 10 classes × 16 pictures: passed, and of processors."""
    with tempfile.TemporaryDirectory() as folder, zipfile.ZipFile(path) as packed:
        own, counts = Path(folder) / "own", defaultdict(int)
        for name in sorted(packed.namelist()):
            part, *_, class_, file = name.split("/")
            if part != "train" or (class_ not in counts and len(counts) == 10):
                continue
            if counts[class_] < 16:
                counts[class_] += 1
                (own / class_).mkdir(parents=True, exist_ok=True)
                (own / class_ / f"{counts[class_]}-{file}").write_bytes(packed.read(name))
        command = [sys.executable, "-m", "gram", "adapt", own, "--out", Path(folder) / "m"]
        began = time.perf_counter()
        subprocess.run(
            [*map(str, command), "--backbone", backbone, *(["--start", start] if start else [])],
            check=True,
            stdout=subprocess.DEVNULL,
        )
        used = resource.getrusage(resource.RUSAGE_CHILDREN)
        return time.perf_counter() - began, used.ru_utime + used.ru_stime


def main():
    cli = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    cli.add_argument("--backbone", default="demo/backbone")
    cli.add_argument("--start", help="folder of a meta-learned start")
    cli.add_argument("--data", type=Path, default=Path("data/world"), help="the demo's zips")
    cli.add_argument("--folder", type=Path, help="own pictures instead: class/picture")
    cli.add_argument("--test", type=Path, help="own test pictures")
    cli.add_argument("--template", default="a photo of a {}.")
    cli.add_argument("--shots", type=int, nargs="+", default=[1, 2, 4, 8, 16])
    cli.add_argument("--draws", type=int, default=5)
    args = cli.parse_args()
    torch.set_num_threads(1)
    backbone = load_backbone(args.backbone)
    start = load_start(Path(args.start)) if args.start else None
    accuracies = {}
    for name in [args.folder.name] if args.folder else DEMO:
        names, train, test = (
            from_folders(args.folder, args.test, backbone, 1)
            if args.folder
            else from_zip(args.data / f"{name}.zip", backbone, 1)
        )
        task = Task(backbone, tuple(names), args.template, start, 1)
        for shots in args.shots:
            rows, taken = defaultdict(list), []
            for draw in range(args.draws):
                found, method = one_draw(task, train, test, shots, draw)
                taken.append(method)
                for what, accuracy in found.items():
                    rows[what].append(accuracy)
            accuracies[name, shots] = rows
            told = ", ".join(f"{what} {100 * np.mean(v):.1f}" for what, v in rows.items())
            print(f"{name}, {shots} shots: {told}; took {', '.join(taken)}", flush=True)
    ratio, (low, high) = interval(accuracies)
    seconds, used = (
        (None, None)
        if args.folder
        else seconds_of_adapt(args.data / "animals.zip", args.backbone, args.start)
    )
    print(
        json.dumps(
            {
                "ratio_best": round(float(ratio), 4),
                "interval": [round(float(low), 4), round(float(high), 4)],
                "shots": args.shots,
                "draws": args.draws,
                "seconds": seconds and round(seconds, 1),
                "processor_seconds": used and round(used, 1),
            }
        )
    )


if __name__ == "__main__":
    main()
