"""The one opener of images: damaged, odd and hostile ones, and what each reader makes of them."""

import ast
import io
import json
import subprocess
import sys
import zlib

import cv2
import numpy as np
import pytest
import torch
from conftest import ENVIRONMENT, ROOT
from fastapi import HTTPException
from open_clip.transform import PreprocessCfg, image_transform_v2
from PIL import Image, ImageCms, features

from gram.looking import as_bytes
from gram.looking import opened as opened_by_gram
from gram.serve import checked
from pipeline.benchmarks.views import opened as opened_by_stage
from pipeline.clip.backbone import load_backbone
from pipeline.clip.centre import make_test_view
from pipeline.errors import InputError
from pipeline.image_file import TooLarge, Unreadable, identified, known, open_picture
from pipeline.pairs.fetch import check_pictures
from pipeline.pairs.index import inspect
from pipeline.pictures import PICTURE, Pictures

RNG = np.random.default_rng(0)
SIZE = (40, 24)  # width, height
NOISE = RNG.integers(0, 256, (24, 40, 4), dtype=np.uint8)
RGB = Image.fromarray(NOISE[..., :3])
RGBA = Image.fromarray(NOISE)
GREY = Image.fromarray(NOISE[..., 0])
LA = Image.fromarray(NOISE[..., [0, 3]])
PALETTE = RGB.quantize(16)
DEEP = Image.fromarray(RNG.integers(0, 65536, (24, 40)).astype(np.uint16))
ALPHAS = bytes(range(0, 256, 16))


def encoded(image, kind, **settings):
    packed = io.BytesIO()
    image.save(packed, kind, **settings)
    return packed.getvalue()


def on_white(colours, alpha):
    """As a page of white paper shows it: (h, w, 3), rounded."""
    share = np.asarray(alpha, float)[..., None] / 255
    return np.rint(np.asarray(colours, float) * share + 255 * (1 - share)).astype(np.uint8)


def plain(image):
    return np.asarray(image.convert("RGB"))


def exif(way):
    note = Image.Exif()
    note[0x0112] = way
    return note


def chunk(name, content):
    length = len(content).to_bytes(4, "big")
    return length + name + content + zlib.crc32(name + content).to_bytes(4, "big")


