"""The classifier as one ONNX graph, for machines without torch."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from pipeline.artifacts import replacing
from pipeline.errors import InputError

if TYPE_CHECKING:
    from gram.estimator import PromptClassifier

TOLERANCE = 1e-4  # of probabilities
OPSET = 18
OPENING = (
    "8-bit RGB of the first frame, upright by EXIF, composed on white where it is transparent; "
    "then open_clip's transform for tests, of 'preprocessing': resized, its centre cropped"
)
EXTRA = "needs the extra [onnx]: pip install '.[onnx]' where this project lies"


class Graph(nn.Module):
    """(n, 3, h, w) normalised pixels → (n, K) probabilities."""

    weights: Tensor

    def __init__(self, model: PromptClassifier, matrix: Tensor) -> None:
        super().__init__()
        plain = model.sight_ is model.backbone_
        self.tower = model.backbone_.model.visual if plain else model.sight_.model
        scale = float(model.backbone_.logit_scale) / model.temperature_
        self.register_buffer("weights", (scale * matrix.T).to(model.backbone_.device))

    def forward(self, pixels: Tensor) -> Tensor:
        features = nn.functional.normalize(self.tower(pixels), dim=-1)
        return (features @ self.weights).softmax(dim=-1)


def _side(preprocess: dict) -> tuple[int, int]:
    size = preprocess["size"]
    return (size, size) if isinstance(size, int) else tuple(size)


def _metadata(model: PromptClassifier) -> dict[str, str]:
    return {
        "classes": json.dumps(model.classes_.tolist(), ensure_ascii=False),
        "opening": OPENING,
        "preprocessing": json.dumps(model.backbone_.preprocess),
        "backbone_sha256": model.digest_,
        "method": model.method_,
    }


def _compare(path: Path, graph: Graph, like: Tensor) -> float:
    """The largest difference of probabilities between torch and onnxruntime, over two sizes of
    batch.
    """
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    worst = 0.0
    for count in (1, 3):
        pixels = torch.randn(count, *like.shape[1:], generator=torch.Generator().manual_seed(count))
        with torch.inference_mode():
            wanted = graph(pixels.to(like.device)).cpu()
        found = torch.from_numpy(session.run(None, {"pixels": pixels.numpy()})[0])
        worst = max(worst, float((found - wanted).abs().max()))
    return worst


def _is_ours(path: Path) -> bool:
    """Whether a file is a graph that `export` wrote."""
    import onnx

    try:
        props = {prop.key for prop in onnx.load(path, load_external_data=False).metadata_props}
    except Exception:  # protobuf raises kinds of its own
        return False
    return {"classes", "preprocessing", "backbone_sha256", "method"} <= props


def check_replaceable(path: Path) -> None:
    """Raises InputError for a path that cannot be written, or where something else is."""
    if os.path.lexists(path) and not (path.is_file() and not path.is_symlink() and _is_ours(path)):
        raise InputError(
            f"{path}: is there already, and is no graph that `gram export` wrote; choose another "
            "name"
        )


def export(model: PromptClassifier, path: Path) -> float:
    """Writes image tower and class matrix as one graph; class names and preprocessing are its
    metadata.

    Returns:
        The largest difference of probabilities between torch and onnxruntime.

    Raises InputError if the extra is not installed, or the two differ by more than `TOLERANCE`:
    then nothing is written.
    """
    try:
        import onnx
        import onnxruntime  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise InputError(f"exporting to ONNX {EXTRA} ({error.name} is missing)") from None
    if model.matrix_ is None:
        raise InputError(
            f"{path}: {model.title_} makes other class features for every "
            "picture, so the graph of an image tower and one class matrix cannot say what it "
            "says; adapt with another method or start"
        )
    check_replaceable(path)
    graph = Graph(model, model.matrix_).eval()
    like = torch.zeros(2, 3, *_side(model.backbone_.preprocess), device=model.backbone_.device)
    program = torch.onnx.export(
        graph,
        (like,),
        dynamo=True,
        opset_version=OPSET,
        input_names=["pixels"],
        output_names=["probabilities"],
        dynamic_shapes={"pixels": {0: torch.export.Dim("pictures")}},
        verbose=False,
    )
    assert program is not None, "dynamo=True"
    made = program.model_proto
    onnx.helper.set_model_props(made, _metadata(model))
    with replacing(path) as temporary:
        onnx.save(made, temporary)
        worst = _compare(temporary, graph, like)
        if not worst <= TOLERANCE:
            raise InputError(
                f"{path}: onnxruntime's probabilities differ from torch's by {worst:.2g}, more "
                f"than {TOLERANCE:g}; nothing is written"
            )
    return worst
