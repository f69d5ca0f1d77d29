"""Parameters of embedding, topics, labels and domains."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from pipeline.params import Part, Section

Count = Annotated[int, Field(ge=1)]


class Embed(Section):
    """The sentence encoder."""

    # a folder, `package:NAME/FOLDER` for one that a Python package carries, or a hub name
    model: str
    # bf16: the products of matrices alone, faster where the device computes in it
    precision: Literal["fp32", "bf16"] = "fp32"


class Neighbourhood(Part):
    """The kNN graph."""

    neighbours: Annotated[int, Field(ge=2)]  # size of the neighbourhood in the kNN graph
    exact_up_to: Count  # captions: beyond, neighbours are searched approximately …
    recall: Annotated[float, Field(gt=0, le=1)]  # … which must find this share of the true ones


class Grouping(Part):
    """UMAP → HDBSCAN."""

    components: Annotated[int, Field(ge=2)]  # dimensions that HDBSCAN clusters in
    min_dist: Annotated[float, Field(ge=0, le=1)]  # how tightly UMAP may pack points
    # captions, of all: the least that makes a topic; not heeded by plscan
    min_cluster_size: Annotated[int, Field(ge=2)]
    min_samples: Count  # larger: more captions are outliers
    # leaf: many fine topics; eom: the most stable ones of any size; plscan: leaf, at the least size
    # at which topics persist longest
    selection: Literal["eom", "leaf", "plscan"]


class Clustering(Neighbourhood, Grouping):
    """All that decides the topics."""

    # captions: beyond, a sample of so many is clustered and the others follow their nearest one
    fit_on: Count
    # captions outside all topics: leave out, or join the nearest one …
    outliers: Literal["drop", "nearest"]
    # … whose centre is at least this similar
    nearest_similarity: Annotated[float, Field(ge=-1, le=1)]


class Mapping(Neighbourhood):
    """All that decides the map of what was clustered."""

    map_on: Count  # captions: of more, a sample stands on the report's map


class Repeating(Neighbourhood, Grouping):
    """All that decides how stable the topics are."""

    repeats: Annotated[int, Field(ge=0)]  # clusterings with other seeds, for the stability alone


class Topics(Clustering, Mapping, Repeating):
    """`topics:`, of which the stages topics, map and stability read a part each."""


class Label(Section):
    """c-TF-IDF."""

    # Eq 3 counts the clusters that hold a word, BERTopic how often it occurs in all
    formula: Literal["eq3", "bertopic"]
    words: Count  # how many words describe a topic in the report
    # a topic's name may have up to this many words
    longest_phrase: Annotated[int, Field(ge=1, le=3)]
    min_captions: Count  # words in fewer captions than this cannot name a topic
    # whose stop words name nothing (ISO 639-1); null: none
    language: str | None = "en"
    # spaces: words lie between spaces; icu: in dictionaries too, for Chinese, Japanese, Thai, …
    segmenter: Literal["spaces", "icu"] = "spaces"
    stop_words: list[str]  # besides those of the language
    # a topic's name: its best word, or the one of its words that tells its pictures best from
    # those of the topics near it; phrases are then those that stand in captions
    choose: Literal["words", "pictures"] = "words"
    # topics whose names' sentence embeddings are at least this similar become one; 1: those of one
    # name alone; null: none, and a word names one topic
    merge_same: Annotated[float, Field(gt=0, le=1)] | None = None
    edits: str  # file of hand-made changes: topics to merge, rename or drop


class Domains(Section):
    """k-means on the CLIP image features of each topic."""

    # U domains a topic, or the number from 2 to U with the best mean silhouette
    choose: Literal["fixed", "silhouette"]
    per_topic: Annotated[int, Field(ge=1)]  # U
    # pairs: smaller domains, and topics that end with fewer than two domains, are marked
    min_size: Count
    iterations: Count
