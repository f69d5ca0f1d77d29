"""Time of judging several methods and seeds on a benchmark, against the loop that encodes its
pictures for each.

    python perf/evaluate.py [--pictures 64] [--methods 3] [--seeds 3] [--rounds 3]

The pictures are JPEG files, the backbone is ViT-B/16 with random weights. `ours` reads and encodes
each picture once, as the benchmark stage does, and judges every state of CoOp's tokens on the
cached features with `pipeline.benchmarks.evaluation.judge`; `again` decodes, preprocesses and
encodes all pictures for every method and seed, and scores them with open_clip's own text encoder at
77 positions. Both must predict the same.

A hook on the vision tower counts the pictures that go through it. VPT is judged on the same
pictures too: there the tower's blocks depend on the tokens and run for every state, but files are
read and patches embedded once.

The last line is JSON: `ratio` is the median over rounds of again / ours, our encoding included;
`ratio_added` is the same for adding one more method; `encoded` and `encoded_added` are pictures
through the tower for all methods and for the added one, `encoded_again` the same for the other
side.
"""

from __future__ import annotations

import argparse
import dataclasses
import io
import json
import tempfile
import time
from pathlib import Path

import numpy as np
import open_clip
import pyarrow as pa
import torch
from meta_step import CONTEXT, NAMES, Plain, random_backbone
from tuning import picture

from pipeline.artifacts import to_vectors, write_table
from pipeline.benchmarks.evaluation import judge
from pipeline.benchmarks.schemas import PICTURES, SAMPLES, test_schema
from pipeline.clip.backbone import Backbone, image_features, open_picture
from pipeline.prompts import METHODS
from pipeline.prompts.base import Tokens


def backbone_with_view() -> Backbone:
    found = random_backbone("cpu")
    view = open_clip.transform.image_transform_v2(
        open_clip.transform.PreprocessCfg(**found.preprocess, interpolation="bicubic"),
        is_train=False,
    )
    return dataclasses.replace(found, test_view=view)


class Counter:
    """Pictures that went through a module."""

    def __init__(self, module: torch.nn.Module) -> None:
        self.count = 0
        module.register_forward_pre_hook(self._seen)

    def _seen(self, _module, inputs) -> None:
        self.count += len(inputs[0])

    def since(self) -> int:
        found, self.count = self.count, 0
        return found


def jpegs(count: int, classes: int) -> tuple[list[bytes], np.ndarray]:
    random, labels, files = np.random.default_rng(0), np.arange(count) % classes, []
    for label in labels:
        buffer = io.BytesIO()
        picture(label, random).save(buffer, "JPEG")
        files.append(buffer.getvalue())
    return files, labels


def prepare(backbone: Backbone, files: list[bytes], labels: np.ndarray, folder: Path) -> None:
    """What the benchmark stage leaves: samples, features of the test views, and the files."""
    n, index = len(files), pa.array(range(len(files)), pa.int32())
    features = image_features(
        backbone, (backbone.test_view(open_picture(f)) for f in files)
    ).numpy()
    names = [NAMES[label] for label in labels]
    samples = [
        index,
        ["test"] * n,
        [""] * n,
        pa.array(labels, pa.int32()),
        names,
        ["base"] * n,
        [str(i) for i in range(n)],
    ]
    write_table(pa.table(samples, names=SAMPLES.names), folder / "samples.parquet", SAMPLES)
    schema = test_schema(backbone.dim)
    write_table(
        pa.table([index, to_vectors(features)], names=schema.names), folder / "test.parquet", schema
    )
    write_table(
        pa.table([index, pa.array(files, pa.binary())], names=PICTURES.names),
        folder / "pictures.parquet",
        PICTURES,
    )


def starts(backbone: Backbone, methods: int, seeds: int) -> list[dict[int, Tokens]]:
    """For every method, states of CoOp's tokens by seed."""
    coop = METHODS["coop"](backbone)
    return [
        {
            seed: coop.initial(CONTEXT, torch.Generator().manual_seed(100 * m + seed), "random")
            for seed in range(seeds)
        }
        for m in range(methods)
    ]


