"""A meta-learned start as a classifier of pictures among names, for use far from the pipeline."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from pipeline.clip.backbone import image_features, load_backbone
from pipeline.errors import InputError
from pipeline.image_file import Unreadable, open_picture
from pipeline.prompts.base import placed
from pipeline.prompts.starts import load_start, method_of

MODEL = Path(__file__).with_name("mlflow_model.py")
# What has to be installed where the model is used; the project's code travels with it.
PACKAGES = [
    "torch",
    "torchvision",
    "open_clip_torch",
    "transformers",
    "safetensors",
    "numpy",
    "pillow",
    "pandas",
    "pydantic",
    "ruamel.yaml",
    "pyarrow",
    "tqdm",
]
# In MLflow's words: a column of encoded pictures, the classes and the wording as parameters, two
# columns back.
SIGNATURE: dict[str, str] = {
    "inputs": '[{"name": "picture", "type": "binary", "required": true}]',
    "outputs": (
        '[{"name": "label", "type": "string", "required": true}, {"name": "probability", "type": '
        '"double", "required": true}]'
    ),
    "params": (
        '[{"name": "names", "type": "string", "default": [], "shape": [-1]}, {"name": '
        '"template", "type": "string", "default": "a photo of a {}.", "shape": null}]'
    ),
}


class Classifier:
    """The tokens θ of a start on their backbone; φ stays beside them, in `start`, for whoever
    tunes on.
    """

    def __init__(self, start: Path | str, backbone: Path | str) -> None:
        self.start, self.backbone = load_start(Path(start)), load_backbone(backbone)

    @torch.inference_mode()
    def predict(
        self, pictures: Sequence[bytes], names: Sequence[str], template: str = "a photo of a {}."
    ) -> list[dict[str, Any]]:
        """The likeliest of `names` for every encoded picture: {"label", "probability"} (Eq 1).

        Args:
            template: wording of the classes where the method does not learn it; `{}` is the name's
            place.

        Raises InputError for fewer than two names, or a picture that cannot be read (naming its
        row).
        """
        if len(names) < 2:
            raise InputError(
                f"'names' holds {len(names)} class names; give at least two, as "
                f'params={{"names": [...]}}'
            )
        views = []
        for row, picture in enumerate(pictures):
            try:
                views.append(self.backbone.test_view(open_picture(picture)))
            except Unreadable as error:
                raise InputError(f"row {row}: {error}") from None
        if not views:
            return []
        method = method_of(self.start.about, self.backbone, template)
        seen = torch.stack(views) if method.sees_pixels else image_features(self.backbone, views)
        tokens = placed(self.start.theta, self.backbone.device)
        chances = method.logits(
            tokens,
            method.prepare([list(names)]),
            method.look(seen.unsqueeze(0).to(self.backbone.device)),
        )[0].softmax(dim=-1)
        if not chances.isfinite().all():
            raise InputError(
                "the classifier's probabilities are not finite; its start or its backbone is "
                "damaged"
            )
        best = chances.max(dim=-1)
        return [
            {"label": names[label], "probability": chance}
            for label, chance in zip(best.indices.tolist(), best.values.tolist(), strict=True)
        ]
