"""Base to new, few-shot, cross-domain and cross-dataset: what is tuned, where it is judged, and
by which head.
"""

import json
import subprocess
import sys

import numpy as np
import open_clip
import polars as pl
import pytest
import torch
from conftest import ROOT, with_values
from PIL import Image
from pydantic import ValidationError

from pipeline.benchmarks.cache import exam_of, few_shots, samples_of
from pipeline.benchmarks.evaluation import judge, judge_source
from pipeline.benchmarks.headline import headline
from pipeline.benchmarks.params import Protocols, Rates, sgd_of
from pipeline.benchmarks.protocols import exams_of, runs_of
from pipeline.clip.backbone import load_backbone
from pipeline.errors import InputError
from pipeline.prompts import METHODS
from pipeline.prompts.template import Template
from pipeline.prompts.tuned import load_tuned, save_tuned, tuned_path
from pipeline.schema import check

RATES = Rates(lr=0.8, warmup_lr=0.1, momentum=0.5, weight_decay=0.0)
BOTH = Protocols(
    base_to_new=[16],
    all_classes=[16, 4],
    cross_domain=["sketches"],
    cross_dataset=["pets", "sketches"],
)


def test_where_prompts_of_a_benchmark_are_judged():
    assert exams_of("photos", BOTH) == {
        "base": [("photos", "base"), ("photos", "new")],
        "all": [("photos", "all"), ("sketches", "all"), ("pets", "all")],
    }
    assert (
        exams_of("photos", Protocols(base_to_new=[1], all_classes=[]))["all"] == []
        and exams_of("photos", Protocols(base_to_new=[], all_classes=[1]))["base"] == []
    )


def test_what_is_tuned():
    assert runs_of(BOTH, [1, 2]) == [
        ("base", 16, 1),
        ("base", 16, 2),
        ("all", 16, 1),
        ("all", 16, 2),
        ("all", 4, 1),
        ("all", 4, 2),
    ]


@pytest.mark.parametrize(
    "entry, words",
    [
        ({"base_to_new": [], "all_classes": []}, "names no shots"),
        (
            {"base_to_new": [16], "all_classes": [], "cross_domain": ["a"]},
            "has targets, but no shots under 'all_classes'",
        ),
    ],
)
def test_protocols_that_make_no_sense(entry, words):
    with pytest.raises(ValidationError, match=words):
        Protocols(**entry)


@pytest.mark.parametrize(
    "changes, words",
    [
        (
            {"protocols.thing": {"base_to_new": [16], "all_classes": []}},
            "protocols.thing.base_to_new names 'thing', which is no entry of 'benchmarks'",
        ),
        (
            {"protocols.things.base_to_new": [8]},
            "protocols.things.base_to_new asks for 8 shots, but 'benchmarks.things.shots.base' "
            "does not list them",
        ),
        (
            {"protocols.broad.cross_domain": ["broad_skech"]},
            "protocols.broad.cross_domain names 'broad_skech'",
        ),
        ({"few_shot.seeds": [4]}, "few_shot.seeds has 4, which is none of 'few_shot.draws'"),
        ({"tuning.batch_of": {"cocop": 1}}, "tuning.batch_of names 'cocop'"),
        ({"tuning.lr_factor_of": {"unigram": 1}}, "tuning.lr_factor_of names 'unigram'"),
        (
            {"methods.zero_shot.coop": {}},
            "'coop' stands under methods.zero_shot and methods.direct",
        ),
        ({"study.shots": 2}, "study.benchmarks asks for 2 shots"),
    ],
)
def test_names_and_shots_must_fit_together(tmp_path, changes, words):
    with pytest.raises(InputError, match=words):
        check(with_values(tmp_path / "params.yaml", changes))


def rows(source, tuned_on, shots, seed, benchmark, head, right, wrong):
    return [
        (source, tuned_on, shots, seed, benchmark, head, i, 0, int(i >= right))
        for i in range(right + wrong)
    ]


