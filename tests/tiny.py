"""The smallest world that every stage of learning runs on: a random CLIP of two blocks, sixteen
noisy pictures of four classes in two domains.
"""

from __future__ import annotations

import importlib.util
import io
import json
import shutil
import sys
import tarfile
from pathlib import Path

import numpy as np
import open_clip
import pyarrow as pa
import torch
from conftest import ROOT
from PIL import Image
from ruamel.yaml import YAML
from safetensors.torch import save_file

from pipeline.artifacts import write_table
from pipeline.pairs.schemas import KEPT, PAIRS

CLASSES = ["bus", "cat", "lion", "pizza"]
DOMAINS = ["flat", "neon"]
EACH = 3  # pictures per class, domain and part
CONFIG = {
    "model_cfg": {
        "embed_dim": 24,
        "vision_cfg": {
            "image_size": 16,
            "patch_size": 8,
            "width": 32,
            "layers": 2,
            "head_width": 16,
        },
        "text_cfg": {
            "context_length": 24,
            "width": 32,
            "heads": 2,
            "layers": 2,
            "vocab_size": 1728,
        },
    },
    "preprocess_cfg": {
        "mean": [0.5, 0.5, 0.5],
        "std": [0.5, 0.5, 0.5],
        "interpolation": "bicubic",
        "resize_mode": "shortest",
    },
}
GRAM = {"episodes": "small", "inner_lr_factor": 1.0}
DIRECT = {
    "coop": {"prompt": "coop"},
    "coop_deep": {"prompt": "coop", "depth": 2},
    "cocoop": {"prompt": "cocoop"},
    "vpt": {"prompt": "vpt"},
    "joint": {"prompt": "joint"},
}
META = {
    "coop_gram": {"prompt": "coop"},
    "coop_plain": {"prompt": "coop", "regulator": "identity"},
    "coop_first": {"prompt": "coop", "order": "first"},
    "coop_pretrained": {"prompt": "coop", "algorithm": "pretrain"},
    "cocoop_gram": {"prompt": "cocoop"},
    "vpt_deep": {"prompt": "vpt", "depth": 2},
    "unigram": {"prompt": "joint"},
    "coupled_gram": {"prompt": "coupled", "depth": 2},
}
IN_BF16 = ("coop_gram", "cocoop_gram", "vpt_deep", "unigram", "coupled_gram")


def make_backbone(folder: Path) -> None:
    folder.mkdir()
    torch.manual_seed(0)
    model = open_clip.CLIP(**CONFIG["model_cfg"])
    save_file(model.state_dict(), folder / "open_clip_model.safetensors")
    (folder / "open_clip_config.json").write_text(json.dumps(CONFIG))
    shutil.copy(ROOT / "demo" / "backbone" / "bpe.txt.gz", folder)


def jpeg(number: int, label: int, domain: int) -> bytes:
    """Noise around the class's own colour; the domain is how light it is."""
    colour = np.random.default_rng(label).uniform(0, 255, 3) * (1 - 0.4 * domain)
    noise = np.random.default_rng(number).normal(scale=40, size=(16, 16, 3))
    file = io.BytesIO()
    Image.fromarray(np.clip(colour + noise, 0, 255).astype(np.uint8)).save(file, "jpeg")
    return file.getvalue()


def make_pictures(top: Path) -> None:
    """A labelled folder, and the same pictures as fetched pairs."""
    rows, number = [], 0
    (top / "shards").mkdir()
    with tarfile.open(top / "shards" / "00000.tar", "w", format=tarfile.USTAR_FORMAT) as tar:
        for part in ("train", "test"):
            for label, name in enumerate(CLASSES):
                for domain, style in enumerate(DOMAINS):
                    folder = top / "pictures" / part / style / name
                    folder.mkdir(parents=True)
                    for _ in range(EACH):
                        content, key = jpeg(number, label, domain), f"{number:05d}"
                        (folder / f"{key}.jpg").write_bytes(content)
                        member = tarfile.TarInfo(f"{key}.jpg")
                        member.size = len(content)
                        tar.addfile(member, io.BytesIO(content))
                        rows.append((key, f"a {style} {name}"))
                        number += 1
    n = len(rows)
    keys, captions = (list(column) for column in zip(*rows, strict=True))
    pairs = {"key": keys, "caption": captions, "status": ["success"] * n, "error": [None] * n}
    pairs |= {"shard": ["00000.tar"] * n, "width": [16] * n, "height": [16] * n}
    pairs |= {"bytes": [1] * n, "sha256": ["0"] * n}
    write_table(pa.table(pairs, schema=PAIRS), top / "pairs.parquet", PAIRS)
    kept = {"key": keys, "caption": captions, "score": [0.0] * n, "kept": [True] * n}
    kept["reason"] = [None] * n
    write_table(pa.table(kept, schema=KEPT), top / "kept.parquet", KEPT)


