"""Image features of a benchmark: every test picture once, every drawn picture once per epoch, augmented."""

from __future__ import annotations

import numpy as np
import torch
from PIL import Image
from torchvision import transforms

from pipeline.benchmarks.reader import Pictures
from pipeline.clip.backbone import Backbone, image_features, open_picture
from pipeline.errors import InputError


def _open(pictures: Pictures, name: str):
    try:
        return open_picture(pictures.read(name))
    except Exception as error:  # PIL raises many kinds for damaged files
        raise InputError(f"{pictures.path}: picture '{name}' cannot be read ({error}); replace or remove it") from None


def train_view(backbone: Backbone) -> transforms.Compose:
    """The protocol's augmentation: random resized crop (8–100% of the area, bicubic), flip, normalisation."""
    p = backbone.preprocess
    return transforms.Compose([
        transforms.RandomResizedCrop(p["size"], scale=(0.08, 1), interpolation=transforms.InterpolationMode.BICUBIC),
        transforms.RandomHorizontalFlip(), transforms.ToTensor(), transforms.Normalize(p["mean"], p["std"]),
    ])


def encode_test(backbone: Backbone, pictures: Pictures, files: list[str], progress) -> np.ndarray:
    """(n, e) features of the test views (resize, centre crop)."""
    return image_features(backbone, (backbone.test_view(_open(pictures, f)) for f in progress(files, "test views"))).numpy()


class AugmentedViews:
    """The training views of pictures, epoch after epoch; they depend on seed, epoch and position only."""

    def __init__(self, backbone: Backbone, pictures: list[Image.Image], epochs: int, seed: int) -> None:
        self.augment, self.pictures, self.epochs, self.seed = train_view(backbone), pictures, epochs, seed

    def __len__(self) -> int:
        return self.epochs

    def __getitem__(self, epoch: int) -> torch.Tensor:
        """(n, 3, h, w) normalised pixels."""
        if not 0 <= epoch < self.epochs:
            raise IndexError(epoch)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(1000 * self.seed + epoch)
            return torch.stack([self.augment(picture) for picture in self.pictures])


def encode_train(backbone: Backbone, pictures: Pictures, files: list[str], epochs: int, seed: int, progress) -> np.ndarray:
    """(epochs, n, e) features of the augmented views."""
    views = AugmentedViews(backbone, [_open(pictures, f) for f in files], epochs, seed)
    return np.stack([image_features(backbone, views[epoch]).numpy() for epoch in progress(range(epochs), f"training views, seed {seed}")])