def test_headline_figures_by_hand():
    """Seeds are averaged first, then benchmarks; H is of the averages; the largest number of
    shots counts.
    """
    table = pl.DataFrame(
        [
            *rows("a", "base", 16, 1, "a", "base", 3, 1),
            *rows("a", "base", 16, 2, "a", "base", 1, 3),
            *rows("a", "base", 16, 1, "a", "new", 1, 3),
            *rows("a", "base", 16, 2, "a", "new", 1, 3),
            *rows("b", "base", 16, 1, "b", "base", 2, 0),
            *rows("b", "base", 16, 2, "b", "base", 2, 0),
            *rows("b", "base", 16, 1, "b", "new", 1, 1),
            *rows("b", "base", 16, 2, "b", "new", 1, 1),
            *rows("a", "base", 4, 1, "a", "base", 0, 9),
            *rows("a", "all", 16, 1, "a", "all", 1, 0),
            *rows("a", "all", 16, 1, "c", "all", 1, 3),
            *rows("a", "all", 16, 1, "d", "all", 3, 1),
            *rows("a", "all", 4, 1, "c", "all", 4, 0),
        ],
        schema=[
            "source",
            "tuned_on",
            "shots",
            "seed",
            "benchmark",
            "head",
            "index",
            "label",
            "predicted",
        ],
        orient="row",
    )
    protocols = {
        "a": Protocols(
            base_to_new=[16, 4], all_classes=[16, 4], cross_domain=["c"], cross_dataset=["d", "c"]
        ),
        "b": Protocols(base_to_new=[16], all_classes=[]),
    }
    base, new = (50 + 100) / 2, (25 + 50) / 2
    assert headline(table, protocols) == pytest.approx(
        {
            "base": base,
            "new": new,
            "H": 2 * base * new / (base + new),
            "cross_domain": 25,
            "cross_dataset": 50,
        }
    )
    assert headline(table.filter(tuned_on="all"), protocols) == {
        "cross_domain": 25,
        "cross_dataset": 50,
    }


def test_tuned_tokens_read_back(tmp_path):
    epochs = [{"text": torch.full((2, 3), float(e)), "image": torch.zeros(1, 4)} for e in range(11)]
    path = tuned_path(tmp_path, "base", 16, 3)
    save_tuned(epochs, path, {"prompt": "joint", "depth": "1"})
    found, about = load_tuned(path)
    assert (
        [float(tokens["text"][0, 0]) for tokens in found] == list(range(11))
        and set(found[0]) == {"text", "image"}
        and about == {"prompt": "joint", "depth": "1"}
    )
    with pytest.raises(InputError, match="base-16-4.safetensors: missing"):
        load_tuned(tuned_path(tmp_path, "base", 16, 4))


CLASSES = ["ant", "bee", "cat", "dog", "elk"]  # base: the first three


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """Two small benchmarks that the stage has read: pictures in two domains, and a test-only one
    of other classes.
    """
    top, random = tmp_path_factory.mktemp("world"), np.random.default_rng(0)
    names = [f"train/photo/{c}/{i}.png" for c in CLASSES for i in range(5)] + [
        f"test/{d}/{c}/{i}.png" for d in ("photo", "sketch") for c in CLASSES for i in range(4)
    ]
    names += [f"other/test/x/{c}/{i}.png" for c in ("dog", "yak", "zebu") for i in range(3)]
    for name in names:
        path = top / "pictures" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(
            random.integers(0, 255, (12, 12, 3), dtype=np.uint8).repeat(6, 0).repeat(6, 1)
        ).save(path)
    (top / "pictures" / "whole").mkdir()
    for part in ("train", "test"):
        (top / "pictures" / part).rename(top / "pictures" / "whole" / part)
    whole = str(top / "pictures" / "whole")
    changes = {
        "benchmarks": {
            "whole": {"path": whole, "shots": {"base": [2, 8], "all": [2]}},
            "sketches": {"path": whole, "domains": ["sketch"]},
            "others": {"path": str(top / "pictures" / "other")},
        },
        "templates": {
            "whole": "a photo of a {}.",
            "sketches": "a drawing of a {}.",
            "others": "a photo of a {}.",
        },
        "protocols": {
            "whole": {
                "base_to_new": [2],
                "all_classes": [2],
                "cross_domain": ["sketches"],
                "cross_dataset": ["others"],
            }
        },
        "few_shot.draws": [1, 2],
        "few_shot.seeds": [1, 2],
        "few_shot.epochs": 2,
        "evaluate.curve_epochs": [1, 9],
    }
    with_values(top / "params.yaml", changes)
    for name in ("whole", "sketches", "others"):
        done = stage(top, "benchmark", "--name", name, "--out", top / "benchmarks" / name)
        assert done.returncode == 0, done.stderr
    return top


def stage(top, script, *arguments):
    return subprocess.run(
        [
            sys.executable,
            f"stages/{script}.py",
            "--params",
            str(top / "params.yaml"),
            *map(str, arguments),
        ],
        check=False,
        cwd=ROOT,
        capture_output=True,
        text=True,
    )


@pytest.fixture(scope="module")
def backbone():
    return load_backbone(ROOT / "demo" / "backbone")


def test_heads_hold_their_own_names_only(world):
    samples = samples_of(world / "benchmarks" / "whole")
    assert {head: exam_of(samples, head).names for head in ("base", "new", "all")} == {
        "base": CLASSES[:3],
        "new": CLASSES[3:],
        "all": CLASSES,
    }
    assert {
        head: (len(exam_of(samples, head).index), exam_of(samples, head).labels.max())
        for head in ("base", "new", "all")
    } == {"base": (24, 2), "new": (16, 1), "all": (40, 4)}
    sketches = exam_of(samples_of(world / "benchmarks" / "sketches"), "all")
    assert sketches.names == CLASSES and len(sketches.index) == 20


