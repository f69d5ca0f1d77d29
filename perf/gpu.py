"""What a GPU computes and how fast, part by part; `perf/gpu.sh` is the door.

    python perf/gpu.py [--device cuda] [--out gpu.json] [--only PART …] [--tiny]

Correctness: meta-gradients in 32 bits on the device against 64 on the processor, every stage on the
smallest world against the processor, `torchrun` against one process. Figures, at ViT-B/16 with
random weights (`--tiny`: at a CLIP of two blocks, a trial of this script): meta-tasks a second and
the share of the device's peak, peak memory against tasks at once, pictures a second through
`features` and `benchmark` with their decoding alone beside it. `--device pretend` is the
make-believe accelerator of the tests.

Each part is in the JSON as soon as it is done; one that fails says why, and the next one goes on.
The exit code is 1 if the device computes something else than the processor, or a part failed.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import open_clip
import torch
from PIL import Image
from safetensors.torch import load_file
from torch.utils.flop_counter import FlopCounterMode

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests"), str(ROOT / "perf")]

import tiny  # noqa: E402
from meta_step import PEAKS, random_backbone  # noqa: E402

from pipeline.artifacts import write_json  # noqa: E402
from pipeline.benchmarks.views import train_view  # noqa: E402
from pipeline.clip.backbone import (  # noqa: E402
    Backbone,
    image_features,
    load_backbone,
    open_picture,
    viewed,
)
from pipeline.episodes.shards import read_episodes  # noqa: E402
from pipeline.errors import InputError  # noqa: E402
from pipeline.gram.batch import Batch, load_batch  # noqa: E402
from pipeline.gram.meta import InnerStep  # noqa: E402
from pipeline.gram.params import Outer, Regulator  # noqa: E402
from pipeline.gram.regulator import initial_phi  # noqa: E402
from pipeline.gram.train import meta_step  # noqa: E402
from pipeline.prompts import METHODS  # noqa: E402

PROMPTS = ("coop", "vpt", "joint")
PRECISIONS = ("fp32", "tf32", "bf16")
INNER = InnerStep(0.5, 1, True, "rms")
REGULATOR = Regulator(input_scale="rms", bias=2.0, weight_std=0.02, bias_per_token=False)
CLOSE = {"fp32": 1e-3, "tf32": 5e-2, "bf16": 0.3}  # largest error of a gradient, as a share of it


def outer(precision: str) -> Outer:
    return Outer(
        optimiser="sgd",
        weight_decay=0.0,
        schedule="constant",
        clip_norm=100.0,
        precision="bf16" if precision == "bf16" else "fp32",
        recompute=False,
        measure_every=1,
        checkpoint_every=100,
    )


@contextmanager
def precision_of(name: str):
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high" if name == "tf32" else "highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def leaves(method, dtype: torch.dtype) -> tuple[dict, dict]:
    theta = method.initial(4, torch.Generator().manual_seed(1))
    phi = initial_phi(theta, REGULATOR, torch.Generator().manual_seed(2))
    return tuple({k: v.to(dtype).requires_grad_() for k, v in p.items()} for p in (theta, phi))


def backbone_on(folder: Path, device: str, dtype: torch.dtype = torch.float32) -> Backbone:
    os.environ["DEVICE"] = device
    found = load_backbone(folder)
    found.model.to(dtype)
    return found


class Bench:
    """What the parts share: the device, the smallest world, and how large things are."""

    def __init__(self, device: str, world: Path, small: bool) -> None:
        self.device, self.world, self.small = device, world, small
        self.seconds = 0.2 if small else 3.0

    def synchronise(self) -> None:
        if self.device.startswith("cuda"):
            torch.cuda.synchronize()

    def rate(self, work: Callable, items: int) -> float:
        """Items a second, after a first run that nothing is measured of."""
        work()
        self.synchronise()
        began, done = time.perf_counter(), 0
        while time.perf_counter() - began < self.seconds:
            work()
            self.synchronise()
            done += items
        return round(done / (time.perf_counter() - began), 3)

    def backbone(self) -> Backbone:
        if self.small:
            return backbone_on(self.world / "backbone", self.device)
        return random_backbone(self.device)


def about(bench: Bench) -> dict:
    found = {"torch": torch.__version__, "device": bench.device, "made": time.strftime("%F %T")}
    if bench.device.startswith("cuda"):
        properties = torch.cuda.get_device_properties(0)
        found |= {"card": properties.name, "cards": torch.cuda.device_count()}
        found |= {"memory_gib": round(properties.total_memory / 2**30, 1)}
        found["cuda"] = torch.version.cuda
    return found | {"threads": torch.get_num_threads(), "cores": os.cpu_count()}


def meta_gradients(bench: Bench) -> dict:
    """The error of a meta-gradient in each precision, as a share of it, against float64 on the
    processor.
    """
    tasks = list(read_episodes(bench.world / "episodes" / "small" / "1", pictures=True))[:2]

    def gradients(prompt: str, device: str, dtype: torch.dtype, precision: str) -> dict:
        method = METHODS[prompt](backbone_on(bench.world / "backbone", device, dtype))
        theta, phi = leaves(method, dtype)
        given = lambda part: [torch.from_numpy(np.stack([getattr(t, part) for t in tasks]))]
        shown = [given(part)[0].to(dtype) for part in ("support", "query")]
        if method.sees_pixels:
            view = lambda p: method.backbone.test_view(open_picture(p))
            shown = [
                torch.stack([torch.stack([view(p) for p in getattr(t, part)]) for t in tasks]).to(
                    dtype
                )
                for part in ("support_pictures", "query_pictures")
            ]
        batch = load_batch(method, tasks, shown)
        with precision_of(precision):
            found = meta_step(method, theta, phi, [batch], INNER, outer(precision), False)
        return {k: v.double().cpu() for k, v in (found.theta | found.phi).items()}

    errors, bad = {}, []
    for prompt in (*PROMPTS, "cocoop", "coupled"):
        exact = gradients(prompt, "cpu", torch.float64, "fp32")
        for precision in PRECISIONS:
            found = gradients(prompt, bench.device, torch.float32, precision)
            whole = torch.cat([v.flatten() for v in exact.values()])
            other = torch.cat([found[k].flatten() for k in exact])
            far = ((other - whole).norm() / whole.norm()).item()
            errors.setdefault(prompt, {})[precision] = float(f"{far:.2e}")
            bad += [f"{prompt} in {precision}: {far:.2e}"] if far > CLOSE[precision] else []
    return {"relative_error": errors, "bad": bad}


def stages(bench: Bench) -> dict:
    """Every stage on the smallest world, and what it leaves beside what the processor leaves."""
    with tempfile.TemporaryDirectory() as folder:
        told = Path(folder) / "found.xml"
        names = ["-k", "zero_shot or starts"] if bench.small else []
        command = [sys.executable, "-m", "pytest", "-q", "--tb=line", f"--junitxml={told}"]
        subprocess.run(
            [*command, "tests/test_accelerator.py", *names],
            check=False,
            cwd=ROOT,
            env=os.environ | {"ACCELERATOR": bench.device},
        )
        cases = list(ElementTree.parse(told).iter("testcase"))
    failed = [
        c.get("name") for c in cases if c.find("failure") is not None or c.find("error") is not None
    ]
    return {"compared": len(cases), "bad": failed}


def processes(bench: Bench) -> dict:
    """`torchrun` on all cards (of a processor: two processes) against one process."""
    cuda = bench.device.startswith("cuda")
    cards = torch.cuda.device_count() if cuda else 2
    params = bench.world / "torchrun.yaml"
    text = (bench.world / "params.yaml").read_text()
    params.write_text(text.replace("meta_batch: 2", f"meta_batch: {2 * cards}"))
    common = ["stages/metatrain.py", "--params", params, "--name", "coop_gram"]
    common += ["--episodes", bench.world / "episodes" / "small" / "1"]
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", cards]
    learned = []
    for name, before in (("one", []), ("all", launcher)):
        out = bench.world / f"torchrun-{name}"
        subprocess.run(
            list(map(str, [sys.executable, *before, *common, "--out", out])),
            check=True,
            cwd=ROOT,
            env=os.environ | {"DEVICE": "cuda" if cuda else "cpu"},
        )
        learned.append(load_file(out / "prompt.safetensors"))
    one, other = learned
    far = max(((other[k] - v).norm() / v.norm()).item() for k, v in one.items())
    found = {"processes": cards, "largest_relative_difference": float(f"{far:.2e}")}
    return found | {"bad": [f"{cards} processes: {far:.2e}"] if far > 1e-3 else []}


def random_batch(method, tasks: int, ways: int, shots: int, queries: int) -> Batch:
    """Tasks of noise at the paper profile's sizes; their speed is that of real ones."""
    device, random = method.backbone.device, torch.Generator().manual_seed(0)
    side = method.backbone.model.visual.image_size
    side = side[0] if isinstance(side, tuple) else side
    shape = (3, side, side) if method.sees_pixels else (method.backbone.dim,)
    parts = []
    for count in (shots, queries):
        values = torch.randn(tasks, ways * count, *shape, generator=random)
        labels = torch.arange(ways).repeat_interleave(count).expand(tasks, -1)
        parts += [method.look(values.to(device)), labels.contiguous().to(device)]
    names = [f"class number {n}" for n in range(ways)]
    return Batch(tuple(range(tasks)), method.prepare([names] * tasks), *parts)


