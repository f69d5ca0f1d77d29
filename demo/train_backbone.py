"""Trains the demo's backbone: a small, genuine open_clip CLIP, from drawn pictures and alt text.

    python demo/train_backbone.py            # about 40 minutes on two cores; writes demo/backbone/

The result is committed, so nobody needs to run this. Its pictures come from another seed than the
demo's web pictures and benchmarks, mostly in four of the eight styles and always at mild strength:
docs/backbone.md tells how that split is meant and what was measured.
"""

from __future__ import annotations

import argparse
import gzip
import json
import sys
import time
from multiprocessing import Pool
from pathlib import Path

import numpy as np
import open_clip
import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers
from torch.nn import functional as F
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from pipeline.clip.text import encode_tokens
from pipeline.world.captions import alt_text
from pipeline.world.concepts import load_concepts
from pipeline.world.drawing import STYLES, draw

CONCEPTS = Path(__file__).parent / "concepts.yaml"
# How often each style occurs in training. The last four are rare, so their pictures are a new
# domain.
STYLE_SHARES = {
    "flat": 0.30,
    "sketch": 0.22,
    "textured": 0.22,
    "sepia": 0.12,
    "night": 0.05,
    "pixelated": 0.05,
    "blueprint": 0.02,
    "neon": 0.02,
}
MAX_STRENGTH = 0.5
DRAWN, IMAGE = 64, 48  # pixels: as drawn, and as the tower sees them
CONFIG = {
    "model_cfg": {
        "embed_dim": 128,
        "vision_cfg": {
            "image_size": IMAGE,
            "patch_size": 8,
            "width": 192,
            "layers": 4,
            "head_width": 32,
        },
        "text_cfg": {"context_length": 24, "width": 192, "heads": 6, "layers": 4},
    },
    "preprocess_cfg": {
        "mean": [0.5, 0.5, 0.5],
        "std": [0.5, 0.5, 0.5],
        "interpolation": "bicubic",
        "resize_mode": "shortest",
    },
}


def draw_class(job: tuple[int, int, int]) -> tuple[np.ndarray, list[list[str]]]:
    """`count` training pictures of one class, (count, 48+4, 48+4, 3) uint8, with three captions
    each.
    """
    index, count, seed = job
    concept = load_concepts(CONCEPTS)[index]
    rng = np.random.default_rng([seed, index])
    side = IMAGE + 4
    pictures, captions = np.empty((count, side, side, 3), np.uint8), []
    for row in range(count):
        style = str(rng.choice(list(STYLE_SHARES), p=list(STYLE_SHARES.values())))
        svg = concept.drawings[rng.integers(len(concept.drawings))]
        picture = draw(svg, style, rng, DRAWN, MAX_STRENGTH * rng.random())
        pictures[row] = np.asarray(picture.resize((side, side)))
        captions.append([alt_text(concept.name, style, rng) for _ in range(3)])
    return pictures, captions


def train_bpe(captions: list[str], path: Path) -> None:
    """Byte-pair merges of the captions' own words, in the file format of open_clip's tokenizer."""
    tokenizer = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.train_from_iterator(
        captions,
        trainers.BpeTrainer(
            vocab_size=2000, min_frequency=20, end_of_word_suffix="</w>", show_progress=False
        ),
    )
    merges = [" ".join(m) for m in json.loads(tokenizer.to_str())["model"]["merges"]]
    with (
        open(path, "wb") as raw,
        gzip.GzipFile(fileobj=raw, mode="wb", mtime=0, filename="") as packed,
    ):
        packed.write("\n".join(["#merges of the demo's captions", *merges]).encode())


def to_input(pictures: np.ndarray, rng: np.random.Generator) -> torch.Tensor:
    """(n, 52, 52, 3) uint8 → (n, 3, 48, 48) float: random crop, brightness and contrast,
    normalised.
    """
    n = len(pictures)
    x = torch.from_numpy(pictures).permute(0, 3, 1, 2)
    corners = rng.integers(0, pictures.shape[1] - IMAGE + 1, (n, 2))
    x = (
        torch.stack([p[:, i : i + IMAGE, j : j + IMAGE] for p, (i, j) in zip(x, corners)]).float()
        / 127.5
        - 1
    )
    gain = torch.from_numpy(rng.uniform(0.8, 1.2, (n, 1, 1, 1)).astype(np.float32))
    shift = torch.from_numpy(rng.uniform(-0.15, 0.15, (n, 1, 1, 1)).astype(np.float32))
    return x * gain + shift


