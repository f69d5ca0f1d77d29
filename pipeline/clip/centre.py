"""The test view of an image: open_clip's own, of which no more is computed than is seen."""

from __future__ import annotations

import math
from collections.abc import Callable

from open_clip.transform import PreprocessCfg, image_transform_v2
from PIL import Image
from torch import Tensor

# An image is resized as a whole, which gives open_clip's very pixels, where that makes it no larger
# than it is, or than so many crops. Else the crop alone is made; Pillow takes its edges in single
# precision, so that some values are others, by 1 or 2 of 255.
LARGEST = 16
REACH = {Image.Resampling.BILINEAR: 1, Image.Resampling.BICUBIC: 2}  # pixels, of the larger size


def make_test_view(cfg: PreprocessCfg) -> Callable[[Image.Image], Tensor]:
    """RGB image → (3, h, w) normalised tensor, as open_clip's transform for tests makes it, in the
    memory of twice the image, or of the image and `LARGEST` crops.
    """
    view = image_transform_v2(cfg, is_train=False)
    height, width = (cfg.size, cfg.size) if isinstance(cfg.size, int) else cfg.size
    linear = cfg.interpolation == "bilinear" and (height == width or cfg.resize_mode == "longest")
    filter_ = Image.Resampling.BILINEAR if linear else Image.Resampling.BICUBIC

    def shortest(image: Image.Image) -> Image.Image:
        size = _covering(image.size, (width, height))
        if math.prod(size) <= max(math.prod(image.size), LARGEST * width * height):
            return image
        return _centre(image, size, (width, height), filter_)

    def longest(image: Image.Image) -> Image.Image:
        """A side that would be rounded to nothing is one pixel."""
        ratio = max(image.width / width, image.height / height)
        size = round(image.width / ratio), round(image.height / ratio)
        return image if all(size) else image.resize((size[0] or 1, size[1] or 1), filter_)

    if cfg.resize_mode == "squash":
        return view
    ready = longest if cfg.resize_mode == "longest" else shortest
    return lambda image: view(ready(image))


def _covering(size: tuple[int, int], crop: tuple[int, int]) -> tuple[int, int]:
    """The size to which an image is resized for its `crop`; (width, height), as are all here."""
    if crop[0] == crop[1]:  # as torchvision rounds
        short, long = crop[0], int(crop[0] * max(size) / min(size))
        return (short, long) if size[0] <= size[1] else (long, short)
    ratio = min(size[0] / crop[0], size[1] / crop[1])
    return round(size[0] / ratio), round(size[1] / ratio)


def _centre(
    image: Image.Image,
    size: tuple[int, int],
    crop: tuple[int, int],
    filter_: Image.Resampling,
) -> Image.Image:
    """The central `crop` of the image resized to `size`: first the rows, then the columns, as
    Pillow does where an image is enlarged.
    """
    spans = [
        _span(n, to, seen, REACH[filter_])
        for n, to, seen in zip(image.size, size, crop, strict=True)
    ]
    (left, right, *across), (top, bottom, *down) = spans
    part = image.crop((left, top, right, bottom))
    rows = part.resize((crop[0], part.height), filter_, (across[0], 0, across[1], part.height))
    return rows.resize(crop, filter_, (0, down[0], crop[0], down[1]))


def _span(length: int, resized: int, seen: int, reach: int) -> tuple[int, int, float, float]:
    """Of a side of `length` pixels that becomes `resized`: the pixels (from, to) that its central
    `seen` ones are made of, and where these begin and end among them.
    """
    scale = length / resized
    start = round((resized - seen) / 2) * scale
    end = start + seen * scale
    around = reach * max(scale, 1) + 1
    first, last = max(0, math.floor(start - around)), min(length, math.ceil(end + around))
    return first, last, start - first, min(end - first, last - first)