def test_draws_of_base_and_of_all_classes(world, backbone):
    folder, coop = world / "benchmarks" / "whole", METHODS["coop"](backbone)
    base, every = few_shots(folder, coop, "base", 2, 1), few_shots(folder, coop, "all", 2, 1)
    assert (
        base.names == CLASSES[:3]
        and sorted(base.labels.tolist()) == [0, 0, 1, 1, 2, 2]
        and len(base.views) == 2
    )
    assert every.names == CLASSES and len(every.labels) == 10
    assert len(few_shots(folder, coop, "base", 8, 1).labels) == 15  # all of a class that has fewer
    with pytest.raises(
        InputError,
        match=(
            "has no draw of 4 shots of base classes for seed 1; add 4 to "
            "'benchmarks.whole.shots.base'"
        ),
    ):
        few_shots(folder, coop, "base", 4, 1)


def independent_zero_shot(backbone, top, benchmark, template):
    """open_clip's own zero-shot head, one picture after another, no file of ours but the sample
    table for the names.
    """
    samples = (
        pl.read_parquet(top / "benchmarks" / benchmark / "samples.parquet")
        .filter(split="test")
        .sort("index")
    )
    names = sorted(samples["name"].unique())
    head = open_clip.build_zero_shot_classifier(
        backbone.model,
        tokenizer=backbone.tokenize,
        classnames=names,
        templates=[template.format],
    )
    folder = top / "pictures" / ("other" if benchmark == "others" else "whole")
    preprocess = open_clip.image_transform(
        48, is_train=False, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5), interpolation="bicubic"
    )
    with torch.no_grad():
        return [
            int(
                (
                    backbone.model.encode_image(
                        preprocess(Image.open(folder / file).convert("RGB")).unsqueeze(0),
                        normalize=True,
                    )
                    @ head
                ).argmax()
            )
            for file in samples["file"]
        ]


@pytest.mark.parametrize(
    "benchmark, template",
    [
        ("whole", "a photo of a {}."),
        ("sketches", "a drawing of a {}."),
        ("others", "a photo of a {}."),
    ],
)
def test_zero_shot_equals_an_independent_evaluation_to_the_picture(
    world, backbone, benchmark, template
):
    _, _, found = judge(
        Template(backbone, [template]), world / "benchmarks" / benchmark, {"": {}}, "all"
    )
    assert found[""].tolist() == independent_zero_shot(backbone, world, benchmark, template)


def tuning(world, seed, out):
    """Arguments of `tune` for CoOp."""
    return (
        *("--name", "whole", "--seed", seed, "--start", world / "starts" / "coop"),
        *("--benchmark", world / "benchmarks" / "whole"),
        *("--batch", world / "batches" / "coop.json", "--out", out),
    )


@pytest.fixture(scope="module")
def tuned(world):
    """CoOp tuned and judged by the stages."""
    for script, arguments in (
        ("start", ("--name", "coop", "--out", world / "starts" / "coop")),
        (
            "batch",
            (
                *("--table", "methods.direct", "--name", "coop"),
                *("--out", world / "batches" / "coop.json"),
            ),
        ),
        *(("tune", tuning(world, seed, world / "tuned" / "whole" / seed)) for seed in "12"),
        (
            "evaluate",
            (
                "--tuned",
                world / "tuned",
                "--benchmarks",
                world / "benchmarks",
                "--out",
                world / "scores",
                "--metrics",
                world / "metrics.json",
            ),
        ),
        (
            "zero_shot",
            (
                "--name",
                "clip",
                "--benchmarks",
                world / "benchmarks",
                "--out",
                world / "scores_clip",
            ),
        ),
    ):
        done = stage(world, script, *arguments)
        assert done.returncode == 0, done.stderr
    return world


def test_the_stages_judge_every_protocol(tuned, backbone):
    for seed in "12":
        assert sorted(p.name for p in (tuned / "tuned" / "whole" / seed).iterdir()) == [
            f"{c}-2-{seed}.safetensors" for c in ("all", "base")
        ]
    found = pl.read_parquet(tuned / "scores" / "whole.parquet")
    counts = {
        (t, s, b, h): n
        for t, s, b, h, n in found.group_by("tuned_on", "seed", "benchmark", "head").len().rows()
    }
    expected = {("base", s, "whole", "base"): 24 for s in (1, 2)} | {
        ("base", s, "whole", "new"): 16 for s in (1, 2)
    }
    expected |= {
        ("all", s, b, "all"): n
        for s in (1, 2)
        for b, n in (("whole", 40), ("sketches", 20), ("others", 9))
    }
    assert counts == expected and set(found["shots"]) == {2}
    # the tokens of one file, judged by hand
    tokens = load_tuned(tuned_path(tuned / "tuned" / "whole" / "2", "all", 2, 2))[0][-1]
    _, _, by_hand = judge(
        METHODS["coop"](backbone, "a drawing of a {}."),
        tuned / "benchmarks" / "sketches",
        {"": tokens},
        "all",
    )
    assert (
        found.filter(tuned_on="all", seed=2, benchmark="sketches")
        .sort("index")["predicted"]
        .to_list()
        == by_hand[""].tolist()
    )
    epochs = pl.read_csv(tuned / "scores" / "whole.csv")
    assert epochs.group_by("seed", "head").len().height == 4 and set(epochs["epoch"]) == {1, 2}
    figures = json.loads((tuned / "metrics.json").read_text())
    assert set(figures) == {"base", "new", "H", "cross_domain", "cross_dataset"}


