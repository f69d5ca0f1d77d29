"""Draws two pictures of a finished demo for the README: the map of topics, and one topic's domains
side by side.

    python docs/pictures.py --gallery data/gallery.json --out docs/pictures
"""

from __future__ import annotations

import argparse
import base64
import io
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
import plotly.io
from PIL import Image, ImageColor

from pipeline.artifacts import read_json
from pipeline.image_file import open_picture

SHOWN = 5  # pictures of a domain
INK, MUTED = "#1d2733", "#66727f"
plt.rcParams |= {"font.family": "DejaVu Sans", "svg.hashsalt": "", "figure.dpi": 110}


def save(figure, path: Path) -> None:
    """Without a date or version, so that the same demo gives the same bytes, and few colours."""
    drawn = io.BytesIO()
    figure.savefig(drawn, format="png", metadata={"Software": None}, bbox_inches="tight")
    plt.close(figure)
    shown = open_picture(drawn.getvalue())
    shown.quantize(128, dither=Image.Dither.NONE).save(path, optimize=True)


def colours(marker: Any, count: int) -> np.ndarray:
    """(n, 3) in 0 … 1 from plotly's colours, which may be one for all."""
    names = [marker.color] * count if isinstance(marker.color, str) else marker.color
    return np.array([ImageColor.getrgb(name) for name in names]) / 255


def numbers(values: Any) -> np.ndarray:
    """Plotly writes arrays as base64."""
    if isinstance(values, dict):
        return np.frombuffer(base64.b64decode(values["bdata"]), values["dtype"])
    return np.asarray(values)


def topic_map(gallery: dict, path: Path) -> None:
    found = plotly.io.from_json(gallery["figures"]["map"])
    figure, axes = plt.subplots(figsize=(8.4, 6))
    for trace in found.data:
        dots = colours(trace.marker, len(numbers(trace.x)))
        x, y = numbers(trace.x), numbers(trace.y)
        axes.scatter(x, y, s=trace.marker.size**2 * 0.28, c=dots, linewidths=0)
    box = {"facecolor": "white", "alpha": 0.72, "edgecolor": "none", "pad": 0.6}
    for note in found.layout.annotations:
        axes.annotate(
            note.text,
            (note.x, note.y),
            xytext=(0, 7),
            textcoords="offset points",
            ha="center",
            fontsize=6.5,
            color=INK,
            bbox=box,
        )
    axes.axis("off")
    save(figure, path)


def domains(gallery: dict, name: str | None, path: Path) -> str:
    """The named topic's; by default those of the topic that they share most evenly."""
    cards = [c for c in gallery["cards"] if name in (None, c["name"])]
    if not cards:
        raise SystemExit(f"pictures: error: the gallery has no topic '{name}'")
    card = max(cards, key=lambda c: min(d["size"] for d in c["domains"]) / c["size"])
    figure, cells = plt.subplots(
        SHOWN,
        len(card["domains"]),
        figsize=(1.35 * len(card["domains"]), 1.25 * SHOWN + 0.35),
        squeeze=False,
        gridspec_kw={"wspace": 0.35, "hspace": 0.06},
    )
    for column, domain in enumerate(card["domains"]):
        for row in range(SHOWN):
            cells[row, column].axis("off")
        for row, picture in enumerate(domain["pictures"][:SHOWN]):
            content = base64.b64decode(picture.partition(",")[2])
            cells[row, column].imshow(open_picture(content))
        cells[0, column].set_title(
            f"domain {column + 1}\n{domain['size']} pictures", fontsize=7, color=MUTED
        )
    save(figure, path)
    return card["name"]


def main() -> None:
    cli = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    cli.add_argument("--gallery", type=Path, default=Path("data/gallery.json"))
    cli.add_argument("--topic", help="whose domains; by default where they share it most evenly")
    cli.add_argument("--out", type=Path, default=Path("docs/pictures"))
    args = cli.parse_args()
    gallery = read_json(args.gallery)
    topic_map(gallery, args.out / "topics.png")
    name = domains(gallery, args.topic, args.out / "domains.png")
    print(f"pictures: {args.out}/topics.png, and the domains of '{name}' in {args.out}/domains.png")


if __name__ == "__main__":
    main()
