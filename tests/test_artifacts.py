"""Artifacts are whole or not there, checked when read, and resumable."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.artifacts import (
    check_usable,
    fingerprint,
    from_vectors,
    read_json,
    read_table,
    replacing,
    resumable_folder,
    to_vectors,
    usable,
    write_table,
)
from pipeline.errors import InputError

SCHEMA = pa.schema([("key", pa.string()), ("n", pa.int32())])
TABLE = pa.table({"key": ["a", "b"], "n": pa.array([1, 2], pa.int32())})


def test_missing_truncated_and_foreign_files_are_named(tmp_path):
    path = tmp_path / "t.parquet"
    with pytest.raises(InputError, match=r"t.parquet: missing; `dvc repro`"):
        read_table(path, SCHEMA)
    write_table(TABLE, path, SCHEMA)
    assert read_table(path, SCHEMA).equals(TABLE)
    whole = path.read_bytes()
    for cut in (0, 10, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:cut])
        with pytest.raises(InputError, match="not a complete Parquet file.*run `dvc repro` again"):
            read_table(path, SCHEMA)
    pq.write_table(TABLE.drop(["n"]), path)
    with pytest.raises(InputError, match=r"no column 'n' \(it has key\)"):
        read_table(path, SCHEMA)
    pq.write_table(TABLE.set_column(1, "n", pa.array(["x", "y"])), path)
    with pytest.raises(InputError, match="column 'n' is string, expected int32"):
        read_table(path, SCHEMA)
    path.with_suffix(".json").write_text('{"a": ')
    with pytest.raises(InputError, match="not valid JSON"):
        read_json(path.with_suffix(".json"))


def test_a_failed_write_leaves_the_old_file_and_no_other(tmp_path):
    path = tmp_path / "f.txt"
    path.write_text("old")
    with pytest.raises(RuntimeError), replacing(path) as temporary:
        temporary.write_text("half")
        raise RuntimeError
    assert path.read_text() == "old" and [p.name for p in tmp_path.iterdir()] == ["f.txt"]


def test_an_interrupted_folder_is_found_again_only_for_the_same_inputs(tmp_path):
    source, out = tmp_path / "in.txt", tmp_path / "out"
    source.write_text("one")
    with pytest.raises(KeyboardInterrupt), resumable_folder(out, fingerprint(1, source)) as work:
        (work / "part").write_text("done")
        raise KeyboardInterrupt
    assert not out.exists()
    with resumable_folder(out, fingerprint(2, source)) as work:
        assert not list(work.iterdir())
    with resumable_folder(out, fingerprint(1, source)) as work:
        assert not list(work.iterdir())  # the finished run has cleared what was left
        (work / "part").write_text("done")
    assert (out / "part").read_text() == "done"
    with resumable_folder(out, fingerprint(3, source)) as work:
        (work / "part").write_text("done")
        (work / ".part.123.tmp").write_text("half")  # what a killed run leaves
    assert [p.name for p in out.iterdir()] == ["part"]
    source.write_text("other")
    assert fingerprint(1, source) != fingerprint(1, tmp_path / "out")


def test_vectors_keep_float16_values():
    x = np.random.default_rng(0).normal(size=(5, 3)).astype(np.float16)
    column = pa.chunked_array([to_vectors(x[:2]), to_vectors(x[2:])])
    assert np.array_equal(from_vectors(column), x.astype(np.float32))


ROWS = np.array([[1, 0], [np.nan, 1], [0, 0], [np.inf, 0], [1e6, 1], [1e-9, 0], [0, -1]])


def test_vectors_that_are_no_direction():
    """As float16, in which they are kept: 1e6 is infinite there, and 1e-9 is zero."""
    assert usable(ROWS).tolist() == [True, False, False, False, False, False, True]
    assert usable(ROWS.astype(np.float32)).sum() == 2
    with pytest.raises(InputError, match=r"data/features: the vector of 'b' .*\(5 of 7 are\)"):
        check_usable(ROWS, list("abcdefg"), "data/features")
    check_usable(ROWS[[0, 6]], "ab", "data/features")


def test_vectors_that_are_missing_keep_their_place():
    column = pa.chunked_array([to_vectors(ROWS, usable(ROWS)), to_vectors(ROWS[:1])]).slice(1)
    found = from_vectors(column)
    assert column.null_count == 5 and found.shape == (7, 2)
    assert np.isnan(found[:5]).all() and found[5:].tolist() == [[0, -1], [1, 0]]


def test_same_table_same_bytes(tmp_path):
    for name in "ab":
        write_table(TABLE, tmp_path / name, SCHEMA)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
