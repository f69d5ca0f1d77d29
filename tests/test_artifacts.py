"""Artifacts are whole or not there, checked when read, and resumable."""

import errno
import os
import shutil
import signal
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import ROOT, run

from pipeline import artifacts, stage
from pipeline.artifacts import (
    aside,
    check_usable,
    fingerprint,
    from_vectors,
    kept_parts,
    numbered,
    read_json,
    read_shards,
    read_table,
    remembered,
    replacing,
    resumable_folder,
    scratch_of,
    shard_paths,
    to_vectors,
    usable,
    write_parts,
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


def test_what_is_kept_aside_is_no_part_of_the_result(tmp_path):
    out, made = tmp_path / "out", []

    def make():
        made.append(1)
        return (np.arange(3),)

    with pytest.raises(KeyboardInterrupt), resumable_folder(out, fingerprint(1)) as work:
        aside(work)("numbers", make)
        raise KeyboardInterrupt
    assert artifacts.keeps_parts()
    with resumable_folder(out, fingerprint(1)) as work:
        (numbers,) = aside(work)("numbers", make)
        (work / "part").write_text(str(numbers.sum()))
    assert made == [1] and (out / "part").read_text() == "3"
    assert [p.name for p in out.iterdir()] == ["part"]


@pytest.mark.parametrize("parts", [False, True])
def test_vectors_are_written_without_a_dictionary(tmp_path, parts):
    """A float16 among 65,536 makes Parquet begin one, which pays for words and not for these."""
    vectors = np.random.default_rng(0).normal(size=(500, 16)).astype(np.float16)
    table = pa.table({"key": [str(i % 7) for i in range(500)], "image": to_vectors(vectors)})
    path = tmp_path / "v.parquet"
    if parts:
        write_parts([table], path, table.schema)
    else:
        write_table(table, path, table.schema)
    group = pq.ParquetFile(path).metadata.row_group(0)
    assert "RLE_DICTIONARY" in group.column(0).encodings
    assert "RLE_DICTIONARY" not in group.column(1).encodings
    assert np.array_equal(from_vectors(read_table(path, table.schema)["image"]), vectors)


def test_what_a_part_is_made_with_is_its_identity(tmp_path, monkeypatch):
    """The code, the parameters that change bytes, and what the inputs hold, behind links too."""
    from pipeline import artifacts
    from pipeline.pairs.params import Download

    folder, beside = tmp_path / "in", tmp_path / "beside"
    for at in (folder, beside):
        at.mkdir()
        (at / "a.txt").write_text("one")
    (folder / "linked").symlink_to(beside)
    (beside / "round").symlink_to(folder)
    first = fingerprint(1, folder)
    status = (folder / "a.txt").stat()
    (folder / "a.txt").write_text("two")
    os.utime(folder / "a.txt", ns=(status.st_atime_ns, status.st_mtime_ns))
    assert fingerprint(1, folder) != first  # as many bytes, at the same time
    (folder / "a.txt").write_text("one")
    assert fingerprint(1, folder) == first  # the same bytes, later
    (beside / "a.txt").write_text("two")
    assert fingerprint(1, folder) != first
    (beside / "a.txt").write_text("one")
    (folder / "a.txt").rename(folder / "b.txt")
    assert fingerprint(1, folder) != first
    (folder / "b.txt").rename(folder / "a.txt")

    settings = {"image_size": 64, "shard_rows": 10, "timeout": 5, "retries": 1}
    made = Download(**settings, private_addresses=False, min_success=0.9)
    same = {"timeout": 50, "retries": 2, "min_success": 0.1}
    prints = [
        fingerprint((SimpleNamespace(download=made.model_copy(update=change)), "x"))
        for change in ({}, same, {"image_size": 65}, {"shard_rows": 11})
    ]
    assert prints[0] == prints[1] and len(set(prints)) == 3

    monkeypatch.setattr(artifacts, "CHEAP", 3)  # too much to be read: names, sizes and times
    first = fingerprint(1, folder)
    (folder / "a.txt").write_text("one and more")
    assert fingerprint(1, folder) != first


def test_the_code_is_part_of_it(tmp_path):
    """A stage whose code is changed, in its script or in what it calls, does not find the parts of
    before.
    """
    for name in ("pipeline", "stages"):
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / name, tmp_path / name, ignore=ignored)
    script, room = tmp_path / "stages" / "mine.py", tmp_path / "pipeline" / "mine.py"
    script.write_text(
        "import _repository\nfrom pipeline.artifacts import fingerprint\n"
        "from pipeline.mine import square\nprint(fingerprint(square(2)))\n"
    )
    found = []
    for text in ("x * x", "x * x  # a comment", "x ** 2"):
        room.write_text(f"def square(x):\n    return {text}\n")
        found.append(run(sys.executable, script, cwd=tmp_path, PYTHONPATH="").stdout)
    assert found[0] == found[1] != found[2]


