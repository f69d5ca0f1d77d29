"""Pictures as a person sees them: upright, whatever way the camera was held."""

from __future__ import annotations

from PIL import Image

ORIENTATION = 0x0112  # EXIF's tag
# what undoes each of EXIF's orientations, with and without PIL
TURNED = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def orientation(picture: Image.Image) -> int:
    """How a loaded picture lies by its EXIF note, 1 to 8; 1 (upright) where there is none that can
    be read. Formats that PIL turns by itself have none any more.
    """
    try:
        found = picture.getexif().get(ORIENTATION, 1)
    except Exception:  # PIL raises many kinds for damaged notes; the picture may be whole
        return 1
    return found if found in TURNED else 1


def upright(picture: Image.Image, lies: int) -> Image.Image:
    """The picture turned and mirrored as EXIF's orientation asks for, and without the note then,
    which is not true of it any more.
    """
    if lies not in TURNED:
        return picture
    turned = picture.transpose(TURNED[lies])
    turned.info.clear()
    return turned
