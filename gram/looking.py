"""From pictures to features, a few at a time."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from PIL import Image
from torch import Tensor

from pipeline.benchmarks.views import AugmentedViews
from pipeline.clip.backbone import Backbone, image_features
from pipeline.errors import InputError
from pipeline.image_file import Unreadable, open_picture

BATCH = 64  # views in the tower at once: ViT-B/16 takes 0.3 GB for them


def as_bytes(picture: Any) -> bytes:
    """A file's content: of a path, of bytes themselves, or of a PIL picture.

    A PIL picture is packed as it is opened, so that all pictures are seen in one way.
    """
    if isinstance(picture, bytes):
        return picture
    if isinstance(picture, (str, Path)):
        return Path(picture).read_bytes()
    if isinstance(picture, Image.Image):
        packed = io.BytesIO()
        open_picture(picture).save(packed, "bmp")
        return packed.getvalue()
    raise InputError(
        f"a {type(picture).__name__} is no picture; give paths, PIL pictures, or a folder"
    )


def opened(name: str, content: Callable[[], bytes]) -> Image.Image:
    """An RGB picture; InputError naming it if there is none in the file."""
    try:
        return open_picture(content())
    except Unreadable as error:
        raise InputError(f"{name}: {error}; replace or remove it") from None
    except InputError:
        raise
    except Exception as error:  # those of a zip's entries, too
        raise InputError(
            f"{name}: not a picture that can be read ({error}); replace or remove it"
        ) from None


def all_opened(read: Callable[[str], bytes], files: Sequence[str]) -> Iterator[Image.Image]:
    """The pictures one after another, each let go before the next."""
    return (opened(file, partial(read, file)) for file in files)


def test_features(backbone: Backbone, pictures: Iterable[Image.Image]) -> Tensor:
    """(n, e) L2-normalised features of the pictures' centres, on the CPU."""
    return image_features(backbone, (backbone.test_view(p) for p in pictures), BATCH)


def features_of_views(
    backbone: Backbone, pictures: Iterable[Image.Image], views: int, seed: int
) -> Tensor:
    """(n, 1 + views, e): each picture's centre, and augmented views of it (few-shot protocol).

    A picture is opened once for all of its views, which depend on `seed` and its place only.
    """
    held: dict[int, Image.Image] = {}
    augmented = AugmentedViews(backbone, held.__getitem__, 0, views, seed)

    def stream() -> Iterator[Tensor]:
        for place, picture in enumerate(pictures):
            held.clear()
            held[place] = picture
            yield backbone.test_view(picture)
            yield from (augmented.view(epoch, place) for epoch in range(views))

    features = image_features(backbone, stream(), BATCH)
    return features.view(-1, 1 + views, features.shape[-1])
