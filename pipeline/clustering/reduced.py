"""What the topics stage leaves for map and stability: the captions that it clustered."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.artifacts import from_vectors, read_table, vector_dim, write_table
from pipeline.clustering.points import distinct
from pipeline.clustering.schemas import reduced_schema
from pipeline.clustering.sentences import read_sentences
from pipeline.clustering.topics import Found
from pipeline.errors import InputError


def save_clustered(keys: pa.ChunkedArray, found: Found, path: Path) -> None:
    """Writes key, cluster and place in UMAP's space of every caption that was clustered."""
    dim = found.grouped.reduced.shape[1]
    places = pa.array(found.grouped.reduced.astype(np.float32).reshape(-1))
    columns = [
        keys.take(pa.array(found.fitted)),
        found.grouped.topic,
        pa.FixedSizeListArray.from_arrays(places, dim),
    ]
    schema = reduced_schema(dim)
    write_table(pa.table(columns, names=schema.names), path, schema)


@dataclass(frozen=True)
class Clustered:
    """The sample that was clustered, of n captions.

    Attributes:
        keys: (n,). of: (n,) the row of the sample that says the same as each caption, −1 where
        none does.
        vectors: (m, d) sentence embeddings of the sample. weight: (m,) captions of each row.
        topic: (m,) HDBSCAN's. reduced: (m, components) where UMAP put them. share: of all
        different captions.
    """

    keys: pa.ChunkedArray
    of: np.ndarray
    vectors: np.ndarray
    weight: np.ndarray
    topic: np.ndarray
    reduced: np.ndarray
    share: float


def read_clustered(sentences: Path, path: Path) -> Clustered:
    """Joins both by key; InputError if a caption that was clustered has no embedding."""
    table = read_table(path, reduced_schema(vector_dim(path, "place")))
    keys, vectors = read_sentences(sentences)
    rows = pc.index_in(table["key"], value_set=keys)
    if rows.null_count:
        raise InputError(
            f"{path}: holds captions that are not in {sentences}; run `dvc repro topics`"
        )
    points, fitted = distinct(vectors), rows.to_numpy()
    sample = points.point[fitted]
    row_of = np.full(len(points.rows), -1)
    row_of[sample] = np.arange(len(sample))
    return Clustered(
        keys,
        row_of[points.point],
        vectors[fitted].astype(np.float32),
        points.weight[sample],
        table["cluster"].to_numpy(),
        from_vectors(table["place"]),
        len(fitted) / len(points.rows),
    )