def test_zero_shot_is_judged_where_tuned_prompts_are(tuned):
    keys = ["tuned_on", "benchmark", "head", "index", "label"]
    clip, coop = (
        pl.read_parquet(tuned / "scores_clip" / "whole.parquet"),
        pl.read_parquet(tuned / "scores" / "whole.parquet").filter(seed=1),
    )
    assert clip.select(keys).sort(keys).equals(coop.select(keys).sort(keys)) and set(
        clip["shots"]
    ) == {0}


def test_a_tuning_that_stopped_keeps_its_finished_runs(tuned, tmp_path):
    """A number of shots that was not drawn stops it; the runs before that are not made again."""
    with_values(
        tmp_path / "params.yaml",
        {"protocols.whole.all_classes": [2, 3]},
        source=tuned / "params.yaml",
    )
    arguments = tuning(tuned, 1, tmp_path / "whole")
    times = []
    for _ in range(2):
        done = stage(tmp_path, "tune", *arguments)
        assert (
            done.returncode == 1
            and "no draw of 3 shots of all classes" in done.stderr
            and not (tmp_path / "whole").exists()
        )
        times.append(
            {p.name: p.stat().st_mtime_ns for p in tmp_path.glob(".partial/*/*.safetensors")}
        )
    assert (
        set(times[0]) == {f"{c}-2-1.safetensors" for c in ("all", "base")} and times[0] == times[1]
    )


def test_a_test_only_benchmark_has_nothing_to_draw_from(world, tmp_path):
    changes = {"benchmarks.others.shots": {"base": [1]}}
    with_values(tmp_path / "params.yaml", changes, source=world / "params.yaml")
    done = stage(tmp_path, "benchmark", "--name", "others", "--out", tmp_path / "out")
    assert (
        done.returncode == 1
        and "has no training pictures, but 'benchmarks.others.shots' asks for draws" in done.stderr
        and not (tmp_path / "out").exists()
    )


def test_a_kind_of_prompt_may_have_a_batch_and_a_rate_of_its_own(tmp_path):
    """Each method's file has its kind's: another kind's tunings need not run again."""
    own = {"tuning.batch_of": {"cocoop": 1}, "tuning.lr_factor_of": {"joint": 0.25}}
    own["methods.direct.cocoop"] = {"prompt": "cocoop"}
    with_values(tmp_path / "params.yaml", own)
    found = {}
    for table, name in (("direct", "cocoop"), ("direct", "coop"), ("meta", "unigram")):
        out, of = tmp_path / f"{name}.json", ("--table", f"methods.{table}", "--name", name)
        done = stage(tmp_path, "batch", *of, "--out", out)
        assert done.returncode == 0, done.stderr
        found[name] = sgd_of(RATES, json.loads(out.read_text()))
    assert {k: v.batch for k, v in found.items()} == {"cocoop": 1, "coop": 32, "unigram": 32}
    assert {k: v.lr for k, v in found.items()} == {"cocoop": 0.8, "coop": 0.8, "unigram": 0.2}
    assert {v.momentum for v in found.values()} == {0.5}
    assert json.loads((tmp_path / "coop.json").read_text()) == {"batch": 32}


def test_pictures_are_read_once_for_all_states(world, backbone, monkeypatch):
    """Several seeds of a visual method: each file is decoded and embedded once."""
    from pipeline.benchmarks import cache

    opened = []
    monkeypatch.setattr(
        cache,
        "open_picture",
        lambda content, real=cache.open_picture: opened.append(1) or real(content),
    )
    vpt = METHODS["vpt"](backbone)
    states = {
        (2, seed, 1): vpt.initial(2, torch.Generator().manual_seed(seed)) for seed in range(3)
    }
    table, _ = judge_source(
        "whole",
        Protocols(base_to_new=[], all_classes=[2]),
        {"base": {}, "all": states},
        lambda _: vpt,
        world / "benchmarks",
    )
    assert len(table) == 3 * 40 and len(opened) == 40