def grey_png(width, height, bits=8, value=0, clear=None):
    """One grey in few bytes, however large; with what is transparent of it."""
    packer = zlib.compressobj(9)
    row = b"\0" + bytes([value]) * -(-width * bits // 8)
    rows = b"".join(packer.compress(row) for _ in range(height)) + packer.flush()
    head = width.to_bytes(4, "big") + height.to_bytes(4, "big") + bytes([bits, 0, 0, 0, 0])
    said = b"" if clear is None else chunk(b"tRNS", clear.to_bytes(2, "big"))
    parts = chunk(b"IHDR", head) + said + chunk(b"IDAT", rows) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + parts


def animated(kind, **settings):
    frames = {"save_all": True, "append_images": [Image.new("RGB", SIZE, "red")], "duration": 50}
    return encoded(RGB, kind, **frames, **settings)


def jpeg_of(content):
    return np.asarray(Image.open(io.BytesIO(content)).convert("RGB"))


def with_clear(image, value):
    """Where an image has a value, it is white."""
    pixels, there = plain(image).copy(), np.asarray(image)
    pixels[(there == value).all(-1) if there.ndim == 3 else there == value] = 255
    return pixels


EPS = (
    b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 40 24\n%%EndComments\n"
    b"(touched) (w) file closefile showpage\n%%EOF\n"
)
SVG = b'<svg xmlns="http://www.w3.org/2000/svg" width="40" height="24"><rect width="9"/></svg>'
PNG, JPEG = encoded(RGB, "PNG"), encoded(RGB, "JPEG", quality=95)
CLEAR_PALETTE = plain(PALETTE), np.frombuffer(ALPHAS, np.uint8)[np.asarray(PALETTE)]
FIRST = tuple(NOISE[0, 0, :3].tolist())
WHOLE = NOISE[..., 3] * 0 + 255

# What is the same picture in several files: its content, and the pixels that a person sees.
SEEN = {
    "png": (PNG, plain(RGB)),
    "jpeg": (JPEG, jpeg_of(JPEG)),
    "webp": (encoded(RGB, "WEBP", lossless=True), plain(RGB)),
    "gif": (encoded(PALETTE, "GIF"), plain(PALETTE)),
    "bmp": (encoded(RGB, "BMP"), plain(RGB)),
    "bmp of a palette": (encoded(PALETTE, "BMP"), plain(PALETTE)),
    "tiff": (encoded(RGB, "TIFF"), plain(RGB)),
    "tiff, packed": (encoded(RGB, "TIFF", compression="tiff_lzw"), plain(RGB)),
    "tiff of two pages": (animated("TIFF"), plain(RGB)),
    "progressive jpeg": (encoded(RGB, "JPEG", quality=95, progressive=True), jpeg_of(JPEG)),
    "grey jpeg": (
        encoded(GREY, "JPEG", quality=95),
        jpeg_of(encoded(GREY, "JPEG", quality=95)),
    ),
    "png with alpha": (encoded(RGBA, "PNG"), on_white(NOISE[..., :3], NOISE[..., 3])),
    "webp with alpha": (
        encoded(RGBA, "WEBP", lossless=True, exact=True),
        on_white(NOISE[..., :3], NOISE[..., 3]),
    ),
    "tiff with alpha": (encoded(RGBA, "TIFF"), on_white(NOISE[..., :3], NOISE[..., 3])),
    "grey with alpha": (encoded(LA, "PNG"), on_white(NOISE[..., [0] * 3], NOISE[..., 3])),
    "grey tiff with alpha": (encoded(LA, "TIFF"), on_white(NOISE[..., [0] * 3], NOISE[..., 3])),
    "nothing but a hidden colour": (
        encoded(Image.new("RGBA", SIZE, (0, 0, 0, 0)), "PNG"),
        np.full((24, 40, 3), 255, np.uint8),
    ),
    "palette with alphas": (
        encoded(PALETTE, "PNG", transparency=ALPHAS),
        on_white(*CLEAR_PALETTE),
    ),
    "palette, one clear": (
        encoded(PALETTE, "PNG", transparency=3),
        on_white(plain(PALETTE), (np.asarray(PALETTE) != 3) * 255),
    ),
    "gif, one clear": (
        encoded(PALETTE, "GIF", transparency=3),
        on_white(plain(PALETTE), (np.asarray(PALETTE) != 3) * 255),
    ),
    "a clear colour": (encoded(RGB, "PNG", transparency=FIRST), with_clear(RGB, FIRST)),
    "a clear grey": (
        encoded(GREY, "PNG", transparency=int(NOISE[0, 0, 0])),
        with_clear(GREY, NOISE[0, 0, 0]),
    ),
    "a clear black of two bits": (grey_png(40, 24, 2, 0, 0), np.full((24, 40, 3), 255, np.uint8)),
    "a clear grey of two bits": (
        grey_png(40, 24, 2, 0b01010101, 1),
        np.full((24, 40, 3), 255, np.uint8),
    ),
    "black beside a clear white": (grey_png(40, 24, 1, 0, 1), np.zeros((24, 40, 3), np.uint8)),
    "one bit": (
        encoded(GREY.convert("1"), "PNG"),
        plain(GREY.convert("1")),
    ),
    "grey of 16 bits": (
        encoded(DEEP, "PNG"),
        (np.asarray(DEEP) >> 8).astype(np.uint8)[..., None].repeat(3, 2),
    ),
    "colours of 16 bits": (
        cv2.imencode(".png", NOISE[..., 2::-1].astype(np.uint16) * 256 + 77)[1].tobytes(),
        NOISE[..., :3],
    ),
    "cmyk jpeg": (
        encoded(RGB.convert("CMYK"), "JPEG", quality=95),
        jpeg_of(encoded(RGB.convert("CMYK"), "JPEG", quality=95)),
    ),
    "cmyk tiff": (encoded(RGB.convert("CMYK"), "TIFF"), plain(RGB.convert("CMYK"))),
    "lab tiff": (encoded(RGB.convert("LAB"), "TIFF"), plain(RGB.convert("LAB"))),
    "animated gif": (animated("GIF"), jpeg_of(animated("GIF"))),
    "animated webp": (animated("WEBP", lossless=True), plain(RGB)),
    "animated png": (animated("PNG"), plain(RGB)),
    "a phone's two frames": (animated("MPO", quality=95), jpeg_of(JPEG)),
    "with a colour profile": (
        encoded(
            RGB,
            "PNG",
            icc_profile=ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes(),
        ),
        plain(RGB),
    ),
    "a damaged note": (
        encoded(RGB, "PNG", exif=b"Exif\0\0MM\0*\0\0\0\x08\xff\xff" + bytes(9)),
        plain(RGB),
    ),
    "one pixel": (encoded(RGB.crop((0, 0, 1, 1)), "PNG"), NOISE[:1, :1, :3]),
    "broad": (grey_png(100_000, 1, value=90), np.full((1, 100_000, 3), 90, np.uint8)),
    "tall": (grey_png(1, 100_000, value=90), np.full((100_000, 1, 3), 90, np.uint8)),
    "something behind its end": (PNG + b"PK\x03\x04" * 9, plain(RGB)),
    **{
        f"{kind}, held in way {way}": (encoded(RGB, kind.upper(), exif=exif(way)), turned)
        for kind in ("png", "tiff")
        for way, turned in enumerate(
            [
                NOISE[..., :3],
                NOISE[:, ::-1, :3],
                NOISE[::-1, ::-1, :3],
                NOISE[::-1, :, :3],
                NOISE[..., :3].swapaxes(0, 1),
                NOISE[::-1, :, :3].swapaxes(0, 1),
                NOISE[::-1, ::-1, :3].swapaxes(0, 1),
                NOISE[:, ::-1, :3].swapaxes(0, 1),
            ],
            1,
        )
    },
    "alpha, and held upside down": (
        encoded(RGBA, "PNG", exif=exif(3)),
        on_white(NOISE[..., :3], NOISE[..., 3])[::-1, ::-1],
    ),
}
if features.check("avif"):
    SEEN["avif with alpha"] = (
        encoded(Image.new("RGBA", SIZE, (0, 0, 0, 0)), "AVIF"),
        np.full((24, 40, 3), 255, np.uint8),
    )

UNKNOWN = "no picture of a known format"
REFUSED = {
    "nothing": (b"", "the file is empty"),
    "zeros": (bytes(999), UNKNOWN),
    "text": (b"a photo of a lion\n", UNKNOWN),
    "a page": (b"<!DOCTYPE html><html><body>404</body></html>", UNKNOWN),
    "svg": (SVG, UNKNOWN),
    "eps": (EPS, UNKNOWN),
    "pdf": (b"%PDF-1.4\n" + bytes(99), UNKNOWN),
    "a zip": (b"PK\x03\x04" + bytes(99), UNKNOWN),
    "photoshop's": (b"8BPS\0\x01" + bytes(99), UNKNOWN),
    "a metafile": (b"\xd7\xcd\xc6\x9a\0\0" + bytes(99), UNKNOWN),
    "ppm": (b"P6 40 24 255\n" + bytes(40 * 24 * 3), UNKNOWN),
    "tga": (encoded(RGB, "TGA"), UNKNOWN),
    "ico": (encoded(RGB, "ICO"), UNKNOWN),
    "jpeg 2000": (b"\0\0\0\x0cjP  \r\n\x87\n" + bytes(99), UNKNOWN),
    "a png's first bytes": (PNG[:8], UNKNOWN),
    "half a png": (PNG[: len(PNG) // 2], "cannot be decoded"),
    "half a jpeg": (JPEG[: len(JPEG) // 2], "truncated"),
    "half a webp": (encoded(RGB, "WEBP")[:200], "cannot be decoded|known format"),
    "half a gif": (encoded(PALETTE, "GIF")[:400], "cannot be decoded"),
    "half a bmp": (encoded(RGB, "BMP")[:999], "truncated"),
    "half a tiff": (encoded(RGB, "TIFF")[:300], "cannot be decoded"),
    "a png with other bits": (PNG[:60] + b"\xff" * 40 + PNG[100:], "cannot be decoded"),
    "numbers": (encoded(Image.fromarray(np.ones((4, 4), np.float32)), "TIFF"), "32-bit numbers"),
    "whole numbers": (encoded(Image.fromarray(np.ones((4, 4), np.int32)), "TIFF"), "32-bit"),
    "a bomb": (grey_png(20_000, 20_000, 1), "million pixels"),
    "more than Pillow's mark": (grey_png(10_000, 9_000, 1), "more than 89 million pixels"),
    "more rows than memory": (grey_png(1, 40_000_000, 1)[:2000], "more than 89 million pixels"),
}


def of_pillow(content):
    """As a person opens it, with every format that Pillow knows."""
    Image.init()
    return Image.open(io.BytesIO(content))


@pytest.fixture(scope="module")
def backbone():
    return load_backbone(ROOT / "demo" / "backbone")


def test_there_are_forty():
    assert len(SEEN) >= 40 and len(REFUSED) >= 20


@pytest.mark.parametrize("name", SEEN)
def test_all_readers_see_the_same(name, tmp_path, backbone):
    content, wanted = SEEN[name]
    path = tmp_path / "class" / "a.png"  # whatever it is
    path.parent.mkdir()
    path.write_bytes(content)
    readers = {
        "path": open_picture(path),
        "bytes": open_picture(content),
        "pillow": open_picture(of_pillow(content)),
        "stage": opened_by_stage(Pictures(tmp_path), "class/a.png"),
        "gram": opened_by_gram("it", lambda: content),
        "gram, of Pillow's": opened_by_gram("it", lambda: as_bytes(of_pillow(content))),
        "page": checked(content),
        "again": open_picture(open_picture(content)),
    }
    for reader, found in readers.items():
        assert found.mode == "RGB" and np.array_equal(np.asarray(found), wanted), reader
    assert inspect(content) == (*wanted.shape[1::-1], None)
    views = [backbone.test_view(found) for found in readers.values()]
    assert all(torch.equal(views[0], view) for view in views)
    if (
        max(wanted.shape) < 1000
    ):  # what the metadata of an exported graph says, of any other program
        said = json.loads(json.dumps(backbone.preprocess))
        view = image_transform_v2(PreprocessCfg(**said), is_train=False)
        assert torch.equal(view(Image.fromarray(np.ascontiguousarray(wanted))), views[0])


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("name", REFUSED)
def test_all_readers_refuse_the_same(name, tmp_path):
    content, reason = REFUSED[name]
    path = tmp_path / "class" / "a.png"
    path.parent.mkdir()
    path.write_bytes(content)
    with pytest.raises(Unreadable, match=reason) as told:
        open_picture(content)
    assert "0x" not in str(told.value)
    with pytest.raises(InputError, match="a.png: ") as by_path:
        open_picture(path)
    assert type(by_path.value) is type(told.value) and str(told.value) in str(by_path.value)
    with pytest.raises(InputError, match="'class/a.png': .*replace or remove it") as by_stage:
        opened_by_stage(Pictures(tmp_path), "class/a.png")
    with pytest.raises(InputError, match="^it: .*replace or remove it") as by_gram:
        opened_by_gram("it", lambda: content)
    assert str(told.value) in str(by_stage.value) and str(told.value) in str(by_gram.value)
    with pytest.raises(HTTPException) as by_page:
        checked(content)
    assert by_page.value.status_code == (413 if isinstance(told.value, TooLarge) else 415)
    assert inspect(content)[:2] == (None, None)
    try:
        image = of_pillow(content)
    except Exception:  # then nobody can hand it in
        return
    with pytest.raises(Unreadable):
        open_picture(image)


def test_no_program_is_started_for_a_file(tmp_path):
    """An EPS in a .png made Pillow look for Ghostscript."""
    log = tmp_path / "started"
    for name in ("gs", "gswin64c"):
        (tmp_path / name).write_text(f"#!/bin/sh\ntouch {log}\n")
        (tmp_path / name).chmod(0o755)
    code = (
        "import sys; from pipeline.image_file import open_picture, Unreadable\n"
        "from PIL import Image\n"
        "for source in (sys.argv[1], Image.open(sys.argv[1])):\n"
        "    try: open_picture(source)\n"
        "    except Unreadable as error: print(error)\n"
    )
    (tmp_path / "a.png").write_bytes(EPS)
    path = f"{tmp_path}:{ENVIRONMENT['PATH']}"
    told = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "a.png")],
        env=ENVIRONMENT | {"PATH": path},
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    assert told.stdout.count(UNKNOWN) == 2 and not log.exists()


def test_what_others_hand_in_is_theirs():
    """An image of Pillow's stays as it was, and its opened copy is another one."""
    for image in (RGB.copy(), RGBA.copy(), PALETTE.copy()):
        image.info["transparency"] = 3 if image.mode == "P" else FIRST
        before = image.mode, image.tobytes(), dict(image.info)
        open_picture(image).paste((1, 2, 3), (0, 0, 9, 9))
        assert (image.mode, image.tobytes(), dict(image.info)) == before


@pytest.mark.parametrize("mode", ["La", "RGBa", "PA", "HSV", "YCbCr", "RGBX", "I;16B", "1"])
def test_modes_that_files_seldom_have(mode):
    if mode == "I;16B":
        deep = Image.frombytes(mode, SIZE, np.asarray(DEEP).astype(">u2").tobytes())
        wanted = open_picture(DEEP)
        assert np.array_equal(open_picture(deep), wanted)
        return
    opaque = {"La": LA, "RGBa": RGBA, "PA": PALETTE}.get(mode, RGB)
    image = opaque.convert(mode)
    wanted = (
        open_picture(image.convert("LA" if mode == "La" else "RGBA"))
        if mode in (*("La", "RGBa", "PA"),)
        else image.convert("RGB")
    )
    assert np.array_equal(open_picture(image), wanted)
    assert open_picture(opened_by_gram("it", lambda: as_bytes(image))).mode == "RGB"


def test_the_download_sees_the_same():
    """img2dataset decodes with OpenCV and blends what has alpha."""

    class Resizer:
        imghdr = type("imghdr", (), {"what": staticmethod(lambda stream: None)})

    class OpenCV:
        error, imdecode = cv2.error, staticmethod(cv2.imdecode)

    check_pictures(OpenCV, Resizer)
    for name, (content, wanted) in SEEN.items():
        found = OpenCV.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_UNCHANGED)
        found = found[..., None].repeat(3, 2) if found.ndim == 2 else found[..., ::-1]
        assert np.abs(found.astype(int) - wanted).max() <= ("jpeg" in name), name
    for name in ("text", "eps", "ppm", "half a png"):
        content = np.frombuffer(REFUSED[name][0], np.uint8)
        assert OpenCV.imdecode(content, cv2.IMREAD_UNCHANGED) is None, name


VIEWS = [
    {"size": 48},
    {"size": 48, "interpolation": "bilinear"},
    {"size": (32, 64)},
    {"size": 48, "resize_mode": "squash"},
    {"size": 48, "resize_mode": "longest", "fill_color": 7},
]


@pytest.mark.parametrize("settings", VIEWS, ids=str)
def test_the_crop_is_open_clip_s(settings):
    """To the bit, unless the whole would be far larger than the crop; then to 2 of 255."""
    cfg = PreprocessCfg(**settings, mean=(0, 0, 0), std=(1 / 255,) * 3)
    theirs, ours = image_transform_v2(cfg, is_train=False), make_test_view(cfg)
    rng = np.random.default_rng(1)
    shapes = [
        (300, 400),
        (401, 299),
        (48, 48),
        (30, 47),
        (31, 30),
        (20, 300),
        (333, 40),
        (60, 2000),
    ]
    for height, width in [*shapes, *rng.integers(5, 60, (20, 2)).tolist()]:
        image = Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8))
        assert torch.equal(ours(image), theirs(image)), (height, width)
    for height, width in [(7, 618), (1520, 30), (45, 4136), (2000, 3), (1, 5000), (5001, 1)]:
        image = Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8))
        found = ours(image)
        if settings.get("resize_mode") == "longest" and min(height, width) < 4:
            assert found.shape == (3, 48, 48)  # where theirs makes a side of nothing
            continue
        difference = (found - theirs(image)).abs()
        assert difference.max() < 2.01 and (difference > 0.5).float().mean() < 0.1, (height, width)


