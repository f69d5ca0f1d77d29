"""Draws the demo's part of the web: a caption table as a crawler would leave it, and the
pictures it links to.
"""

from __future__ import annotations

import io
import zipfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
from PIL import Image

from pipeline.artifacts import replacing, write_table
from pipeline.errors import InputError
from pipeline.world.captions import alt_text
from pipeline.world.concepts import Concept
from pipeline.world.drawing import STYLES, draw
from pipeline.world.params import DrawnBenchmark, Web
from pipeline.world.schemas import TRUTH

Rng = np.random.Generator

PAGE = (
    b"<!doctype html><title>Not found any more</title><p>This picture has moved. Please visit "
    b"our new gallery."
)


def choose_classes(concepts: list[Concept], count: int, rng: Rng, where: str) -> list[Concept]:
    """`count` classes in file order, as evenly from every family as the families allow."""
    if count > len(concepts):
        raise InputError(
            f"parameter '{where}.classes' asks for {count} classes, but only {len(concepts)} are "
            "listed; lower it or add classes to the concepts file"
        )
    by_family: dict[str, list[Concept]] = {}
    for concept in concepts:
        by_family.setdefault(concept.family, []).append(concept)
    order = {f: [m[i] for i in rng.permutation(len(m))] for f, m in by_family.items()}
    chosen: list[Concept] = []
    while len(chosen) < count:
        for members in order.values():
            if members and len(chosen) < count:
                chosen.append(members.pop())
    return sorted(chosen, key=concepts.index)


def check_styles(styles: list[str], where: str) -> None:
    for style in styles:
        if style not in STYLES:
            raise InputError(
                f"parameter '{where}': unknown style '{style}'; known styles: {', '.join(STYLES)}"
            )


def jpeg(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=90)
    return buffer.getvalue()


def add_file(archive: zipfile.ZipFile, name: str, content: bytes) -> None:
    """Stored, with a fixed date, so that the archive's bytes depend on its content only."""
    archive.writestr(zipfile.ZipInfo(name, (2023, 10, 2, 0, 0, 0)), content)


def _served(content: bytes, fate: str, rng: Rng) -> bytes | None:
    """What a link of this fate leads to: the picture, the first part of it, a page, or nothing."""
    if fate == "truncated":
        return content[: int(len(content) * rng.uniform(0.2, 0.7))]
    return {"fine": content, "page": PAGE}.get(fate)


def _links(
    concept: Concept, concepts: list[Concept], web: Web, fates: dict[str, float], rng: Rng
) -> Iterator[tuple[dict, bytes | None]]:
    """A new picture of a concept, as one link to it or two: rows of `TRUTH` and what they give."""
    style = web.styles[rng.integers(len(web.styles))]
    svg = concept.drawings[rng.integers(len(concept.drawings))]
    strength = rng.uniform(web.strength[0], web.strength[1])
    content = jpeg(draw(svg, style, rng, web.size, strength))
    fate = str(rng.choice(list(fates), p=list(fates.values())))
    told, mismatched = concept, bool(rng.random() < web.wrong_captions)
    if mismatched:
        away = rng.integers(1, len(concepts))
        told = concepts[(concepts.index(concept) + away) % len(concepts)]
    for _ in range(2 if rng.random() < web.duplicates else 1):
        url = f"{rng.integers(16**8):08x}.jpg"
        served = _served(content, fate, rng)
        row = {
            "caption": alt_text(told.name, style, rng),
            "url": url,
            "name": concept.name,
            "family": concept.family,
            "style": style,
            "fate": fate,
            "mismatched": mismatched,
        }
        yield row, served


def draw_web(concepts: list[Concept], web: Web, seed: int, out: Path, progress) -> dict[str, int]:
    """Writes captions.tsv (caption, URL; no header), pictures.zip and truth.parquet into `out`.

    URLs are relative: the pictures live on "this site", whose root is pictures.zip.

    Returns:
        How many links of each fate there are.
    """
    rng = np.random.default_rng([seed, 1])
    check_styles(web.styles, "world.webs.*.styles")
    fates = {"dead": web.dead_links, "truncated": web.truncated, "page": web.not_pictures}
    fates["fine"] = 1.0 - sum(fates.values())
    rows: list[dict] = []
    out.mkdir(parents=True, exist_ok=True)
    with (
        replacing(out / "pictures.zip") as temporary,
        zipfile.ZipFile(temporary, "w", zipfile.ZIP_STORED) as archive,
    ):
        for concept in progress(concepts, "drawing"):
            for _ in range(web.pictures_per_class):
                for row, served in _links(concept, concepts, web, fates, rng):
                    if served is not None:
                        add_file(archive, row["url"], served)
                    rows.append(row)
    rows = [rows[i] for i in rng.permutation(len(rows))]
    with replacing(out / "captions.tsv") as temporary:
        temporary.write_text(
            "".join(f"{r['caption']}\t{r['url']}\n" for r in rows), encoding="utf-8"
        )
    write_table(pa.Table.from_pylist(rows).select(TRUTH.names), out / "truth.parquet", TRUTH)
    return {
        "links": len(rows),
        **{fate: sum(r["fate"] == fate for r in rows) for fate in fates},
        "mismatched": sum(r["mismatched"] for r in rows),
    }


def draw_benchmark(
    concepts: list[Concept], benchmark: DrawnBenchmark, seed: int, out: Path, progress
) -> dict[str, int]:
    """Writes a zip of `<split>/<style>/<class>/<number>.jpg`; training and test pictures are
    drawn apart.
    """
    rng = np.random.default_rng([seed, 2])
    check_styles(benchmark.train_styles + benchmark.test_styles, "world.benchmarks.*")
    parts = {
        "train": (benchmark.train_per_class, benchmark.train_styles),
        "test": (benchmark.test_per_class, benchmark.test_styles),
    }
    with (
        replacing(out) as temporary,
        zipfile.ZipFile(temporary, "w", zipfile.ZIP_STORED) as archive,
    ):
        for concept in progress(concepts, "drawing"):
            for split, (count, styles) in parts.items():
                for number in range(count):
                    style = styles[number % len(styles)]
                    svg = concept.drawings[rng.integers(len(concept.drawings))]
                    picture = draw(
                        svg,
                        style,
                        rng,
                        benchmark.size,
                        rng.uniform(benchmark.strength[0], benchmark.strength[1]),
                    )
                    add_file(
                        archive, f"{split}/{style}/{concept.name}/{number:03d}.jpg", jpeg(picture)
                    )
    return {
        "classes": len(concepts),
        **{split: count * len(concepts) for split, (count, _) in parts.items()},
    }