def test_scratch_lies_in_nothing_that_dvc_hashes(tmp_path):
    (tmp_path / ".dvc").mkdir()
    for out, at in (
        ("data/tuned/coop/animals", "data/.partial/tuned/coop"),
        ("data/features", "data/.partial"),
        ("elsewhere/run", "data/.partial/elsewhere"),
    ):
        assert scratch_of(tmp_path / out) == tmp_path / at
        with resumable_folder(tmp_path / out, fingerprint(1)) as work:
            assert work.parent == tmp_path / at
            (work / "part").write_text("done")
        assert (tmp_path / out / "part").read_text() == "done"
    ignored = (ROOT / ".dvcignore").read_text().splitlines()
    assert {".partial", ".*.tmp"} <= set(ignored)
    assert scratch_of(Path("/nowhere/out")) == Path("/nowhere/.partial")


def test_a_part_that_is_missing_is_named_when_published_and_when_read(tmp_path):
    out = tmp_path / "shards"
    with (
        pytest.raises(InputError, match="b.txt: missing"),
        resumable_folder(out, "x" * 16, parts=["a.txt", "b.txt"]) as work,
    ):
        (work / "a.txt").write_text("one")
    assert not out.exists() and (work / "a.txt").exists()
    names = [f"{n:05d}.parquet" for n in range(4)]
    for number, name in enumerate(names):
        write_table(TABLE, out / name, numbered(SCHEMA, number, len(names)))
    assert [p.name for p in shard_paths(out)] == names
    for number in (0, 2, 3):
        kept = (out / names[number]).read_bytes()
        (out / names[number]).unlink()
        with pytest.raises(InputError, match=rf"{names[number]}: missing; `dvc checkout .*force"):
            read_shards(out, SCHEMA)
        (out / names[number]).write_bytes(kept)
    for name in names[1:3]:
        (out / name).unlink()
    with pytest.raises(InputError, match="00001.parquet: missing and 1 more of its parts"):
        shard_paths(out)


def test_parts_that_are_not_of_one_folder_or_without_numbers(tmp_path):
    for number, name in enumerate(("00003.parquet", "00007.parquet")):  # shards that gave nothing
        write_table(TABLE, tmp_path / name, numbered(SCHEMA, number, 3))
    with pytest.raises(InputError, match="part 3 of 3 is missing"):
        shard_paths(tmp_path)
    write_table(TABLE, tmp_path / "00009.parquet", numbered(SCHEMA, 2, 3))
    assert len(shard_paths(tmp_path)) == 3
    for number, parts in ((2, 4), (1, 3)):
        write_table(TABLE, tmp_path / "00009.parquet", numbered(SCHEMA, number, parts))
        with pytest.raises(InputError, match="its parts are of different runs; `dvc checkout"):
            shard_paths(tmp_path)
    write_table(TABLE, tmp_path / "00009.parquet", SCHEMA)  # of one's own, without numbers
    with pytest.raises(InputError, match="00004.parquet: missing and 3 more"):
        shard_paths(tmp_path)


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


def test_same_table_same_bytes(tmp_path):
    for name in "ab":
        write_table(TABLE, tmp_path / name, SCHEMA)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_finished_parts_stay_until_all_is_done(tmp_path, monkeypatch):
    monkeypatch.setattr(artifacts, "_works", [])
    made, whole = [], (np.arange(6.0).reshape(2, 3), np.array(0.5))

    def make():
        made.append(1)
        return whole

    def work(name, end):
        with kept_parts(tmp_path / "topics.parquet", name) as parts:
            found = remembered(parts / "step" / "one.npz", make)
            if end:
                raise KeyboardInterrupt
        return found

    for name in ("a" * 16, "b" * 16, "b" * 16):
        with pytest.raises(KeyboardInterrupt):
            work(name, True)
    assert len(made) == 2 and artifacts.keeps_parts()  # of another fingerprint, nothing is taken
    found = work("b" * 16, False)
    assert len(made) == 2 and all(np.array_equal(a, b) for a, b in zip(found, whole, strict=True))
    assert [a.dtype for a in found] == [a.dtype for a in whole]
    assert not list(scratch_of(tmp_path / "topics.parquet").glob("topics*"))


@pytest.mark.parametrize("end", [KeyboardInterrupt, OSError(errno.ENOSPC, "No space left")])
@pytest.mark.parametrize(
    ("parts", "words"),
    [(0, "the next run begins anew"), (1, "finished parts are kept and the next run goes on")],
)
def test_what_an_end_before_its_time_leaves_is_said(
    tmp_path, capsys, monkeypatch, end, parts, words
):
    """Of a stage that keeps nothing, nothing is promised; a full disk is no traceback."""
    monkeypatch.setattr(sys, "argv", ["stages/topics.py"])
    monkeypatch.setattr(artifacts, "_works", [])

    def main():
        with resumable_folder(tmp_path / "out", "0" * 16) as work:
            for number in range(parts):
                (work / f"{number}.parquet").touch()
            raise end

    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        with pytest.raises(SystemExit) as ended:
            stage.run(main)
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
    said = capsys.readouterr().err
    assert said.startswith("topics: ") and words in said and said.count("\n") == 1
    assert ended.value.code == (130 if end is KeyboardInterrupt else 1)
    assert ("the disk is full" in said) == (ended.value.code == 1)
