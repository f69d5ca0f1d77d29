"""Draws one picture of a concept in one of several visual styles.

A style is what the paper calls a domain: the same things, seen in another way. `strength` in [0, 1]
says how far a picture goes into its style: backgrounds get busier, lines thinner, colours odder and
the pose more unusual. Every choice comes from the random generator that is handed in.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import resvg_py
from PIL import Image, ImageFilter

from pipeline.image_file import open_picture

CANVAS = 72  # side of an OpenMoji drawing in its own units
Rng = np.random.Generator


def _colour(hue: float, saturation: float, value: float) -> str:
    import colorsys

    rgb = colorsys.hsv_to_rgb(hue % 1.0, saturation, value)
    return "#" + "".join(f"{round(255 * c):02x}" for c in rgb)


def _inner(svg: Path) -> str:
    """The drawing without its outer <svg> element."""
    text = svg.read_text(encoding="utf-8")
    return re.sub(r"</svg>\s*$", "", re.sub(r"^.*?<svg[^>]*>", "", text, count=1, flags=re.S))


def _render(
    svg: Path,
    rng: Rng,
    size: int,
    strength: float,
    *,
    css: str = "",
    backdrop: str = "",
    lines_only=False,
) -> Image.Image:
    """Places the drawing on `backdrop` (SVG markup in canvas units) in a random pose."""
    body = _inner(svg)
    if lines_only:
        css += " #color,#color-foreground,#skin,#hair,#skin-shadow{display:none}"
    angle = rng.normal(0, 4 + 14 * strength)
    scale = rng.uniform(1.0 - 0.35 * strength, 1.08)
    dx, dy = rng.normal(0, 2 + 5 * strength, 2)
    mirror = -1 if rng.random() < 0.5 else 1
    centre = CANVAS / 2
    pose = (
        f"translate({centre + dx:.2f} {centre + dy:.2f}) rotate({angle:.2f}) "
        f"scale({mirror * scale:.3f} {scale:.3f}) translate({-centre} {-centre})"
    )
    page = (
        '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
        f'viewBox="0 0 {CANVAS} {CANVAS}">'
        f'{backdrop}<g transform="{pose}">{body}</g></svg>'
    )
    png = resvg_py.svg_to_bytes(
        svg_string=page, style_sheet=css or None, width=size, height=size, skip_system_fonts=True
    )
    return open_picture(bytes(png))


def _plain(colour: str) -> str:
    return f'<rect width="{CANVAS}" height="{CANVAS}" fill="{colour}"/>'


def _grid(step: float, colour: str, width: float) -> str:
    ticks = np.arange(0, CANVAS + step, step)
    path = "".join(f"M{t:.2f} 0V{CANVAS}M0 {t:.2f}H{CANVAS}" for t in ticks)
    return f'<path d="{path}" stroke="{colour}" stroke-width="{width}" fill="none"/>'


def _stroke(colour: str, width: float) -> str:
    """Style sheet: every line in one colour and width; filled details of the line layer follow."""
    return (
        '#line *[stroke="#000000"],#line '
        f'*[stroke="#000"]{{stroke:{colour};stroke-width:{width:.2f}}}'
        f'#line *[fill="#000000"],#line *[fill="#000"]{{fill:{colour}}}'
    )


def _add_noise(image: Image.Image, rng: Rng, sigma: float) -> Image.Image:
    pixels = np.asarray(image, np.float32)
    return Image.fromarray(
        np.clip(pixels + rng.normal(0, sigma, pixels.shape), 0, 255).astype(np.uint8)
    )


def flat(svg: Path, rng: Rng, size: int, strength: float) -> Image.Image:
    return _render(
        svg,
        rng,
        size,
        strength,
        backdrop=_plain(_colour(rng.random(), 0.05 + 0.4 * strength * rng.random(), 0.97)),
    )


def sketch(svg: Path, rng: Rng, size: int, strength: float) -> Image.Image:
    grey = 0.15 + 0.3 * strength * rng.random()
    css = _stroke(_colour(0.6, 0.1, grey), 2.0 - 0.7 * strength * rng.random())
    page = _render(
        svg,
        rng,
        size,
        strength,
        css=css,
        backdrop=_plain(_colour(0.12, 0.06, 0.96)),
        lines_only=True,
    )
    return _add_noise(page, rng, 4 + 10 * strength)


def blueprint(svg: Path, rng: Rng, size: int, strength: float) -> Image.Image:
    hue = rng.normal(0.6, 0.015)
    backdrop = _plain(_colour(hue, 0.8, 0.45 + 0.15 * rng.random())) + _grid(
        rng.choice([6, 8, 9, 12]), _colour(hue, 0.45, 0.75), 0.25 + 0.5 * strength
    )
    return _render(
        svg,
        rng,
        size,
        strength,
        css=_stroke("#eef6ff", 1.8 - 0.5 * strength * rng.random()),
        backdrop=backdrop,
        lines_only=True,
    )


def night(svg: Path, rng: Rng, size: int, strength: float) -> Image.Image:
    stars = "".join(
        f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{r:.2f}" fill="#fff"/>'
        for x, y, r in zip(
            rng.uniform(0, CANVAS, 25),
            rng.uniform(0, CANVAS, 25),
            rng.uniform(0.2, 0.7, 25),
            strict=True,
        )
    )
    page = _render(svg, rng, size, strength, backdrop=_plain("#16204a") + stars)
    pixels = (
        np.asarray(page, np.float32)
        * np.array([0.42, 0.5, 0.85])
        * (1.0 - 0.4 * strength * rng.random())
    )
    return _add_noise(Image.fromarray(pixels.clip(0, 255).astype(np.uint8)), rng, 3)


def pixelated(svg: Path, rng: Rng, size: int, strength: float) -> Image.Image:
    cells = round(size / 2.6 - (size / 7) * strength * rng.random())
    page = _render(svg, rng, 4 * cells, strength, backdrop=_plain(_colour(rng.random(), 0.25, 0.9)))
    small = (
        page.resize((cells, cells), Image.Resampling.BOX)
        .quantize(24, dither=Image.Dither.NONE)
        .convert("RGB")
    )
    return small.resize((size, size), Image.Resampling.NEAREST)


def textured(svg: Path, rng: Rng, size: int, strength: float) -> Image.Image:
    """A full-colour drawing on a busy surface: stripes, dots, checks or cloudy noise."""
    hue, kind = rng.random(), rng.integers(4)
    one, two = (
        _colour(hue, 0.35, 0.85),
        _colour(hue + rng.uniform(0.05, 0.4), 0.3 + 0.3 * strength, 0.65),
    )
    step = rng.uniform(5, 11)
    ticks = np.arange(0, 2 * CANVAS, step)
    if kind == 0:
        marks = "".join(
            f'<path d="M{t:.1f} 0L0 {t:.1f}" stroke="{two}" stroke-width="{step / 2.5:.1f}"/>'
            for t in ticks
        )
    elif kind == 1:
        marks = "".join(
            f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{step / 4:.1f}" fill="{two}"/>'
            for x in ticks[: len(ticks) // 2 + 1]
            for y in ticks[: len(ticks) // 2 + 1]
        )
    elif kind == 2:
        marks = _grid(step, two, step / 3)
    else:
        marks = "".join(
            f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{r:.1f}" fill="{c}"/>'
            for x, y, r, c in zip(
                rng.uniform(0, CANVAS, 40),
                rng.uniform(0, CANVAS, 40),
                rng.uniform(3, 12, 40),
                (
                    _colour(hue + h, 0.4, v)
                    for h, v in zip(rng.normal(0, 0.1, 40), rng.uniform(0.5, 0.95, 40), strict=True)
                ),
                strict=True,
            )
        )
    return _add_noise(
        _render(svg, rng, size, strength, backdrop=_plain(one) + marks), rng, 4 + 14 * strength
    )


def neon(svg: Path, rng: Rng, size: int, strength: float) -> Image.Image:
    page = _render(
        svg,
        rng,
        size,
        strength,
        css=_stroke(_colour(rng.random(), 0.85, 1.0), 2.0 - 0.5 * strength * rng.random()),
        backdrop=_plain("#08060f"),
        lines_only=True,
    )
    glow = np.asarray(page.filter(ImageFilter.GaussianBlur(size / 24)), np.float32)
    return Image.fromarray(
        np.clip(np.asarray(page, np.float32) + 1.3 * glow, 0, 255).astype(np.uint8)
    )


def sepia(svg: Path, rng: Rng, size: int, strength: float) -> Image.Image:
    """An old photograph: one brown tone, dark corners, grain, a soft lens."""
    page = _render(
        svg, rng, size, strength, backdrop=_plain(_colour(0.1, 0.1, 0.6 + 0.3 * rng.random()))
    )
    page = page.filter(ImageFilter.GaussianBlur(size / 110 * (0.5 + strength)))
    grey = np.asarray(page.convert("L"), np.float32)[..., None] / 255
    axis = np.linspace(-1, 1, size)
    corner = (
        1
        - (0.25 + 0.3 * strength)
        * np.minimum(1, axis[:, None] ** 2 + axis[None, :] ** 2)[..., None]
    )
    brown = (30 + grey * np.array([215, 185, 140])) * corner
    return _add_noise(Image.fromarray(brown.clip(0, 255).astype(np.uint8)), rng, 5 + 10 * strength)


STYLES: dict[str, Callable[[Path, Rng, int, float], Image.Image]] = {
    f.__name__: f for f in (flat, sketch, blueprint, night, pixelated, textured, neon, sepia)
}


def draw(svg: Path, style: str, rng: Rng, size: int, strength: float) -> Image.Image:
    """One RGB picture of `size` × `size` pixels.

    Raises KeyError, naming the known styles, for an unknown one.
    """
    if style not in STYLES:
        raise KeyError(f"unknown style '{style}'; known styles: {', '.join(STYLES)}")
    return STYLES[style](svg, rng, size, strength)
