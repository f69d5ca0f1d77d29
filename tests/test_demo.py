"""One demo run in a fresh clone, shared by all tests here: what it leaves, and what a change
reruns.
"""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from html.parser import HTMLParser

import conftest
import pytest
from conftest import clone, with_values

# As many as `make repro` takes, whatever this process has: they decide the last bits of figures.
# They do not spin, as other tests run beside them.
THREADS = {"OMP_NUM_THREADS": str(os.cpu_count()), "OMP_WAIT_POLICY": "passive"}
ENVIRONMENT = conftest.ENVIRONMENT | THREADS


def run(*command, **others):
    return conftest.run(*command, **THREADS | others)


@pytest.fixture(scope="session")
def demo(tmp_path_factory):
    folder = clone(tmp_path_factory.mktemp("demo") / "clone")
    lock = folder / "dvc.lock"
    committed = lock.read_text() if lock.exists() else None
    done = run("dvc", "repro", cwd=folder)
    print(done.stdout[-6000:])
    if kept := os.environ.get("REPORT"):  # CI keeps it
        shutil.copytree(folder / "data" / "report", kept, dirs_exist_ok=True)
    return folder, done.stdout, committed


def metrics(demo, name):
    return json.loads((demo[0] / "data" / "metrics" / f"{name}.json").read_text())


def results(demo):
    return metrics(demo, "results")


def would_run(folder):
    """The stages that `dvc repro` would run now, beside `code`, if every one that runs changed its
    output.
    """
    run("dvc", "repro", "code", cwd=folder)
    done = run("dvc", "repro", "--dry", "--force-downstream", cwd=folder)
    return set(re.findall(r"Running stage '([^']+)'", done.stdout + done.stderr))


@pytest.fixture
def edit(demo):
    """Changes a file of the demo's clone for one test."""
    kept = {}

    def change(name, old, new):
        path = demo[0] / name
        text = kept.setdefault(path, path.read_text())
        assert text.count(old) == 1, (name, old)
        path.write_text(text.replace(old, new))
        return demo[0]

    yield change
    for path, text in kept.items():
        path.write_text(text)
    run("dvc", "repro", "code", cwd=demo[0])


def test_a_run_says_what_it_did_and_ends_with_a_table(demo):
    out = demo[1]
    for stage in (
        "captions",
        "download",
        "index",
        "features",
        "filter",
        "embed",
        "topics",
        "label",
        "domains",
        "episodes",
        "metatrain",
        "benchmark",
        "tune",
        "evaluate",
        "zero_shot",
        "report",
    ):
        assert re.search(rf"^{stage}: .*\(\d+\.\d s\)$", out, re.M), stage
    assert "CoOp + GRAM" in out and "cross domain" in out


def test_nothing_to_do_the_second_time(demo):
    started = time.perf_counter()
    done = run("dvc", "repro", cwd=demo[0])
    print(f"dvc repro with nothing to do: {time.perf_counter() - started:.1f} s")
    assert "Data and pipelines are up to date" in done.stdout + done.stderr
    assert "Running stage" not in done.stdout


def test_only_the_lock_can_change_in_git(demo):
    """And it changes only where this machine's libraries give other bits than the one that
    committed it.
    """
    assert set(run("git", "status", "--porcelain", cwd=demo[0]).stdout.split("\n")) <= {
        "",
        " M dvc.lock",
        "?? dvc.lock",
    }


def test_filter_topics_and_domains_against_the_truth(demo):
    found = metrics(demo, "check/demo")
    print(found)
    assert found["mismatch_precision"] > 0.8 and found["mismatch_recall"] > 0.8
    assert found["coverage"] > 0.7 and found["topics"] >= 100
    assert found["purity_by_family"] > 0.8 and found["purity_by_name"] > 0.75
    assert found["domain_style_nmi"] > 0.5


def test_the_web_was_as_broken_as_it_was_drawn(demo):
    drawn, found = metrics(demo, "draw_web/demo"), metrics(demo, "index")
    assert found["failed_to_download"] == drawn["dead"] > 0
    assert (
        found["failed_to_resize"] + found.get("broken", 0) == drawn["truncated"] + drawn["page"] > 0
    )


def test_zero_shot_is_far_from_chance_and_from_perfect(demo):
    clip = results(demo)["clip"]
    average = (clip["base"] + clip["new"]) / 2
    assert 35 < average < 85  # chance is 10


