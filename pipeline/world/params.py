"""Parameters of what the demo draws (`world:` in params.yaml)."""

from __future__ import annotations

from typing import Annotated

from pydantic import AfterValidator, Field

from pipeline.params import Distinct, Section

Share = Annotated[float, Field(ge=0, lt=1)]


def _rising(values: list[float]) -> list[float]:
    if values != sorted(values):
        raise ValueError("the weakest comes first, then the strongest")
    return values


Strength = Annotated[
    list[Annotated[float, Field(ge=0, le=1)]],
    Field(min_length=2, max_length=2),
    AfterValidator(_rising),
]
Names = Annotated[list[str], Field(min_length=1), Distinct]
Count = Annotated[int, Field(ge=1)]


class Web(Section):
    """Websites with captioned pictures, some of them wrong, broken or gone."""

    concepts: str  # file with families, classes and drawings
    classes: Count  # how many classes of the file, drawn evenly from its families
    pictures_per_class: Count
    size: Count  # pixels, square
    styles: Names  # the visual domains
    strength: Strength  # weakest and strongest a style is applied
    wrong_captions: Share  # share of pictures captioned as something else
    dead_links: Share
    truncated: Share  # picture files cut off in the middle
    not_pictures: Share  # URLs that answer with a web page
    duplicates: Share  # pictures that a second site shows too, under a caption of its own


class DrawnBenchmark(Section):
    """A labelled dataset with a training and a test part, drawn in several styles."""

    concepts: str
    families: Names  # families of the concepts file that the classes come from
    classes: Count
    size: Count
    train_per_class: Count
    test_per_class: Count
    train_styles: Names  # few-shot pictures come from these domains …
    test_styles: Names  # … and accuracy is measured on these
    strength: Strength


class Truth(Section):
    """Where a drawn web keeps the truth about its links, for the check alone."""

    path: str