HOSTILE = """
import resource, sys
from pathlib import Path
from gram.report import thumbnail
from pipeline.benchmarks.views import train_view
from pipeline.clip.backbone import load_backbone
from pipeline.errors import InputError
from pipeline.image_file import open_picture
from pipeline.report.gallery import thumbnail as shown

peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10
backbone = load_backbone("demo/backbone")
def all_of(path):
    picture = open_picture(path)
    backbone.test_view(picture), train_view(backbone)(picture), thumbnail(picture)
    shown(Path(path).read_bytes())
all_of(sys.argv[1])
before = peak()
for path in sys.argv[2:]:
    try:
        all_of(path)
    except InputError as error:
        print("refused", error)
    print(path, peak() - before)
assert peak() - before < 64, peak() - before
"""


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_hostile_images_take_no_memory(tmp_path):
    """MiB beyond what an image of 40 × 24 pixels takes."""
    (tmp_path / "plain").write_bytes(PNG)
    names = ["broad", "tall", "a bomb", "more than Pillow's mark", "more rows than memory"]
    for name in names:
        (tmp_path / name).write_bytes((SEEN | REFUSED)[name][0])
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", HOSTILE, *(tmp_path / n for n in ["plain", *names])],
        cwd=ROOT,
        env=ENVIRONMENT | {"DEVICE": "cpu"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr[-2000:]
    assert done.stdout.count("refused") == 3


def test_nothing_else_opens_images():
    """Pillow's `open` tries every format that it knows."""
    for top in ("gram", "pipeline", "stages", "study", "perf", "docs", "demo"):
        for path in (ROOT / top).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text())):
                called = ast.unparse(node.func) if isinstance(node, ast.Call) else ""
                if called == "Image.open" or called.endswith((".imread", "read_image")):
                    assert path == ROOT / "pipeline" / "image_file.py", f"{path}: {node.lineno}"
                if isinstance(node, ast.ImportFrom) and node.module == "PIL.Image":
                    raise AssertionError(f"{path}: {node.lineno}")


def test_names_and_formats_are_one_list():
    Image.init()
    endings = {ending for of_format in known().values() for ending in of_format}
    assert {"jpg", "png", "webp", "gif", "bmp", "tiff", "avif", "mpo"} <= endings
    for ending in endings:
        assert PICTURE.search(f"a.{ending}") and PICTURE.search(f"a.{ending.upper()}")
        if (kind := Image.registered_extensions().get(f".{ending}")) is not None:
            assert kind in known()
    for ending in ("ppm", "pgm", "jp2", "eps", "svg", "pdf", "psd", "txt"):
        assert not PICTURE.search(f"a.{ending}")


def test_heic_where_it_can_be_read(tmp_path):
    heif = pytest.importorskip("pillow_heif")
    packed = io.BytesIO()
    heif.from_pillow(Image.new("RGB", SIZE, (200, 30, 30))).save(packed)
    found = open_picture(packed.getvalue())
    assert found.size == SIZE and np.abs(np.asarray(found) - (200, 30, 30)).max() < 9
    assert PICTURE.search("a.HEIC") and identified(packed).format == "HEIF"