def test_the_tables_have_every_cell_and_honest_numbers(demo):
    """Four methods under every protocol, none missing; recomputed from the per-picture
    verdicts, by other code.
    """
    import polars as pl

    report, methods = (
        demo[0] / "data" / "report",
        ["clip", "coop", "coop_gram", "unigram"],
    )
    cells = pl.read_csv(report / "tables.csv")
    assert cells["missing"].is_null().all() and set(cells["table"].unique()) == {
        "base_to_new_16",
        *(f"{t}_broad_{s}" for t in ("cross_domain", "cross_dataset") for s in (16, 4)),
        "comparison_16",
        "comparison_4",
    }
    verdicts = pl.concat(
        [
            pl.read_parquet(p).with_columns(method=pl.lit(p.parent.name))
            for p in sorted((demo[0] / "data" / "scores").glob("*/*.parquet"))
        ]
    )
    assert sorted(verdicts["method"].unique()) == sorted(methods)
    right = verdicts.with_columns(right=(pl.col("label") == pl.col("predicted")))

    def accuracy(method, tuned_on, benchmark, head, shots):
        rows = right.filter(
            method=method, tuned_on=tuned_on, benchmark=benchmark, head=head
        ).filter(pl.col("shots").is_in([shots, 0]))
        assert len(rows)
        return 100 * rows["right"].mean()

    for row in (
        cells.filter(table="base_to_new_16")
        .filter(pl.col("column").is_in(["base", "new"]), pl.col("block") != "average")
        .iter_rows(named=True)
    ):
        assert row["value"] == pytest.approx(
            accuracy(row["row"], "base", row["block"], row["column"], 16), abs=1e-9
        )
    for table, shots in (("cross_domain_broad_16", 16), ("cross_dataset_broad_4", 4)):
        for row in (
            cells.filter(table=table).filter(pl.col("column") != "average").iter_rows(named=True)
        ):
            assert row["value"] == pytest.approx(
                accuracy(row["row"], "all", row["column"], "all", shots), abs=1e-9
            )
    average = {
        (r["row"], r["column"]): r["value"]
        for r in cells.filter(table="base_to_new_16", block="average").iter_rows(named=True)
    }
    for method in methods:
        base, new = (
            sum(accuracy(method, "base", b, head, 16) for b in ("animals", "things")) / 2
            for head in ("base", "new")
        )
        assert average[method, "H"] == pytest.approx(2 * base * new / (base + new), abs=1e-9)
        assert results(demo)[method]["H"] == pytest.approx(average[method, "H"], abs=1e-4)


def test_zero_shot_scores_are_an_independent_evaluation_s_to_the_picture(demo):
    """open_clip's own zero-shot head on the pictures of the zip, one after another."""
    import io
    import zipfile

    import open_clip
    import polars as pl
    import torch
    from PIL import Image

    from pipeline.clip.backbone import load_backbone

    backbone = load_backbone(demo[0] / "demo" / "backbone")
    view = open_clip.image_transform(
        48, is_train=False, mean=(0.5,) * 3, std=(0.5,) * 3, interpolation="bicubic"
    )
    verdicts = pl.read_parquet(demo[0] / "data" / "scores" / "clip" / "broad.parquet")
    for benchmark, style in (("broad_sketch", "sketch"), ("broad_neon", "neon")):
        with zipfile.ZipFile(demo[0] / "data" / "world" / "broad.zip") as archive:
            files = sorted(n for n in archive.namelist() if n.startswith(f"test/{style}/"))
            names = sorted({n.split("/")[2] for n in files})
            head = open_clip.build_zero_shot_classifier(
                backbone.model,
                tokenizer=backbone.tokenize,
                classnames=names,
                templates=[lambda c: f"a photo of a {c}."],
            )
            pixels = torch.stack(
                [view(Image.open(io.BytesIO(archive.read(n))).convert("RGB")) for n in files]
            )
        with torch.no_grad():
            predicted = (
                (backbone.model.encode_image(pixels, normalize=True) @ head).argmax(dim=-1).tolist()
            )
        found = verdicts.filter(benchmark=benchmark).sort("index")
        assert found["predicted"].to_list() == predicted and found["label"].to_list() == [
            names.index(n.split("/")[2]) for n in files
        ]


def test_meta_training_started_with_something_to_learn(demo):
    found = metrics(demo, "metatrain/coop_gram")
    assert found["start_loss_first"] > 0.05 and found["raw_gradient_rms_first"] > 1e-4


