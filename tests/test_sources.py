"""Caption tables as people have them: odd rows are named, not swallowed."""

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.errors import InputError
from pipeline.sources.params import Source
from pipeline.sources.table import read_captions


def read(tmp_path, name, content, **changes):
    path = tmp_path / name
    path.write_bytes(content) if isinstance(content, bytes) else path.write_text(content, encoding="utf-8")
    settings = dict(path=str(tmp_path), table=name, columns=["caption", "url"], pictures=None, bad_rows="error")
    return read_captions(Source(**(settings | changes)))


GOOD = "a cat\thttp://a/1.jpg\na dog\thttp://a/2.jpg\n"


def test_a_stray_quote_in_a_tsv_is_a_character(tmp_path):
    """A reader with quoting would swallow the URL and the next row here."""
    table, counts = read(tmp_path, "t.tsv", 'a 5" nail\thttp://a/1.jpg\nsay "hi\thttp://a/2.jpg\n' + GOOD)
    assert counts["captions"] == 4
    assert {'a 5" nail', 'say "hi'} < set(table["caption"].to_pylist())


@pytest.mark.parametrize("row, words", [
    ("a\tcat\thttp://a/3.jpg\n", "row 3 has 3 fields instead of 2 (a tab or a line break inside a caption?)"),
    ("a cat on\na mat\thttp://a/3.jpg\n", "row 3 has 1 fields instead of 2"),
    ("\n", "row 3 is empty"),
    ("\thttp://a/3.jpg\n", "row 3 has no caption"),
    ("a cow\t\n", "row 3 has no URL"),
])
def test_bad_rows_are_named_with_the_remedy(tmp_path, row, words):
    with pytest.raises(InputError) as error:
        read(tmp_path, "t.tsv", GOOD + row)
    assert words in str(error.value) and str(tmp_path / "t.tsv") in str(error.value)
    assert "source.bad_rows: drop" in str(error.value)
    _, counts = read(tmp_path, "t.tsv", GOOD + row, bad_rows="drop")
    assert counts["captions"] >= 2 and counts["bad_rows"] >= 1


def test_duplicate_keys_are_an_error_and_repeated_rows_are_counted(tmp_path):
    with pytest.raises(InputError, match="key 'k1' stands in row 2 and again in row 4"):
        read(tmp_path, "t.tsv", "key\tcaption\turl\nk1\ta\thttp://a/1\nk2\tb\thttp://a/2\nk1\tc\thttp://a/3\n", columns=None)
    _, counts = read(tmp_path, "t.tsv", GOOD + GOOD)
    assert counts == {"captions": 2, "repeated_rows": 2, "bad_rows": 0}


def test_a_key_that_is_no_file_name_is_refused(tmp_path):
    """Keys name the files inside the shards."""
    with pytest.raises(InputError, match="key '../../x'.*row 2"):
        read(tmp_path, "t.tsv", "key\tcaption\turl\n../../x\ta\thttp://a/1\n", columns=None)


def test_keys_do_not_depend_on_the_order_of_rows(tmp_path):
    one, _ = read(tmp_path, "a.tsv", GOOD)
    two, _ = read(tmp_path, "b.tsv", "".join(reversed(GOOD.splitlines(keepends=True))))
    assert one.equals(two)


def test_csv_with_quotes_line_breaks_and_a_header(tmp_path):
    table, _ = read(tmp_path, "t.csv", 'url,caption\nhttp://a/1,"a cat,\nasleep"\nhttp://a/2,"a ""big"" dog"\n', columns=None)
    assert sorted(table["caption"].to_pylist()) == ['a "big" dog', "a cat, asleep"]
    with pytest.raises(InputError, match="not valid CSV.*stray quote"):
        read(tmp_path, "t.csv", 'url,caption\nhttp://a/1,"a cat\nhttp://a/2,a dog\n', columns=None)


def test_parquet_with_missing_values(tmp_path):
    pq.write_table(pa.table({"url": ["http://a/1", "http://a/2"], "caption": ["a cat", None], "extra": [1, 2]}), tmp_path / "t.parquet")
    settings = dict(path=str(tmp_path), table="t.parquet", columns=None, pictures=None)
    with pytest.raises(InputError, match="row 2 has no caption"):
        read_captions(Source(bad_rows="error", **settings))
    assert read_captions(Source(bad_rows="drop", **settings))[1]["captions"] == 1


@pytest.mark.parametrize("name, content, words", [
    ("t.tsv", "text\tlink\na\tb\n", "no column 'caption' among text, link"),
    ("t.tsv", "", "is empty"),
    ("t.tsv", "caption\turl\n", "no usable row"),
    ("t.tsv", "caption\turl\na\thttp://a\n".encode("utf-16"), "not UTF-8"),
    ("t.parquet", b"PAR1 and then nothing", "not a complete Parquet file"),
    ("t.xlsx", b"", "not a .tsv, .csv or .parquet"),
])
def test_unusable_tables(tmp_path, name, content, words):
    with pytest.raises(InputError, match=words):
        read(tmp_path, name, content, columns=None)


def test_a_missing_table(tmp_path):
    with pytest.raises(InputError, match="no such table"):
        read_captions(Source(path=str(tmp_path), table="t.tsv", columns=None, pictures=None, bad_rows="error"))