def again(
    backbone: Backbone, files: list[bytes], classes: int, states: dict[int, Tokens]
) -> dict[int, np.ndarray]:
    plain, found = Plain(backbone), {}
    with torch.no_grad():
        for seed, tokens in states.items():
            seen = torch.cat(
                [
                    plain.features(
                        torch.stack(
                            [backbone.test_view(open_picture(f)) for f in files[i : i + 256]]
                        )
                    )
                    for i in range(0, len(files), 256)
                ]
            )
            text = plain.prompted_text(tokens["text"], *plain.opened_text(NAMES[:classes], CONTEXT))
            found[seed] = (seen @ text.T).argmax(dim=-1).numpy()
    return found


def main() -> None:
    cli = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    for name, default in (
        ("pictures", 64),
        ("classes", 8),
        ("methods", 3),
        ("seeds", 3),
        ("rounds", 3),
    ):
        cli.add_argument(f"--{name}", type=int, default=default)
    args = cli.parse_args()
    backbone = backbone_with_view()
    counter = Counter(backbone.model.visual.conv1)
    files, labels = jpegs(args.pictures, args.classes)
    methods, coop = starts(backbone, args.methods + 1, args.seeds), METHODS["coop"](backbone)
    print(
        f"ViT-B/16 of random weights, {args.pictures} pictures, {args.classes} classes, "
        f"{args.methods} methods of {args.seeds} seeds, and one added; "
        f"{torch.get_num_threads()} thread(s)"
    )
    ratios, added, encoded, different = [], [], {}, 0
    for number in range(args.rounds):
        seconds, found = {}, {}
        for side in ("ours", "again") if number % 2 == 0 else ("again", "ours"):
            began = time.perf_counter()
            if side == "ours":
                with tempfile.TemporaryDirectory() as temporary:
                    folder = Path(temporary)
                    prepare(backbone, files, labels, folder)
                    found[side] = [judge(coop, folder, states, "all")[2] for states in methods[:-1]]
                    seconds[side], encoded[side] = time.perf_counter() - began, counter.since()
                    began = time.perf_counter()
                    found[side].append(judge(coop, folder, methods[-1], "all")[2])
                    seconds["ours added"], encoded["ours added"] = (
                        time.perf_counter() - began,
                        counter.since(),
                    )
                    vpt = METHODS["vpt"](backbone)
                    judge(
                        vpt,
                        folder,
                        {
                            seed: vpt.initial(CONTEXT, torch.Generator().manual_seed(seed))
                            for seed in range(args.seeds)
                        },
                        "all",
                    )
                    encoded["vpt"] = counter.since()
            else:
                found[side] = [
                    again(backbone, files, args.classes, states) for states in methods[:-1]
                ]
                seconds[side], encoded[side] = time.perf_counter() - began, counter.since()
                began = time.perf_counter()
                found[side].append(again(backbone, files, args.classes, methods[-1]))
                seconds["again added"] = time.perf_counter() - began
                counter.since()
        different += sum(
            int((a[seed] != b[seed]).sum())
            for a, b in zip(found["ours"], found["again"])
            for seed in a
        )
        ratios.append(seconds["again"] / seconds["ours"])
        added.append(seconds["again added"] / seconds["ours added"])
        print(
            f"round {number + 1}: ours {seconds['ours']:.2f} s, again {seconds['again']:.2f} s; "
            f"one more method {seconds['ours added']:.2f} s and {seconds['again added']:.2f} "
            f"s; {different} predictions differ",
            flush=True,
        )
    print(
        f"pictures through the patch embedding: ours {encoded['ours']}, {encoded['ours added']} "
        f"more for the added method; again {encoded['again']}; VPT of {args.seeds} seeds "
        f"{encoded['vpt']}"
    )
    print(
        json.dumps(
            {
                "ratio": round(float(np.median(ratios)), 3),
                "ratio_added": round(float(np.median(added)), 3),
                "least": round(min(ratios), 3),
                "most": round(max(ratios), 3),
                "encoded": encoded["ours"],
                "encoded_added": encoded["ours added"],
                "encoded_again": encoded["again"],
                "embedded_vpt": encoded["vpt"],
                "different_predictions": different,
            }
        )
    )


if __name__ == "__main__":
    main()