def test_visual_methods_see_the_pictures_that_the_cached_features_were_made_of(demo):
    """Views and test pictures, decoded and augmented again, give the cached features (float16)
    back.
    """
    import torch

    from pipeline.benchmarks.cache import exam_of, few_shots, samples_of, seen_tests
    from pipeline.clip.backbone import load_backbone
    from pipeline.prompts import METHODS

    folder, backbone = (
        demo[0] / "data" / "benchmarks" / "food",
        load_backbone(demo[0] / "demo" / "backbone"),
    )
    cached, visual = METHODS["coop"](backbone), METHODS["vpt"](backbone)
    shots, again = (
        few_shots(folder, cached, "base", 16, 2),
        few_shots(folder, visual, "base", 16, 2),
    )
    assert (shots.labels == again.labels).all() and len(shots.views) == len(again.views) == 10
    index = exam_of(samples_of(folder), "new").index
    with torch.inference_mode():
        seen = visual.tower.features(
            visual.look(again.views[7][range(len(again.labels))].unsqueeze(0))[0]
        )
        assert torch.allclose(seen, torch.as_tensor(shots.views[7]), atol=2e-3)
        for features, patches in zip(
            seen_tests(folder, cached, index), seen_tests(folder, visual, index), strict=True
        ):
            assert torch.allclose(features[0], visual.tower.features(patches[0]), atol=2e-3)


class Links(HTMLParser):
    def __init__(self):
        super().__init__()
        self.outside, self.pictures = [], 0

    def handle_starttag(self, tag, attributes):
        for name, value in attributes:
            if name in ("src", "href") and not value.startswith(("data:", "#")):
                self.outside.append(value)
            self.pictures += tag == "img" and name == "src"


def test_the_report_needs_nothing_beside_it(demo):
    html = (demo[0] / "data" / "report" / "report.html").read_text()
    page = Links()
    page.feed(html)
    assert page.outside == [] and page.pictures > 300
    # every topic can be found, those without pictures too
    assert html.count("<tr data-words=") == metrics(demo, "label")["named"]
    for words in (
        "Base to new",
        "Cross-domain",
        "Cross-dataset",
        "4 shots",
        "CoOp + GRAM",
        "Topic map",
        "kept by the filter",
        "Average",
    ):
        assert words in html


def test_inner_lr_reruns_meta_training_and_what_follows_from_it(edit):
    folder = edit("params.yaml", "inner_lr: 0.5", "inner_lr: 1e-02")  # as DVC writes numbers
    meta = ("coop_gram", "unigram")
    assert would_run(folder) == {"report"} | {
        f"{s}@{m}" for s in ("metatrain", "evaluate_meta", "publish") for m in meta
    } | {f"tune_meta@{b}-{m}-1" for b in ("animals", "things", "broad") for m in meta}


def test_min_cluster_size_starts_at_topics(edit):
    stages = would_run(edit("params.yaml", "min_cluster_size: 12", "min_cluster_size: 20"))
    assert {
        "topics",
        "label",
        "domains",
        "check@demo",
        "episodes@shifted",
        "metatrain@coop_gram",
        "report",
    } <= stages
    assert not stages & {
        "captions",
        "download",
        "index",
        "features",
        "filter",
        "embed",
        "start@coop",
        "benchmark@food",
        "tune@animals-coop-1",
    }


def test_one_methods_entry_reruns_that_method(edit):
    stages = would_run(
        edit("params.yaml", "      regulator: affine\n", "      regulator: identity\n")
    )
    assert stages == {"report"} | {
        f"{s}@coop_gram" for s in ("metatrain", "evaluate_meta", "publish")
    } | {f"tune_meta@{b}-coop_gram-1" for b in ("animals", "things", "broad")}


def test_a_title_reruns_what_prints_it(edit):
    stages = would_run(edit("params.yaml", "    clip: CLIP\n", "    clip: Zero-shot\n"))
    assert stages == {"report"} | {f"publish@{m}" for m in ("coop_gram", "unigram")}


def test_a_benchmarks_template_reruns_prompts_and_judging(edit):
    """No picture is encoded again, and no other benchmark's prompts are tuned again."""
    stages = would_run(
        edit("params.yaml", "  animals: a photo of a {}.", "  animals: a picture of a {}.")
    )
    direct, meta = ("coop",), ("coop_gram", "unigram")
    assert stages == (
        {"zero_shot@clip", "report"}
        | {f"tune@animals-{m}-1" for m in direct}
        | {f"tune_meta@animals-{m}-1" for m in meta}
        | {f"evaluate@{m}" for m in direct}
        | {f"{s}@{m}" for s in ("evaluate_meta", "publish") for m in meta}
    )


