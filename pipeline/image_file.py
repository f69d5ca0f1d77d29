"""The one opener of images: what is taken for one, how large it may be, and its pixels as a person
sees them.
"""

from __future__ import annotations

import io
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import IO, Any

import numpy as np
from PIL import Image, UnidentifiedImageError

from pipeline.errors import InputError
from pipeline.upright import orientation, upright

# Pillow's names of the formats that are read, and the endings of their files. All others are
# refused by their first bytes: some start a program (EPS).
FORMATS = {
    "JPEG": ("jpg", "jpeg", "jpe", "jfif"),
    "MPO": ("mpo",),
    "PNG": ("png", "apng"),
    "WEBP": ("webp",),
    "GIF": ("gif",),
    "BMP": ("bmp",),
    "TIFF": ("tif", "tiff"),
    "AVIF": ("avif",),
}
HEIF = {"HEIF": ("heic", "heif", "hif")}  # where pillow-heif is installed
MOST_PIXELS = 89_478_485  # Pillow warns of more; a pixel takes 4 to 16 bytes while it is decoded
BITS = {"1": 1, "L;2": 2, "L;4": 4}  # of a PNG's grey, by what Pillow calls it in the file


class Unreadable(InputError, ValueError):
    """An image that cannot be opened. The message is the reason, behind the path if one was given;
    Pillow's own error is its cause.
    """


class TooLarge(Unreadable):
    """An image of more pixels than are allowed."""


def known() -> dict[str, tuple[str, ...]]:
    """The formats that are read here, and their endings."""
    return FORMATS | (HEIF if find_spec("pillow_heif") else {})


@cache
def _tried() -> tuple[str, ...]:
    """The names of `known` formats that Pillow knows, too; it reads MPO as JPEG."""
    if "HEIF" in known():
        from pillow_heif import register_heif_opener

        register_heif_opener()
    Image.init()
    return tuple(name for name in known() if name in Image.OPEN)


def _unknown() -> Unreadable:
    return Unreadable(f"its content is no picture of a known format ({', '.join(known())})")


def _check_size(picture: Image.Image, most: int) -> None:
    """Raises TooLarge; a row costs memory, too, however short it is."""
    if (picture.width + 2) * (picture.height + 2) > most:
        raise TooLarge(f"it has more than {most // 10**6} million pixels")


def identified(file: IO[bytes], most: int = MOST_PIXELS) -> Image.Image:
    """The image in a file, with its format and size known and none of its pixels decoded.

    Raises Unreadable for another format, TooLarge for more than `most` pixels; else whatever
    Pillow raises for a damaged header.
    """
    try:
        picture = Image.open(file, formats=_tried())
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise TooLarge(f"it has more than {most // 10**6} million pixels") from None
    except UnidentifiedImageError:  # Pillow's own words name an address in memory
        raise _unknown() if file.seek(0, io.SEEK_END) else Unreadable("the file is empty") from None
    _check_size(picture, most)
    return picture


def open_picture(source: Path | str | bytes | Image.Image, most: int = MOST_PIXELS) -> Image.Image:
    """An image as a person sees it: RGB with 8 bits, upright, on white where it is transparent, the
    first frame of several.

    Args:
        source: a file's path or its content, or an image of Pillow's as it stands.

    Raises:
        TooLarge: more than `most` pixels; none of them was decoded.
        Unreadable: another format, a damaged file, or pixels of no known range.
    """
    if not isinstance(source, (str, Path)):
        return _open(source, most)
    try:
        with Path(source).open("rb") as file:
            return _open(file, most)
    except OSError as error:
        raise Unreadable(f"{source}: cannot be read ({error.strerror or error})") from error
    except Unreadable as error:
        raise type(error)(f"{source}: {error}; replace or remove it") from error.__cause__


def _open(source: IO[bytes] | bytes | Image.Image, most: int) -> Image.Image:
    try:
        if isinstance(source, Image.Image):
            return _of_pillow(source, most)
        file = io.BytesIO(source) if isinstance(source, bytes) else source
        return _decoded(identified(file, most))
    except Unreadable:
        raise
    except MemoryError as error:
        raise Unreadable("it asks for more memory than there is") from error
    except Exception as error:  # PIL raises many kinds for damaged files
        words = str(error) or type(error).__name__
        raise Unreadable(f"it cannot be decoded ({words})") from error


def _of_pillow(picture: Image.Image, most: int) -> Image.Image:
    """An image that is nobody else's: what the caller does to it, `picture` does not see."""
    if picture.format and picture.format not in known():
        raise _unknown()
    _check_size(picture, most)
    found = _decoded(picture)
    return found.copy() if found is picture else found


def _decoded(picture: Image.Image) -> Image.Image:
    clear = _clear(picture)
    picture.load()
    lies = orientation(picture)
    picture = _as_rgb(picture, clear)  # lets go of the one before: two are held at most
    return upright(picture, lies)


def _clear(picture: Image.Image) -> Any:
    """What is transparent of an image without alpha, in the numbers of its pixels; of a PNG with
    1, 2, 4 or 16 bits, Pillow tells it in those of the file. None where there is nothing.
    """
    clear = picture.info.get("transparency")
    tiles = getattr(picture, "tile", None)  # none once it is loaded
    raw = tiles[0][3] if tiles else None
    if isinstance(clear, int) and raw in BITS:
        return clear * 255 // (2 ** BITS[raw] - 1)
    if isinstance(clear, tuple) and max(clear) > 255:
        return tuple(part >> 8 for part in clear)
    return clear


def _as_rgb(picture: Image.Image, clear: Any) -> Image.Image:
    """Pillow alone makes white of grey with 16 bits, black or white of 32-bit numbers, and drops
    what says how transparent a pixel is.
    """
    if picture.mode.startswith("I;16"):  # the upper 8 bits, as Pillow takes of 16-bit colours
        values = np.asarray(picture)
        grey = (values >> 8).astype(np.uint8)
        if clear is not None:
            grey[values == clear] = 255
        return Image.fromarray(grey).convert("RGB")
    if picture.mode in ("I", "F"):
        raise Unreadable(
            "its pixels are 32-bit numbers of no known range; save it with 8 or 16 bits"
        )
    if (alpha := _with_alpha(picture, clear)) is None:
        return picture if picture.mode == "RGB" else picture.convert("RGB")
    white = Image.new("RGB", picture.size, "white")
    white.paste(alpha, mask=alpha)
    return white


def _with_alpha(picture: Image.Image, clear: Any) -> Image.Image | None:
    """The image as LA or RGBA, if it says what is transparent."""
    if picture.mode in ("LA", "RGBA"):
        return picture
    if picture.mode in ("La", "RGBa"):  # colours that are multiplied by alpha
        return picture.convert(picture.mode.upper())
    if picture.mode == "PA" or (picture.mode == "P" and picture.has_transparency_data):
        return picture.convert("RGBA")
    if picture.mode not in ("1", "L", "RGB") or clear is None:
        return None
    if clear != picture.info["transparency"]:
        picture = picture.copy()
        picture.info["transparency"] = clear
    return picture.convert("RGBA")
