"""Image features of a benchmark: every test picture once, every drawn picture once per epoch,
augmented.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torchvision import transforms

from pipeline.artifacts import remembered
from pipeline.clip.backbone import Backbone, image_features, viewed
from pipeline.errors import InputError
from pipeline.image_file import Unreadable, open_picture
from pipeline.pictures import Pictures

PART = 2000  # test pictures whose features are kept together when a stage is stopped


def opened(pictures: Pictures, name: str, content: bytes | None = None) -> Image.Image:
    """A picture of a dataset, RGB; its `content` if that was read already.

    Raises InputError naming the file if it cannot be read.
    """
    try:
        return open_picture(pictures.read(name) if content is None else content)
    except Exception as error:  # those of a zip's entries, too
        reason = error if isinstance(error, Unreadable) else f"cannot be read ({error})"
        raise InputError(
            f"{pictures.path}: picture '{name}': {reason}; replace or remove it"
        ) from None


def train_view(backbone: Backbone) -> transforms.Compose:
    """The protocol's augmentation: random resized crop (8–100% of the area, bicubic), flip,
    normalisation.
    """
    p = backbone.preprocess
    return transforms.Compose(
        [
            transforms.RandomResizedCrop(
                p["size"], scale=(0.08, 1), interpolation=transforms.InterpolationMode.BICUBIC
            ),
            transforms.RandomHorizontalFlip(),
            transforms.ToTensor(),
            transforms.Normalize(p["mean"], p["std"]),
        ]
    )


def _encoded(backbone: Backbone, views: Iterable[torch.Tensor]) -> tuple[np.ndarray]:
    return (image_features(backbone, views).numpy(),)


def encode_test(
    backbone: Backbone, pictures: Pictures, files: list[str], work: Path, progress
) -> np.ndarray:
    """(n, e) features of the test views (resize, centre crop); finished parts stay in `work`."""
    parts = [np.zeros((0, backbone.dim), np.float32)]
    for start in range(0, len(files), PART):
        part = files[start : start + PART]
        label = f"test views from {start} of {len(files)}"
        views = viewed(backbone, partial(opened, pictures), progress(part, label))
        parts += remembered(work / f"test-{start}.npz", partial(_encoded, backbone, views))
    return np.concatenate(parts)


class AugmentedViews:
    """The training views of pictures, epoch after epoch, each made when it is asked for.

    A view depends on seed, epoch and the picture's position only, so that none has to be kept: at
    224 pixels, the views of one epoch of ImageNet's 16 shots are 9.6 GB. `views[epoch][rows]` gives
    (n, 3, h, w) normalised pixels.
    """

    def __init__(
        self,
        backbone: Backbone,
        opened: Callable[[int], Image.Image],
        count: int,
        epochs: int,
        seed: int,
    ) -> None:
        """`opened(i)` is the i-th of `count` pictures."""
        self.augment, self.opened, self.count, self.epochs, self.seed = (
            train_view(backbone),
            opened,
            count,
            epochs,
            seed,
        )

    def __len__(self) -> int:
        return self.epochs

    def __getitem__(self, epoch: int) -> EpochViews:
        if not 0 <= epoch < self.epochs:
            raise IndexError(epoch)
        return EpochViews(self, epoch)

    def __iter__(self) -> Iterator[EpochViews]:
        return (self[epoch] for epoch in range(self.epochs))

    def view(self, epoch: int, position: int) -> torch.Tensor:
        """(3, h, w) normalised pixels."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(
                int(np.random.SeedSequence([self.seed, epoch, position]).generate_state(1)[0])
            )
            return self.augment(self.opened(position))


@dataclass(frozen=True)
class EpochViews:
    """One epoch of `AugmentedViews`."""

    views: AugmentedViews
    epoch: int

    def __getitem__(self, rows: Iterable[int]) -> torch.Tensor:
        return torch.stack([self.views.view(self.epoch, int(position)) for position in rows])

    def __iter__(self) -> Iterator[torch.Tensor]:
        return (self.views.view(self.epoch, position) for position in range(self.views.count))


def encode_train(
    backbone: Backbone,
    pictures: Pictures,
    files: list[str],
    epochs: int,
    seed: int,
    work: Path,
    progress,
) -> np.ndarray:
    """(epochs, n, e) features of the augmented views; finished epochs stay in `work`."""
    views = AugmentedViews(backbone, lambda i: opened(pictures, files[i]), len(files), epochs, seed)
    parts: list[np.ndarray] = []
    for epoch, of_epoch in enumerate(progress(views, f"training views, seed {seed}")):
        parts += remembered(work / f"{epoch}.npz", partial(_encoded, backbone, of_epoch))
    return np.stack(parts)