def test_a_protocol_reruns_its_own_tuning(edit):
    stages = would_run(edit("params.yaml", "    all_classes:\n    - 16\n", "    all_classes:\n"))
    assert {"tune@broad-coop-1", "tune_meta@broad-unigram-1", "evaluate@coop"} <= stages
    assert not {s for s in stages if s.startswith(("benchmark", "metatrain")) or "animals" in s}


def test_code_reruns_the_stages_that_it_concerns(edit):
    """A comment none, a line of meta-learning nothing of the clustering."""
    folder = edit("pipeline/gram/meta.py", '"""Algorithm 1', '# a comment\n"""Algorithm 1')
    done = run("dvc", "repro", "code", cwd=folder)
    assert "Running stage 'code'" in done.stdout and would_run(folder) == set()
    edit("pipeline/gram/meta.py", "torch.zeros_like(w) if g", "torch.ones_like(w) if g")
    try:
        stages = would_run(folder)
        assert "metatrain@coop_gram" in stages
        assert not stages & {
            "captions",
            "download",
            "index",
            "features",
            "filter",
            "embed",
            "topics",
            "label",
            "domains",
            "gallery",
            "episodes@shifted",
            "benchmark@food",
        }
    finally:
        run("git", "checkout", "--quiet", "pipeline", cwd=folder)
        run("dvc", "repro", "code", cwd=folder)


def test_importing_the_code_makes_nothing_stale(demo):
    run(
        sys.executable,
        "-c",
        "import pipeline.schema, pipeline.world.sites",
        cwd=demo[0],
        PYTHONDONTWRITEBYTECODE="",
    )
    assert list((demo[0] / "pipeline").rglob("__pycache__")) and would_run(demo[0]) == set()


def test_a_study_runs_what_the_main_chain_runs_and_compares_it(demo, tmp_path):
    """CoOp's run equals tune and evaluate of the main file, to the picture; the page has every
    part.
    """
    import polars as pl

    folder, runs = demo[0], tmp_path / "runs"
    changes = {
        "study.seeds": [1, 2],
        "study.draws": "turns",
        "study.labelled": {},
        "study.methods": {
            "direct": {"coop": {"prompt": "coop"}},
            "meta": {"coop_gram": {"prompt": "coop", "episodes": "shifted", "steps": 12}},
            "titles": {"coop": "CoOp", "coop_gram": "CoOp + GRAM"},
        },
        "study.benchmarks": ["animals", "things"],
        "study.pairs": [["coop_gram", "coop"]],
    }
    with_values(tmp_path / "params.yaml", changes, source=folder / "params.yaml")
    common = ("--params", tmp_path / "params.yaml")
    for table, name in (("direct", "coop"), ("meta", "coop_gram")):
        of = ("--table", f"study.methods.{table}", "--name", name)
        out = tmp_path / "batches" / f"{name}.json"
        run(sys.executable, "stages/batch.py", *common, *of, "--out", out, cwd=folder)
    for seed in (1, 2):
        run(
            sys.executable,
            "stages/episodes.py",
            *common,
            "--name",
            "shifted",
            "--seed",
            seed,
            "--domains",
            "data/domains.parquet",
            "--labels",
            "data/labels.parquet",
            "--features",
            "data/features",
            "--pairs",
            "data/pairs.parquet",
            "--shards",
            "data/shards",
            "--out",
            tmp_path / "episodes" / "shifted" / str(seed),
            cwd=folder,
        )
        run(
            sys.executable,
            "stages/study_direct.py",
            *common,
            "--name",
            "coop",
            "--seed",
            seed,
            "--batch",
            tmp_path / "batches" / "coop.json",
            "--benchmarks",
            "data/benchmarks",
            "--out",
            runs / "coop" / str(seed),
            cwd=folder,
        )
        run(
            sys.executable,
            "stages/study_meta.py",
            *common,
            "--name",
            "coop_gram",
            "--seed",
            seed,
            "--batch",
            tmp_path / "batches" / "coop_gram.json",
            "--episodes",
            tmp_path / "episodes",
            "--benchmarks",
            "data/benchmarks",
            "--out",
            runs / "coop_gram" / str(seed),
            cwd=folder,
        )
        for benchmark in ("animals", "things"):
            found = pl.read_parquet(runs / "coop" / str(seed) / f"{benchmark}.parquet")
            assert seed != 1 or found.equals(
                pl.read_parquet(folder / "data" / "scores" / "coop" / f"{benchmark}.parquet")
            )
            assert set(found["seed"]) == {seed}
    done = run(
        sys.executable,
        "stages/compare.py",
        *common,
        "--runs",
        runs,
        "--out",
        tmp_path / "report",
        cwd=folder,
    )
    assert "CoOp + GRAM − CoOp" in done.stdout
    html = (tmp_path / "report" / "study.html").read_text()
    for part in ('id="runs-base"', 'id="epochs-new"', 'id="agreement"', "Fig 3b"):
        assert part in html
    shutil.rmtree(runs / "coop" / "2")
    done = run(
        sys.executable,
        "stages/compare.py",
        *common,
        "--runs",
        runs,
        "--out",
        tmp_path / "report",
        cwd=folder,
        check=False,
    )
    assert done.returncode == 1 and "coop/2: missing" in done.stderr