def step_of(method, precision: str, tasks: int, small: bool) -> Callable:
    theta, phi = leaves(method, torch.float32)
    sizes = (3, 1, 1) if small else (16, 4, 8)
    batch = random_batch(method, tasks, *sizes)
    return lambda: meta_step(method, theta, phi, [batch], INNER, outer(precision), False)


def meta_tasks(bench: Bench) -> dict:
    """Meta-tasks a second by method and precision, and their share of the device's peak."""
    backbone, found = bench.backbone(), {}
    card = torch.cuda.get_device_name() if bench.device.startswith("cuda") else ""
    peaks = next((v for k, v in PEAKS.items() if k in card), None)
    for prompt in PROMPTS:
        tasks = 4 if prompt == "coop" else 1
        for precision in PRECISIONS:
            with precision_of(precision), within(found.setdefault(prompt, {}), precision):
                step = step_of(METHODS[prompt](backbone), precision, tasks, bench.small)
                with FlopCounterMode(display=False) as counted:
                    step()
                rate = bench.rate(step, tasks)
                teraflops = counted.get_total_flops() / tasks * rate / 1e12
                here = {"tasks_per_second": rate, "tflop_per_second": round(teraflops, 3)}
                if peaks:
                    peak = {"bf16": peaks[0], "tf32": peaks[0] / 2, "fp32": peaks[1]}[precision]
                    here["share_of_peak"] = round(teraflops / peak, 4)
                found[prompt][precision] = here
    return found


