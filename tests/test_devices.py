"""Where things are computed, what does not fit there, and numbers that are none: one message, and
no result.
"""

import json
import os
import subprocess
import sys

import accelerator
import numpy as np
import pytest
import tiny
import torch
import torch.distributed as dist
from accelerator import Use
from conftest import ROOT, free_port, with_values
from safetensors.torch import load_file, save_file
from test_training import one_step, outer, train, write_episodes

from pipeline.benchmarks.evaluation import judge
from pipeline.clip.backbone import load_backbone
from pipeline.device import device, within_memory
from pipeline.episodes import shards
from pipeline.episodes.shards import count_episodes
from pipeline.errors import InputError
from pipeline.gram import parallel
from pipeline.gram import train as loop
from pipeline.gram.batch import batches
from pipeline.gram.meta import InnerStep
from pipeline.gram.serving import Classifier
from pipeline.prompts import METHODS
from pipeline.prompts.starts import Start, load_start, save_start
from pipeline.stage import workers


@pytest.fixture(scope="module")
def backbone():
    return load_backbone(ROOT / "demo" / "backbone")


@pytest.fixture(scope="module")
def episodes(tmp_path_factory):
    return write_episodes(tmp_path_factory.mktemp("episodes"))


@pytest.fixture
def there(monkeypatch):
    """On the make-believe accelerator."""
    monkeypatch.setenv("DEVICE", accelerator.NAME)


@pytest.mark.parametrize("name", ["gpu", "cuda:93"])
def test_a_device_that_is_not_there(monkeypatch, name):
    monkeypatch.setenv("DEVICE", name)
    with pytest.raises(InputError, match=rf"there is no device '{name}' \(.*\); name one that"):
        device()