@pytest.mark.parametrize("signal_", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_stage_exits_non_zero_and_leaves_nothing(demo, tmp_path, signal_):
    """And meta-training goes on from its checkpoint to the same result, to the byte."""
    folder = demo[0]
    (tmp_path / "params.yaml").write_text(
        (folder / "params.yaml")
        .read_text()
        .replace("checkpoint_every: 50", "checkpoint_every: 5")
        .replace("meta_steps: 300", "meta_steps: 40")
    )
    command = [
        sys.executable,
        "stages/metatrain.py",
        "--params",
        tmp_path / "params.yaml",
        "--name",
        "coop_gram",
        "--episodes",
        "data/episodes/shifted",
    ]
    child = subprocess.Popen(
        [*map(str, command), "--out", tmp_path / "out"],
        cwd=folder,
        env=ENVIRONMENT,
        stderr=subprocess.PIPE,
        text=True,
    )
    deadline = time.time() + 120
    while time.time() < deadline and not list(tmp_path.glob(".partial/*/checkpoint.safetensors")):
        time.sleep(0.05)
    child.send_signal(signal_)
    assert child.wait() == 130 and "interrupted" in child.stderr.read()
    assert not (tmp_path / "out").exists()
    run(*command, "--out", tmp_path / "out", cwd=folder)
    run(*command, "--out", tmp_path / "straight", cwd=folder)
    for name in ("prompt.safetensors", "regulator.safetensors", "curve.csv"):
        assert (tmp_path / "out" / name).read_bytes() == (tmp_path / "straight" / name).read_bytes()


def test_a_damaged_artifact_stops_the_next_stage_with_one_message(demo, tmp_path):
    whole = (demo[0] / "data" / "topics.parquet").read_bytes()
    (tmp_path / "topics.parquet").write_bytes(whole[: len(whole) // 2])
    done = run(
        sys.executable,
        "stages/label.py",
        "--kept",
        "data/kept.parquet",
        "--topics",
        tmp_path / "topics.parquet",
        "--clusters",
        tmp_path / "clusters.parquet",
        "--out",
        tmp_path / "labels.parquet",
        cwd=demo[0],
        check=False,
    )
    assert done.returncode == 1 and not (tmp_path / "labels.parquet").exists()
    assert (
        "topics.parquet: not a complete Parquet file" in done.stderr
        and "Traceback" not in done.stderr
    )


@pytest.mark.slow
def test_two_clones_end_with_the_same_lock(demo, tmp_path):
    other = clone(tmp_path / "clone")
    run("dvc", "repro", cwd=other)
    assert (other / "dvc.lock").read_text() == (demo[0] / "dvc.lock").read_text()


@pytest.mark.whole
def test_the_paper_profile_plans_without_any_data(tmp_path):
    other = clone(tmp_path / "clone")
    shutil.copy2(other / "profiles" / "paper.yaml", other / "params.yaml")
    stages = run("dvc", "stage", "list", "--name-only", cwd=other).stdout.split()
    assert {
        "metatrain@unigram",
        "tune@imagenet-cocoop-1",
        "tune_meta@dtd-vpt_gram-3",
        "benchmark@imagenet_a",
        "evaluate@cocoop",
    } <= set(stages)
    assert not [s for s in stages if s.startswith("draw")]
    plan = run("dvc", "repro", "--dry", "--force", cwd=other)
    planned = re.findall(r"Running stage '([^']+)'", plan.stdout)
    assert set(planned) == set(stages) and planned.index("benchmark@imagenet") < planned.index(
        "tune@imagenet-coop-1"
    ) < planned.index("evaluate@coop") < planned.index("report")
    assert not (other / "data").exists()
    shutil.copy2(other / "study" / "stages.yaml", other / "study" / "dvc.yaml")
    study = run("dvc", "stage", "list", "--name-only", "study/dvc.yaml", cwd=other).stdout
    assert "meta@unigram_8-3" in study and "compare" in study