@contextmanager
def within(found: dict, name):
    """What does not fit is a finding, too."""
    try:
        yield
    except (torch.OutOfMemoryError, InputError) as error:
        found[name] = f"out of memory: {str(error).splitlines()[0][:200]}"
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


def memory(bench: Bench) -> dict:
    """Peak memory in MiB, the model's included, against tasks at once, in bf16."""
    backbone, found = bench.backbone(), {}
    for prompt, numbers in (("coop", (1, 2, 4, 8)), ("vpt", (1, 2)), ("joint", (1, 2))):
        for tasks in numbers:
            with within(found.setdefault(prompt, {}), tasks):
                step = step_of(METHODS[prompt](backbone), "bf16", tasks, bench.small)
                if bench.device.startswith("cuda"):
                    torch.cuda.reset_peak_memory_stats()
                step()
                found[prompt][tasks] = (
                    round(torch.cuda.max_memory_allocated() / 2**20)
                    if bench.device.startswith("cuda")
                    else "not measured on this device"
                )
    return found


def pictures(bench: Bench) -> dict:
    """Pictures a second of JPEG files of 256 pixels: decoded, encoded, both as the stages do."""
    backbone, count = bench.backbone(), 32 if bench.small else 512
    side = 32 if bench.small else 256
    random, files = np.random.default_rng(0), []
    for _ in range(count):
        file = io.BytesIO()
        low = random.integers(0, 255, (side // 8, side // 8, 3), dtype=np.uint8)
        Image.fromarray(low).resize((side, side)).save(file, "jpeg", quality=95)
        files.append(file.getvalue())
    p = backbone.preprocess
    mean, std = tuple(p["mean"]), tuple(p["std"])
    view = open_clip.image_transform(p["size"], is_train=False, mean=mean, std=std)
    backbone = replace(backbone, test_view=view)
    ready = [backbone.test_view(open_picture(f)) for f in files]
    encoded = bench.rate(lambda: image_features(backbone, ready), count)
    found = {"encoding_alone": encoded}
    augment = train_view(backbone)
    ways: dict[str, Callable[[], Iterable]] = {
        "features": lambda: viewed(backbone, open_picture, files),
        "augmented": lambda: (augment(open_picture(f)) for f in files),
    }
    for stage, seen in ways.items():
        decoded = bench.rate(lambda seen=seen: list(seen()), count)
        whole = bench.rate(lambda seen=seen: image_features(backbone, seen()), count)
        limit = "decoding" if decoded < encoded else "encoding"
        found[stage] = {"decoding_alone": decoded, "whole": whole, "limit": limit}
    return found


PARTS = {
    "about": about,
    "meta_gradients": meta_gradients,
    "stages": stages,
    "processes": processes,
    "meta_tasks": meta_tasks,
    "memory": memory,
    "pictures": pictures,
}


def main() -> int:
    cli = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    cli.add_argument("--device", default=os.environ.get("DEVICE") or "cuda")
    cli.add_argument("--out", type=Path, default=Path("gpu.json"))
    cli.add_argument("--only", nargs="+", choices=list(PARTS), default=list(PARTS))
    cli.add_argument("--tiny", action="store_true", help="smallest sizes: a trial of the script")
    args = cli.parse_args()
    if args.device == "pretend":
        import accelerator  # noqa: F401
    found, good = {}, True
    with tempfile.TemporaryDirectory() as folder:
        os.environ["DEVICE"] = "cpu"
        bench = Bench(args.device, tiny.make_world(Path(folder)), args.tiny)
        for name in args.only:
            began = time.perf_counter()
            os.environ["DEVICE"] = args.device
            try:
                found[name] = PARTS[name](bench)
                good &= not found[name].get("bad")
            except Exception as error:
                found[name], good = {"failed": f"{type(error).__name__}: {error}"}, False
            found[name]["seconds"] = round(time.perf_counter() - began, 1)
            print(f"{name}: {json.dumps(found[name])}", flush=True)
            write_json(found, args.out)
    print(f"{args.out}: {'all parts are well' if good else 'NOT WELL: see bad and failed'}")
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