def make_params(top: Path) -> None:
    """`params.yaml` for fp32 and `bf16.yaml`, where blocks run again backwards; SGD, whose steps
    are as long as the gradients.
    """
    yaml = YAML()
    p = yaml.load(ROOT / "params.yaml")
    p |= {"ways": 2, "support_shots": 2, "query_shots": 2, "meta_batch": 2, "meta_steps": 2}
    p |= {"inner_lr": 0.5, "outer_lr": 0.1, "regulator_lr": 0.1, "context_tokens": 4}
    p["backbone"] = {"path": str(top / "backbone")}
    p["outer"].update(optimiser="sgd", measure_every=2, validate_every=1, clip_norm=100.0)
    p["validation_tasks"] = 3
    p["regulator"]["weight_std"] = 0.02
    learned = {"direct": DIRECT, "meta": {name: method | GRAM for name, method in META.items()}}
    p["methods"] = {"zero_shot": {"clip": {}}, **learned}
    p["benchmarks"] = {
        name: {
            "path": str(top / "pictures"),
            "domains": [domain],
            "shots": {"base": [2], "all": [2]} if name == "whole" else {},
        }
        for name, domain in (("whole", "flat"), ("neon", "neon"))
    }
    p["templates"] = {"whole": "a photo of a {}.", "neon": "a photo of a {}."}
    p["protocols"] = {"whole": {"base_to_new": [2], "all_classes": [2], "cross_domain": ["neon"]}}
    p["few_shot"].update(draws=[1], seeds=[1], epochs=2)
    p["tuning"].update(batch=4, batch_of={"cocoop": 1}, lr=0.1, warmup_lr=0.05)
    p["evaluate"]["curve_epochs"] = [1]
    episodes = {"support": "one_domain", "tasks": 17, "confusable": 0.5}
    p["labelled"] = {
        "small": {
            "path": str(top / "pictures"),
            "list": None,
            "names": None,
            "per_class": 6,
            "episodes": episodes,
        }
    }
    p["study"].update(methods=learned, benchmarks=["whole"], shots=2, episodes={"small": episodes})
    (top / "batch.json").write_text('{"batch": 4}')
    yaml.dump(p, top / "params.yaml")
    p["outer"].update(precision="bf16", recompute=True)
    p |= {"inner_lr": 0.05, "meta_steps": 1}
    yaml.dump(p, top / "bf16.yaml")


def stage(script: str, *arguments, params: Path) -> tuple[str, dict]:
    """Runs a stage in this process; its closing words and figures."""
    before = sys.argv, list(sys.path)
    sys.argv = [f"{script}.py", "--params", str(params), *map(str, arguments)]
    sys.path.insert(0, str(ROOT / "stages"))
    try:
        path = ROOT / "stages" / f"{script}.py"
        spec = importlib.util.spec_from_file_location(f"stage_{script}", path)
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module.main()[:2]
    finally:
        sys.argv, sys.path[:] = before


def make_world(top: Path) -> Path:
    """All that comes before learning, on whatever DEVICE says."""
    make_backbone(top / "backbone")
    make_pictures(top)
    make_params(top)
    params, episodes = top / "params.yaml", top / "episodes" / "small" / "1"
    stage("labelled", "--name", "small", "--out", top / "labelled", params=params)
    arguments = ("--name", "small", "--labelled", top / "labelled", "--out", episodes)
    stage("labelled_episodes", *arguments, params=params)
    for name in ("whole", "neon"):
        out = top / "benchmarks" / name
        stage("benchmark", "--name", name, "--out", out, params=params)
    return top


def stage_in(world: Path, script: str, *arguments, params: str = "params.yaml") -> tuple[str, dict]:
    """`stage` with one of the world's parameter files."""
    return stage(script, *arguments, params=world / params)


def metatrain(world: Path, name: str, out: Path, params: str = "params.yaml") -> None:
    episodes = world / "episodes" / "small" / "1"
    arguments = ("--name", name, "--episodes", episodes, "--out", out)
    stage_in(world, "metatrain", *arguments, params=params)


def make_starts(world: Path) -> Path:
    """A start of every method, on whatever DEVICE says."""
    for name in DIRECT:
        stage_in(world, "start", "--name", name, "--out", world / "starts" / name)
    for name in META:
        metatrain(world, name, world / "starts" / name)
    return world / "starts"