@torch.no_grad()
def zero_shot(model, tokenizer, seed: int, strength: float, per_class: int = 1) -> dict[str, float]:
    """Top-1 in percent over all classes at once, per style, on pictures of an unseen seed."""
    concepts = load_concepts(CONCEPTS)
    text = encode_tokens(model, tokenizer([f"a photo of a {c.name}." for c in concepts]))
    rng, result = np.random.default_rng(seed), {}
    for style in STYLES:
        hits = []
        for label, concept in enumerate(concepts):
            drawn = [
                draw(
                    concept.drawings[rng.integers(len(concept.drawings))],
                    style,
                    rng,
                    DRAWN,
                    strength,
                )
                for _ in range(per_class)
            ]
            x = (
                torch.stack(
                    [torch.from_numpy(np.array(p.resize((IMAGE, IMAGE), 3))) for p in drawn]
                )
                .permute(0, 3, 1, 2)
                .float()
                / 127.5
                - 1
            )
            hits += (model.encode_image(x, normalize=True) @ text.T).argmax(1).eq(label).tolist()
        result[style] = round(100 * float(np.mean(hits)), 2)
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "backbone")
    parser.add_argument("--steps", type=int, default=1100)
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--per-class", type=int, default=80, help="training pictures per class")
    parser.add_argument("--lr", type=float, default=1.5e-3)
    parser.add_argument("--seed", type=int, default=20230)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(args.seed)
    rng = np.random.default_rng(args.seed)

    classes = len(load_concepts(CONCEPTS))
    started = time.time()
    with Pool() as pool:
        jobs = [(i, args.per_class, args.seed) for i in range(classes)]
        drawn = list(tqdm(pool.imap(draw_class, jobs, chunksize=8), total=classes, desc="drawing"))
    pictures = np.stack([p for p, _ in drawn])  # (classes, per class, 52, 52, 3)
    captions = [c for _, c in drawn]
    train_bpe(
        [text for of_class in captions for of_picture in of_class for text in of_picture],
        args.out / "bpe.txt.gz",
    )

    context = CONFIG["model_cfg"]["text_cfg"]["context_length"]
    tokenizer = open_clip.SimpleTokenizer(
        bpe_path=str(args.out / "bpe.txt.gz"), context_length=context
    )
    CONFIG["model_cfg"]["text_cfg"]["vocab_size"] = tokenizer.vocab_size
    (args.out / "open_clip_config.json").write_text(json.dumps(CONFIG, indent=2) + "\n")
    model = open_clip.CLIP(**CONFIG["model_cfg"]).to(args.device)
    decay = [p for p in model.parameters() if p.ndim >= 2]
    other = [p for p in model.parameters() if p.ndim < 2]
    optimiser = torch.optim.AdamW(
        [{"params": decay, "weight_decay": 0.1}, {"params": other, "weight_decay": 0.0}],
        lr=args.lr,
        betas=(0.9, 0.98),
    )
    warmup = 60
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimiser,
        lambda s: min(1, (s + 1) / warmup) * 0.5 * (1 + np.cos(np.pi * min(1, s / args.steps))),
    )

    bar = tqdm(range(args.steps), desc="training")
    for step in bar:
        # Every class at most once per batch: two pictures of one class would be each other's false
        # negatives.
        chosen = rng.permutation(classes)[: args.batch]
        rows = rng.integers(args.per_class, size=len(chosen))
        x = to_input(pictures[chosen, rows], rng).to(args.device)
        tokens = tokenizer([captions[c][r][rng.integers(3)] for c, r in zip(chosen, rows)]).to(
            args.device
        )
        logits = (
            model.logit_scale.exp()
            * F.normalize(model.encode_image(x), dim=-1)
            @ encode_tokens(model, tokens).T
        )
        labels = torch.arange(len(logits), device=args.device)
        loss = (F.cross_entropy(logits, labels) + F.cross_entropy(logits.T, labels)) / 2
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        schedule.step()
        with torch.no_grad():
            model.logit_scale.clamp_(0, np.log(100))
        bar.set_postfix(loss=f"{loss.item():.3f}", scale=f"{model.logit_scale.exp().item():.1f}")
        if (step + 1) % 200 == 0:
            model.eval()
            print(
                step + 1,
                f"{loss.item():.4f}",
                zero_shot(model.cpu(), tokenizer, 1, 0.5),
                flush=True,
            )
            model.to(args.device).train()

    model = model.cpu().eval()
    minutes = (time.time() - started) / 60
    weights = {k: v.half().contiguous() for k, v in model.state_dict().items() if k != "attn_mask"}
    save_file(weights, args.out / "open_clip_model.safetensors")
    record = {
        "steps": args.steps,
        "batch": args.batch,
        "lr": args.lr,
        "seed": args.seed,
        "classes": classes,
        "pictures": classes * args.per_class,
        "style_shares": STYLE_SHARES,
        "minutes": round(minutes, 1),
        "device": args.device,
        "final_loss": round(loss.item(), 4),
        "chance_percent": round(100 / classes, 2),
        "zero_shot_all_classes": {
            f"strength_{s}": zero_shot(model, tokenizer, 2, s, per_class=2)
            for s in (0.25, 0.75, 1.0)
        },
    }
    (args.out / "training.json").write_text(json.dumps(record, indent=2) + "\n")
    print(json.dumps(record, indent=2))


if __name__ == "__main__":
    main()
