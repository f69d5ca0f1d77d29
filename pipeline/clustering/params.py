"""Parameters of embedding, topics, labels and domains."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from pipeline.params import Section

Count = Annotated[int, Field(ge=1)]


class Embed(Section):
    """The sentence encoder."""

    model: str  # a folder, `package:NAME/FOLDER` for one that a Python package carries, or a hub name


class Topics(Section):
    """kNN graph → UMAP → HDBSCAN."""

    neighbours: Annotated[int, Field(ge=2)]  # size of the neighbourhood in the kNN graph
    exact_up_to: Count  # captions: beyond, neighbours are searched approximately …
    recall: Annotated[float, Field(gt=0, le=1)]  # … which must find this share of the true ones
    fit_on: Count  # captions: beyond, a sample of so many is clustered and the others follow their nearest one
    map_on: Count  # captions: of more, a sample stands on the report's map
    components: Annotated[int, Field(ge=2)]  # dimensions that HDBSCAN clusters in
    min_dist: Annotated[float, Field(ge=0)]  # how tightly UMAP may pack points
    min_cluster_size: Annotated[int, Field(ge=2)]  # captions, of all: the least that makes a topic
    min_samples: Count  # larger: more captions are outliers
    selection: Literal["eom", "leaf"]  # leaf: many fine topics; eom: the most stable ones of any size
    repeats: Annotated[int, Field(ge=0)]  # clusterings with other seeds, for the stability alone
    outliers: Literal["drop", "nearest"]  # captions outside all topics: leave out, or join the nearest one …
    nearest_similarity: Annotated[float, Field(ge=-1, le=1)]  # … whose centre is at least this similar


class Label(Section):
    """c-TF-IDF."""

    formula: Literal["eq3", "bertopic"]  # Eq 3 counts the clusters that hold a word, BERTopic how often it occurs in all
    words: Count  # how many words describe a topic in the report
    longest_phrase: Annotated[int, Field(ge=1, le=3)]  # a topic's name may have up to this many words
    min_captions: Count  # words in fewer captions than this cannot name a topic
    stop_words: list[str]  # besides the English ones
    edits: str  # file of hand-made changes: topics to merge, rename or drop


class Domains(Section):
    """k-means on the CLIP image features of each topic."""

    choose: Literal["fixed", "silhouette"]  # U domains a topic, or the number from 2 to U with the best mean silhouette
    per_topic: Annotated[int, Field(ge=1)]  # U
    min_size: Count  # pairs: smaller domains, and topics that end with fewer than two domains, are marked
    iterations: Count