def test_each_process_has_its_own_gpu(monkeypatch):
    """Also where DEVICE says `cuda` to all of them; more processes than GPUs are told so."""
    asked = []
    monkeypatch.setattr(torch, "empty", lambda n, device: asked.append(str(device)))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    for rank, name in (("1", "cuda"), ("3", None)):
        monkeypatch.setenv("LOCAL_RANK", rank)
        monkeypatch.setenv("DEVICE", name) if name else monkeypatch.delenv("DEVICE", raising=False)
        assert str(device()) == f"cuda:{rank}"
    assert asked == ["cuda:1", "cuda:3"]
    monkeypatch.undo()
    monkeypatch.delenv("DEVICE", raising=False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setenv("LOCAL_RANK", "93")
    with pytest.raises(InputError, match=r"no device 'cuda:93' .*; start as many processes as"):
        device()


def test_a_process_makes_its_device_the_current_one(monkeypatch):
    module = torch.get_device_module(accelerator.NAME)
    monkeypatch.setattr(module, "chosen", None)
    about = {"RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1"}
    for key, value in (about | {"MASTER_PORT": str(free_port())}).items():
        monkeypatch.setenv(key, value)
    try:
        assert parallel.join(torch.device(accelerator.NAME, 0)) == (0, 1)
        assert module.chosen == 0
    finally:
        dist.destroy_process_group()


@pytest.mark.parametrize("processes", [2, 3])
def test_the_stage_under_torchrun(tiny_world, tmp_path, processes):
    """Two processes share the batch of two tasks, and one of them writes; of three, one would have
    nothing to do.
    """
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += ["--nproc-per-node", str(processes), "stages/metatrain.py"]
    command += ["--params", tiny_world / "params.yaml", "--name", "coop_gram"]
    command += ["--episodes", tiny_world / "episodes" / "small" / "1", "--out", tmp_path / "out"]
    done = subprocess.run(
        list(map(str, command)),
        cwd=ROOT,
        env=os.environ | {"DEVICE": "cpu", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    if processes == 2:
        assert done.returncode == 0, done.stderr[-3000:]
        assert done.stdout.count("coop_gram: 2 meta-steps of 2 tasks") == 1
        assert {p.name for p in (tmp_path / "out").iterdir()} == {
            "curve.csv",
            "prompt.safetensors",
            "regulator.safetensors",
        }
    else:
        assert done.returncode and 'metatrain.py", line' not in done.stderr  # torchrun's is its own
        assert "'meta_batch' is 2, but 3 processes were started" in done.stderr


@pytest.mark.parametrize("processes", [5, 8])
def test_more_processes_than_tasks_in_a_batch(backbone, episodes, tmp_path, monkeypatch, processes):
    monkeypatch.setattr(loop.parallel, "join", lambda device: (0, processes))
    with pytest.raises(
        InputError,
        match=(
            f"'meta_batch' is 4, but {processes} processes were started, .* start at most 4 "
            r"\(torchrun --nproc-per-node 4\), or raise 'meta_batch' to a multiple of"
        ),
    ):
        train(METHODS["coop"](backbone), episodes, tmp_path)


@pytest.mark.parametrize(
    "script, argument, value",
    [
        ("metatrain", "--tasks-at-once", "-1"),
        ("metatrain", "--tasks-at-once", "0"),
        ("metatrain", "--tasks-at-once", "two"),
        ("episodes", "--seed", "-1"),
        ("labelled_episodes", "--seed", "-1"),
        ("study_direct", "--seed", "-3"),
        ("study_meta", "--seed", str(2**31)),
    ],
)
def test_arguments_that_are_no_such_number(script, argument, value, capsys):
    with pytest.raises(SystemExit) as stop:
        tiny.stage(script, argument, value, params="params.yaml")
    assert stop.value.code == 2
    assert f"argument {argument}: '{value}' is not a number from" in capsys.readouterr().err


@pytest.mark.parametrize("value", ["0", "-2", "many"])
def test_a_variable_that_is_no_such_number(monkeypatch, value):
    monkeypatch.setenv("DECODE_THREADS", value)
    with pytest.raises(InputError, match=f"variable DECODE_THREADS is '{value}'; it is a number"):
        workers("DECODE_THREADS")


@pytest.mark.parametrize("skip, first", [(0, 0), (2, 8), (4, 4), (8, 8)])
def test_a_resumed_training_reads_no_task_that_it_skips(episodes, monkeypatch, skip, first):
    """12 tasks are three batches of four a pass."""
    read, table = [], shards.pq.ParquetFile.read_row_group
    monkeypatch.setattr(
        shards.pq.ParquetFile,
        "read_row_group",
        lambda self, group, **more: read.append(group) or table(self, group, **more),
    )
    coming = batches(episodes, 4, skip, pictures=True)
    found = [[task.number for task in next(coming)] for _ in range(4)]
    every = [list(range(4 * (n % 3), 4 * (n % 3) + 4)) for n in range(skip, skip + 4)]
    assert found == every and read[0] == first and read == [n for batch in every for n in batch]


def test_memory_that_ends_names_what_helps(tiny_world, starts, there, monkeypatch, tmp_path):
    """Each stage with a device that has no room for one of its tensors."""
    monkeypatch.setattr(Use, "most", 10**6)
    whole = tiny_world / "benchmarks" / "whole"
    for script, arguments, remedy in (
        ("benchmark", ("--name", "whole", "--out", tmp_path / "b"), "PICTURES_AT_ONCE"),
        ("labelled", ("--name", "small", "--out", tmp_path / "l"), "PICTURES_AT_ONCE"),
    ):
        with monkeypatch.context() as patch:
            patch.setattr(torch.nn.Conv2d, "forward", too_large)
            with pytest.raises(InputError, match=f"out of memory .*; .*{remedy}"):
                tiny.stage_in(tiny_world, script, *arguments)
    with monkeypatch.context() as patch:
        patch.setattr(torch.nn.functional, "cross_entropy", too_large)
        with pytest.raises(
            InputError, match="vpt on whole, 2 shots .*out of memory .*tuning.batch"
        ):
            tune(tiny_world, starts / "vpt", tmp_path / "t")
        with pytest.raises(InputError, match="out of memory .*--tasks-at-once 1.*outer.recompute"):
            tiny.metatrain(tiny_world, "coop_gram", tmp_path / "m")
    method = METHODS["vpt"](load_backbone(tiny_world / "backbone"))
    with monkeypatch.context() as patch:
        patch.setattr(type(method), "scores", too_large)
        with pytest.raises(InputError, match="out of memory .*PICTURES_AT_ONCE"):
            judge(method, whole, {"x": load_start(starts / "vpt").theta}, "base")


def too_large(*arguments, **more):
    return torch.empty(Use.most + 1, device=accelerator.NAME)


def test_other_errors_are_not_taken_for_memory():
    with pytest.raises(RuntimeError, match="a bug"), within_memory("x"):
        raise RuntimeError("a bug")


def tune(tiny_world, start, out, params="params.yaml"):
    return tiny.stage_in(
        tiny_world,
        "tune",
        *("--name", "whole", "--seed", 1, "--batch", tiny_world / "batch.json"),
        *("--start", start, "--benchmark", tiny_world / "benchmarks" / "whole"),
        *("--out", out),
        params=params,
    )


def make_wild(world):
    """A rate at which tokens overflow in the first step of the second epoch."""
    text = (world / "params.yaml").read_text()
    for old, new in (("\n  lr: 0.1", "\n  lr: 1.0e+38"), ("decay: 5.0e-4", "decay: 1.0e+3")):
        assert text.count(old) == 1
        text = text.replace(old, new)
    (world / "wild.yaml").write_text(text)


@pytest.mark.parametrize("name", ["coop", "vpt_deep"])
def test_tuning_that_diverges_is_no_result(tiny_world, starts, monkeypatch, tmp_path, name):
    monkeypatch.setenv("DEVICE", "cpu")
    make_wild(tiny_world)
    with pytest.raises(
        InputError,
        match=rf"{name} on whole, 2 shots of base classes, seed 1: tuning diverged: after epoch 2,"
        r" whose mean loss is .*, tokens are not finite; lower 'tuning.lr'",
    ):
        tune(tiny_world, starts / name, tmp_path / "out", params="wild.yaml")
    assert not list(tmp_path.rglob("*.safetensors"))


def test_a_study_that_diverges_is_no_result(tiny_world, monkeypatch, tmp_path):
    monkeypatch.setenv("DEVICE", "cpu")
    make_wild(tiny_world)
    with pytest.raises(
        InputError,
        match="joint, seed 1: joint on whole, 2 shots of base classes, seed 1: tuning diverged",
    ):
        tiny.stage_in(
            tiny_world,
            "study_direct",
            *(
                "--name",
                "joint",
                "--seed",
                1,
                "--batch",
                tiny_world / "batch.json",
                "--benchmarks",
                tiny_world / "benchmarks",
            ),
            *("--out", tmp_path / "out"),
            params="wild.yaml",
        )


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_tokens_that_are_not_finite_are_neither_written_nor_read(starts, tmp_path, value):
    start = load_start(starts / "coop_gram")
    spoiled = {k: v.clone() for k, v in start.theta.items()}
    spoiled["text"][1, 2] = value
    about = (start.prompt, start.depth)
    with pytest.raises(InputError, match=r"prompt.safetensors: 'text' holds numbers that are not"):
        save_start(Start(*about, spoiled, start.phi, "rms"), tmp_path)
    phi = start.phi | {"text.W_beta": start.phi["text.W_beta"] * value}
    with pytest.raises(InputError, match=r"regulator.safetensors: 'text.W_beta' holds numbers"):
        save_start(Start(*about, start.theta, phi, "rms"), tmp_path)
    save_start(start, tmp_path)
    path = tmp_path / "prompt.safetensors"
    save_file(spoiled, path, metadata={"about": '{"prompt": "coop", "depth": "1"}'})
    with pytest.raises(InputError, match="'text' holds numbers that are not finite; delete it"):
        load_start(tmp_path)


def test_scores_that_are_not_finite_are_no_class(tiny_world, starts, monkeypatch):
    """NaN's argmax is class 0. Tokens of 1e30 are finite; what a tower makes of them is not."""
    monkeypatch.setenv("DEVICE", "cpu")
    method = METHODS["vpt"](load_backbone(tiny_world / "backbone"))
    theta = load_start(starts / "vpt").theta
    states = {(2, 1, 1): theta, (2, 1, 3): {k: v * torch.inf for k, v in theta.items()}}
    with pytest.raises(
        InputError,
        match=r"whole: scores under the head of new classes are not finite \(2 shots, seed 1, "
        r"after epoch 3\); .*'tuning.lr'",
    ):
        judge(method, tiny_world / "benchmarks" / "whole", states, "new")


def test_a_classifier_does_not_guess(tiny_world, starts, monkeypatch):
    monkeypatch.setenv("DEVICE", "cpu")
    made = Classifier(starts / "vpt", tiny_world / "backbone")
    made.start.theta["image"][:] = torch.nan
    with pytest.raises(InputError, match="probabilities are not finite"):
        made.predict([tiny.jpeg(0, 0, 0)], tiny.CLASSES)


def test_weights_that_are_not_finite(tmp_path):
    tiny.make_backbone(tmp_path / "b")
    path = tmp_path / "b" / "open_clip_model.safetensors"
    weights = load_file(path)
    weights["visual.proj"][3, 4] = torch.nan
    save_file(weights, path)
    with pytest.raises(
        InputError, match=r"open_clip_model.safetensors: tensor 'visual.proj' holds numbers that"
    ):
        load_backbone(tmp_path / "b")


@pytest.mark.parametrize("order", [True, False])
def test_attention_is_fused_where_no_second_derivative_is_needed(
    tiny_world,
    there,
    monkeypatch,
    order,
):
    """The support of a second-order step takes the plain form, the query and a first-order step
    the device's kernel.
    """
    method = METHODS["joint"](load_backbone(tiny_world / "backbone"))
    monkeypatch.setattr(Use, "fused", 0)
    episodes = tiny_world / "episodes" / "small" / "1"
    one_step(method, episodes, {0}, inner=InnerStep(0.1, 1, order, "rms"))
    towers = method.backbone.text.layers + method.backbone.vision.layers
    passes = 2 if order else 3  # query, and its loss at the start; the support
    assert Use.fused >= passes * towers


def test_tuning_and_evaluation_use_fused_attention(
    tiny_world, starts, there, monkeypatch, tmp_path
):
    monkeypatch.setattr(Use, "fused", 0)
    tune(tiny_world, starts / "joint", tmp_path / "tuned" / "whole" / "1")
    tuned = Use.fused
    tiny.stage_in(
        tiny_world,
        "evaluate",
        *("--tuned", tmp_path / "tuned", "--benchmarks", tiny_world / "benchmarks"),
        *("--out", tmp_path / "scores"),
    )
    assert 0 < tuned < Use.fused


ASK = """
import torch
from pipeline.device import device
device()
print(torch.are_deterministic_algorithms_enabled(), torch.backends.cuda.flash_sdp_enabled())
"""


@pytest.mark.parametrize("asked, said", [("", "False True"), ("1", "True False")])
def test_deterministic_algorithms_by_a_switch(asked, said):
    done = subprocess.run(
        [sys.executable, "-c", ASK],
        env=os.environ | {"DETERMINISTIC": asked, "DEVICE": "cpu", "PYTHONPATH": str(ROOT)},
        check=True,
        capture_output=True,
        text=True,
    )
    assert done.stdout.strip() == said


def test_recompute_changes_nothing_on_an_accelerator(tiny_world, there):
    """Its backward pass runs in a thread that knows no context of ours."""
    method = METHODS["cocoop"](load_backbone(tiny_world / "backbone"))
    episodes = tiny_world / "episodes" / "small" / "1"
    kept, again = (
        one_step(method, episodes, {0, 1}, recompute=recompute) for recompute in (False, True)
    )
    for name, g in kept.theta.items():
        assert (again.theta[name] - g).abs().max().item() <= 1e-4 * g.abs().max().item(), name
    assert outer(recompute=True).recompute


def test_tasks_are_drawn_as_params_yaml_says(tiny_world, monkeypatch, tmp_path):
    """`meta_seed` draws the training tasks; `seed` chooses what is held out, and draws from it."""
    from pipeline.episodes import tasks

    asked, draw_split = [], tasks.draw_split
    monkeypatch.setattr(
        tasks, "draw_split", lambda *given: asked.append(given) or draw_split(*given)
    )
    changes = {"seed": 11, "meta_seed": 12, "held_out_topics": 0.4, "validation_tasks": 5}
    with_values(tmp_path / "params.yaml", changes, source=tiny_world / "params.yaml")

    def drawn(*more):
        given = ("--name", "small", "--labelled", tiny_world / "labelled", *more)
        params = tmp_path / "params.yaml"
        tiny.stage("labelled_episodes", *given, "--out", tmp_path / "out", params=params)
        _, wanted, held = asked.pop()
        return wanted, held

    wanted, held = drawn()
    assert (wanted.seed, wanted.tasks, wanted.ways) == (12, 17, 2)
    assert (wanted.shots, wanted.queries) == (2, 2)
    assert (held.seed, held.share, held.tasks) == (11, 0.4, 5)
    wanted, held = drawn("--seed", 13)
    assert wanted.seed == 13 and held.seed == 11
    assert count_episodes(tmp_path / "out" / "validation") == 5


def test_meta_seed_is_that_of_what_is_learned(tiny_world, monkeypatch, tmp_path):
    from pipeline.gram import learn

    asked = []
    monkeypatch.setattr(learn, "learn_start", lambda *given: asked.append(given) or 1 / 0)
    changes = {"seed": 11, "meta_seed": 12}
    with_values(tmp_path / "params.yaml", changes, source=tiny_world / "params.yaml")
    episodes = tiny_world / "episodes" / "small" / "1"
    given = ("--name", "coop_gram", "--episodes", episodes, "--out", tmp_path / "out")
    with pytest.raises(ZeroDivisionError):
        tiny.stage("metatrain", *given, params=tmp_path / "params.yaml")
    assert asked[0][3] == 12


def test_metatrain_tells_what_validation_tasks_say_of_what_is_kept(tiny_world, tmp_path):
    import polars as pl

    episodes, validation = tiny_world / "episodes" / "small" / "1", tmp_path / "v.json"
    given = ("--name", "coop_gram", "--episodes", episodes, "--out", tmp_path / "out")
    words, figures = tiny.stage_in(tiny_world, "metatrain", *given, "--validation", validation)
    last = pl.read_csv(tmp_path / "out" / "curve.csv").row(-1, named=True)
    for name in ("validation_start", "validation_plain", "validation"):
        assert figures[f"{name}_loss"] == pytest.approx(last[f"{name}_loss"], rel=1e-4)
        accuracy = 100 * last[f"{name}_accuracy"]
        assert figures[f"{name}_accuracy"] == pytest.approx(accuracy, rel=1e-4)
        assert f"{accuracy:.1f}%" in words
    headline = {"coop_gram": {"validation": figures["validation_accuracy"]}}
    assert json.loads(validation.read_text()) == headline
