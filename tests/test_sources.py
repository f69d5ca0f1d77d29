"""Caption tables as people have them: odd rows are named, not swallowed."""

import functools
import hashlib
import io
import tarfile
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from pipeline.errors import InputError
from pipeline.sources.obtain import obtain
from pipeline.sources.params import Obtain, Source
from pipeline.sources.table import read_captions


def read(tmp_path, name, content, **changes):
    path = tmp_path / name
    path.write_bytes(content) if isinstance(content, bytes) else path.write_text(
        content, encoding="utf-8"
    )
    settings = dict(
        path=str(tmp_path),
        table=name,
        obtain=None,
        columns=["caption", "url"],
        pictures=None,
        bad_rows="error",
    )
    return read_captions(Source(**(settings | changes)))


GOOD = "a cat\thttp://a/1.jpg\na dog\thttp://a/2.jpg\n"


def test_a_stray_quote_in_a_tsv_is_a_character(tmp_path):
    """A reader with quoting would swallow the URL and the next row here."""
    table, counts = read(
        tmp_path, "t.tsv", 'a 5" nail\thttp://a/1.jpg\nsay "hi\thttp://a/2.jpg\n' + GOOD
    )
    assert counts["captions"] == 4
    assert {'a 5" nail', 'say "hi'} < set(table["caption"].to_pylist())


@pytest.mark.parametrize(
    "row, words",
    [
        (
            "a\tcat\thttp://a/3.jpg\n",
            "row 3 has 3 fields instead of 2 (a tab or a line break inside a caption?)",
        ),
        ("a cat on\na mat\thttp://a/3.jpg\n", "row 3 has 1 fields instead of 2"),
        ("\n", "row 3 is empty"),
        ("\thttp://a/3.jpg\n", "row 3 has no caption"),
        ("&nbsp;\thttp://a/3.jpg\n", "row 3 has no caption"),
        ("a cow\t\n", "row 3 has no URL"),
    ],
)
def test_bad_rows_are_named_with_the_remedy(tmp_path, row, words):
    with pytest.raises(InputError) as error:
        read(tmp_path, "t.tsv", GOOD + row)
    assert words in str(error.value) and str(tmp_path / "t.tsv") in str(error.value)
    assert "source.bad_rows: drop" in str(error.value)
    _, counts = read(tmp_path, "t.tsv", GOOD + row, bad_rows="drop")
    assert counts["captions"] >= 2 and counts["bad_rows"] >= 1


def test_duplicate_keys_are_an_error_and_repeated_rows_are_counted(tmp_path):
    with pytest.raises(InputError, match="key 'k1' stands in row 2 and again in row 4"):
        read(
            tmp_path,
            "t.tsv",
            "key\tcaption\turl\nk1\ta\thttp://a/1\nk2\tb\thttp://a/2\nk1\tc\thttp://a/3\n",
            columns=None,
        )
    _, counts = read(tmp_path, "t.tsv", GOOD + GOOD)
    assert counts == {"captions": 2, "repeated_rows": 2, "bad_rows": 0, "not_utf8": 0, "mended": 0}


def test_a_key_that_is_no_file_name_is_refused(tmp_path):
    """Keys name the files inside the shards."""
    with pytest.raises(InputError, match="key '../../x'.*row 2"):
        read(tmp_path, "t.tsv", "key\tcaption\turl\n../../x\ta\thttp://a/1\n", columns=None)


def test_keys_do_not_depend_on_the_order_of_rows(tmp_path):
    one, _ = read(tmp_path, "a.tsv", GOOD)
    two, _ = read(tmp_path, "b.tsv", "".join(reversed(GOOD.splitlines(keepends=True))))
    assert one.equals(two)


def test_csv_with_quotes_line_breaks_and_a_header(tmp_path):
    table, _ = read(
        tmp_path,
        "t.csv",
        'url,caption\nhttp://a/1,"a cat,\nasleep"\nhttp://a/2,"a ""big"" dog"\n',
        columns=None,
    )
    assert sorted(table["caption"].to_pylist()) == ['a "big" dog', "a cat, asleep"]
    with pytest.raises(InputError, match="not valid CSV.*stray quote"):
        read(tmp_path, "t.csv", 'url,caption\nhttp://a/1,"a cat\nhttp://a/2,a dog\n', columns=None)


def test_parquet_with_missing_values(tmp_path):
    pq.write_table(
        pa.table(
            {"url": ["http://a/1", "http://a/2"], "caption": ["a cat", None], "extra": [1, 2]}
        ),
        tmp_path / "t.parquet",
    )
    settings = dict(path=str(tmp_path), table="t.parquet", obtain=None, columns=None, pictures=None)
    with pytest.raises(InputError, match="row 2 has no caption"):
        read_captions(Source(bad_rows="error", **settings))
    assert read_captions(Source(bad_rows="drop", **settings))[1]["captions"] == 1


@pytest.mark.parametrize(
    "name, content, words",
    [
        ("t.tsv", "text\tlink\na\tb\n", "no column 'caption' among text, link"),
        ("t.tsv", "", "is empty"),
        ("t.tsv", "caption\turl\n", "no usable row"),
        (
            "t.tsv",
            "caption\turl\na\thttp://a\n".encode("utf-16")[:-1],
            "starts like UTF-16 text, but is none",
        ),
        ("t.tsv", "caption\turl\na\thttp://a\n".encode("utf-16-le"), "first row"),
        ("t.parquet", b"PAR1 and then nothing", "not a complete Parquet file"),
        ("t.xlsx", b"", "not a .tsv, .csv or .parquet"),
    ],
)
def test_unusable_tables(tmp_path, name, content, words):
    with pytest.raises(InputError, match=words):
        read(tmp_path, name, content, columns=None)


def test_a_missing_table(tmp_path):
    with pytest.raises(InputError, match="no such table"):
        read_captions(
            Source(
                path=str(tmp_path),
                table="t.tsv",
                obtain=None,
                columns=None,
                pictures=None,
                bad_rows="error",
            )
        )


@pytest.mark.parametrize("name", ["t.tsv", "t.csv"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_encodings_with_a_mark_are_recognised(tmp_path, name, encoding):
    comma = "\t" if name == "t.tsv" else ","
    table, counts = read(
        tmp_path,
        name,
        f"caption{comma}url\r\nein süßer Bär{comma}http://a/1\r\n".encode(encoding),
        columns=None,
    )
    assert table["caption"].to_pylist() == ["ein süßer Bär"] and counts["not_utf8"] == 0


def test_a_row_that_is_not_utf8_concerns_that_row_alone(tmp_path):
    """Read as Windows-1252 and counted; if it is not that either, a bad row."""
    rows = GOOD.encode() + "a café\thttp://a/3.jpg\n".encode("cp1252")
    table, counts = read(tmp_path, "t.tsv", rows)
    assert "a café" in table["caption"].to_pylist() and (
        counts["captions"],
        counts["not_utf8"],
    ) == (3, 1)
    for odd in (b"a \x81 cat\thttp://a/4.jpg\n", b"a \0 cat\thttp://a/4.jpg\n"):
        with pytest.raises(InputError, match="row 4 is neither UTF-8 nor Windows-1252 text"):
            read(tmp_path, "t.tsv", rows + odd)
        assert read(tmp_path, "t.tsv", rows + odd, bad_rows="drop")[1]["bad_rows"] == 1
    table, counts = read(
        tmp_path,
        "t.csv",
        rows.replace(b"\t", b",") + b"a \x81 cat,http://a/4.jpg\n",
        bad_rows="drop",
    )
    assert "a café" in table["caption"].to_pylist() and (
        counts["captions"],
        counts["not_utf8"],
        counts["bad_rows"],
    ) == (3, 1, 1)
    odd = pa.Array.from_buffers(
        pa.string(), 3, pa.array([b"a caf\xe9", b"a \x81 cat", b"a dog"]).buffers()
    )
    pq.write_table(
        pa.table(
            {
                "caption": odd,
                "url": ["http://a/1", "http://a/2", "http://a/3"],
                "picture": [b"\xff\xd8\0"] * 3,
            }
        ),
        tmp_path / "t.parquet",
    )
    table, counts = read(
        tmp_path, "t.parquet", (tmp_path / "t.parquet").read_bytes(), columns=None, bad_rows="drop"
    )
    assert set(table["caption"].to_pylist()) == {"a café", "a dog"} and (
        counts["not_utf8"],
        counts["bad_rows"],
    ) == (1, 1)


@pytest.mark.parametrize(
    "found, mended",
    [
        ("cafÃ© by the sea", "café by the sea"),
        ("salt &amp; pepper", "salt & pepper"),
        ("a&nbsp;&nbsp;cat", "a cat"),
        ("a “quoted” ﬁsh", "a “quoted” ﬁsh"),
        ("<PERSON> &amp; a dog", "<PERSON> & a dog"),
        ("<b>salt</b>&nbsp;&amp; pepper", "<b>salt</b> & pepper"),
    ],
)
def test_captions_are_mended_and_counted(tmp_path, found, mended):
    """Topic words are made of them, and would be `amp` and `nbsp`."""
    table, counts = read(tmp_path, "t.tsv", f"{found}\thttp://a/1\n")
    assert table["caption"].to_pylist() == [mended] and counts["mended"] == (found != mended)


@pytest.mark.parametrize(
    "nothing", ["\u200b", "\u200d\ufeff \u2060", "\u00ad", "\ufe0f", "\u3164", "&#8203;&zwj;"]
)
def test_a_caption_of_which_nothing_is_seen_is_none(tmp_path, nothing):
    with pytest.raises(InputError, match="row 3 has no caption"):
        read(tmp_path, "t.tsv", GOOD + f"{nothing}\thttp://a/3.jpg\n")
    table, _ = read(tmp_path, "t.tsv", "👩‍🚀\thttp://a/1\nक\u094d\u200dष\thttp://a/2\n")
    assert sorted(table["caption"].to_pylist()) == ["क\u094d\u200dष", "👩‍🚀"]


def test_a_quote_that_holds_many_lines_together_is_said(tmp_path, capsys):
    """Two stray quotes are valid CSV: the lines between them are one caption."""
    lines = [f"caption {i},http://a/{i}\n" for i in range(300)]
    lines[100], lines[200] = '"a 5" nail,http://a/100\n'.replace('5"', "5"), 'x",http://a/200\n'
    table, counts = read(tmp_path, "t.csv", "".join(lines))
    assert (counts["captions"], counts["long_rows"]) == (200, 1)
    assert f"{tmp_path / 't.csv'}: lines 101 to 201 are one row" in capsys.readouterr().err
    assert max(map(len, table["caption"].to_pylist())) > 1000


def parquet(tmp_path, **columns):
    urls = pa.array(["http://a/1", "http://a/2"])
    pq.write_table(pa.table({"url": urls} | columns), tmp_path / "t.parquet")
    return read(tmp_path, "t.parquet", (tmp_path / "t.parquet").read_bytes(), columns=None)


@pytest.mark.parametrize(
    "kind",
    [
        pa.list_(pa.string()),
        pa.large_list(pa.large_string()),
        pa.list_(pa.binary()),
        pa.list_(pa.string(), 2),
    ],
)
def test_a_list_of_captions_is_several_captions(tmp_path, kind):
    lists = pa.array([["a cat", "a kitten"], ["a dog", "a hound"]], kind)
    table, counts = parquet(tmp_path, caption=lists, key=pa.array([12, 7]))
    assert counts["captions"] == 4
    assert sorted(zip(*(table[c].to_pylist() for c in table.column_names), strict=True)) == [
        ("12-1", "a cat", "http://a/1"),
        ("12-2", "a kitten", "http://a/1"),
        ("7-1", "a dog", "http://a/2"),
        ("7-2", "a hound", "http://a/2"),
    ]
    if not pa.types.is_fixed_size_list(kind):
        for odd in ([], None, ["a cat", None]):
            with pytest.raises(InputError, match="row 2 has no caption"):
                parquet(tmp_path, caption=pa.array([["a dog"], odd], kind))


@pytest.mark.parametrize(
    ("column", "values", "kind"),
    [
        ("caption", [{"en": "a cat"}, {"en": "a dog"}], "struct<en: string>"),
        ("caption", pa.array([[("en", "a cat")]] * 2, pa.map_(pa.string(), pa.string())), "map<"),
        ("caption", [[{"text": "a cat"}]] * 2, "list<"),
        ("caption", [[["a cat"]]] * 2, "list<"),
        ("caption", [1.5, 2.5], "double"),
        ("caption", [True, False], "bool"),
        ("url", [["http://a/1"], ["http://a/2"]], "list<"),
        ("url", [{"src": "http://a/1"}] * 2, "struct<"),
        ("key", [1.0, 2.0], "double"),
        ("key", [["a"], ["b"]], "list<"),
    ],
)
def test_values_that_are_no_text_are_an_error_with_their_type(tmp_path, column, values, kind):
    """Not the text that Python writes for them."""
    columns = {"caption": ["a cat", "a dog"], column: values}
    with pytest.raises(InputError) as error:
        parquet(tmp_path, **columns)
    assert f"{tmp_path / 't.parquet'}: column '{column}' is of type {kind}" in str(error.value)


def test_text_that_parquet_keeps_as_categories(tmp_path):
    table, _ = parquet(tmp_path, caption=pa.array(["a cat", "a dog"]).dictionary_encode())
    assert set(table["caption"].to_pylist()) == {"a cat", "a dog"}


def test_one_url_with_two_captions_is_two_rows(tmp_path):
    table, counts = read(tmp_path, "t.tsv", GOOD + "a kitten\thttp://a/1.jpg\n" + GOOD)
    assert (counts["captions"], counts["repeated_rows"]) == (3, 2)
    assert sorted(
        table.filter(pc.equal(table["url"], "http://a/1.jpg"))["caption"].to_pylist()
    ) == ["a cat", "a kitten"]


@pytest.mark.parametrize("name", ["t.tsv", "t.csv"])
def test_a_very_long_caption_survives(tmp_path, name):
    long = "cat " * 25_000
    table, _ = read(tmp_path, name, f"{long}{',' if name == 't.csv' else chr(9)}http://a/1\n")
    assert table["caption"].to_pylist() == [long.strip()]


def tar(path, files):
    with tarfile.open(path, "w") as out:
        for name, content in files.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            out.addfile(entry, io.BytesIO(content))


def from_tars(tmp_path, **changes):
    return read_captions(
        Source(
            **(
                dict(
                    path=str(tmp_path),
                    table="*.tar",
                    obtain=None,
                    columns=None,
                    pictures=".",
                    bad_rows="error",
                )
                | changes
            )
        )
    )


def test_tars_of_pictures_with_their_captions(tmp_path):
    """As img2dataset and the mirrors of Conceptual Captions leave them."""
    tar(
        tmp_path / "00000.tar",
        {
            "0.jpg": b"x",
            "0.json": b'{"caption": "not this"}',
            "0.txt": b"a cat",
            "1.txt": "a café".encode("cp1252"),
            "1.png": b"x",
            "1.json": b'{"caption": "nor this"}',
            "2.json": b"{}",
            "3.txt": b"no picture",
        },
    )
    tar(
        tmp_path / "00001.tar",
        {
            "a/0.webp": b"x",
            "a/0.json": b'{"caption": "a dog", "url": "http://gone"}',
            "a/0.cls": b"1",
        },
    )
    table, counts = from_tars(tmp_path)
    assert set(zip(table["caption"].to_pylist(), table["url"].to_pylist())) == {
        ("a cat", "00000.tar/0.jpg"),
        ("a café", "00000.tar/1.png"),
        ("a dog", "00001.tar/a/0.webp"),
    }
    assert counts["not_utf8"] == 1 and counts["bad_rows"] == 0
    tar(
        tmp_path / "00002.tar",
        {"0.jpeg": b"x", "0.txt": b" ", "1.jpg": b"x", "1.json": b"[", "2.JPG": b"x"},
    )
    with pytest.raises(
        InputError, match=r"row 4 has no caption; row 5 \(00002.tar/1.jpg\) has no caption; row 6"
    ):
        from_tars(tmp_path)
    assert from_tars(tmp_path, bad_rows="drop")[1] | {"not_utf8": 0} == {
        "captions": 3,
        "repeated_rows": 0,
        "bad_rows": 3,
        "not_utf8": 0,
        "mended": 0,
    }


def test_every_picture_of_a_tar_is_a_row(tmp_path):
    """Of any kind, several of one name, and with a list of captions; but no program's leavings."""
    files = {f"{n}.{kind}": b"x" for n, kind in enumerate(["gif", "bmp", "tiff", "JFIF", "avif"])}
    texts = {f"{n}.txt": f"caption {n}".encode() for n in range(5)}
    twice = {"5.jpg": b"x", "5.png": b"x", "5.json": b'{"caption": ["a cat", "a kitten"]}'}
    tar(tmp_path / "00000.tar", files | texts | twice | {"._5.jpg": b"x", "5.npy": b"x"})
    table, counts = from_tars(tmp_path)
    assert counts["captions"] == 9
    assert sorted(table["url"].to_pylist()) == sorted(
        [f"00000.tar/{name}" for name in files] + ["00000.tar/5.jpg", "00000.tar/5.png"] * 2
    )
    assert table["caption"].to_pylist().count("a kitten") == 2


def test_a_tar_that_is_cut_off_is_named(tmp_path):
    tar(
        tmp_path / "00000.tar",
        {"0.jpg": b"x" * 3000, "0.txt": b"a cat", "1.jpg": b"x" * 3000, "1.txt": b"a dog"},
    )
    whole = (tmp_path / "00000.tar").read_bytes()
    for cut in (0, 100, 1024, 4608, 5000, 9216):
        (tmp_path / "00000.tar").write_bytes(whole[:cut])
        with pytest.raises(InputError, match="00000.tar: not a complete tar file"):
            from_tars(tmp_path)


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"pictures": None}, "'pictures' is"),
        ({"columns": ["caption", "url"]}, "'columns' and 'obtain' are null"),
    ],
)
def test_tars_need_no_other_parameters(tmp_path, changes, words):
    with pytest.raises(ValueError, match=words):
        from_tars(tmp_path, **changes)


def test_a_table_is_fetched_with_its_checksum(tmp_path):
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "t.tsv").write_text(GOOD)
    digest = hashlib.sha256(GOOD.encode()).hexdigest()
    handler = type("Quiet", (SimpleHTTPRequestHandler,), {"log_message": lambda *_: None})
    server = ThreadingHTTPServer(
        ("127.0.0.1", 0), functools.partial(handler, directory=str(tmp_path / "site"))
    )
    Thread(target=server.serve_forever, daemon=True).start()
    url = f"http://127.0.0.1:{server.server_address[1]}/t.tsv"
    out = tmp_path / "raw" / "t.tsv"
    with pytest.raises(InputError, match=f'got "{digest}".*source.obtain.sha256'):
        obtain(out, Obtain(url=url, sha256="0" * 64))
    with pytest.raises(InputError, match="404.*by hand"):
        obtain(out, Obtain(url=url + "x", sha256=digest))
    assert list(out.parent.iterdir()) == []
    obtain(out, Obtain(url=url, sha256=digest))
    assert out.read_text() == GOOD
    server.shutdown()
    server.server_close()
    with pytest.raises(InputError, match="cannot be fetched.*refused"):
        obtain(tmp_path / "other.tsv", Obtain(url=url, sha256=digest))


def test_a_url_that_is_none_is_named_as_such(tmp_path):
    """Not as a sum that is another one."""
    bad = Obtain(url="http://[a.org/t.tsv", sha256="0" * 64)
    with pytest.raises(InputError, match="not a valid URL; mend 'source.obtain.url'"):
        obtain(tmp_path / "t.tsv", bad)


@pytest.mark.parametrize(
    "changes", [{"url": "file:///etc/hostname"}, {"url": "ftp://a/t.tsv"}, {"sha256": "abc"}]
)
def test_only_the_web_and_only_with_a_whole_checksum(changes):
    with pytest.raises(ValueError):
        Obtain(**({"url": "https://a/t.tsv", "sha256": "0" * 64} | changes))


@pytest.mark.parametrize(
    "given, found",
    [
        # Windows-1252 read as UTF-8's bytes: the second half is a space or a control character
        ("\u00c3\u00a0 la carte", "à la carte"),
        ("voil\u00c3\u00a0", "voilà"),
        ("na\u00c3\u00afve caf\u00c3\u00a9", "naïve café"),
        ("don\u00e2\u0080\u0099t", "don’t"),
        ("\u00d0\u00a0\u00d0\u00be\u00d1\u0081\u00d1\u0081\u00d0\u00b8\u00d1\u008f", "Россия"),
        ("\u00c3\u0085ngstr\u00c3\u00b6m", "Ångström"),
        ("caf\u00c3\u0192\u00c2\u00a9", "café"),  # three times
        ("\u00c3\u0192\u00c2\u00a0 la", "à la"),
        ("a\u2028cat\u2029on\x0ba\x1cmat", "a cat on a mat"),
        ("\ufeffa cat", "a cat"),
        ("Tom &amp Jerry", "Tom & Jerry"),
        ("salt &amp", "salt &"),
        ("&amp;amp; &amp;lt;", "& <"),
        ("&amp;amp x", "& x"),
        ("a&nbspcat", "a cat"),
        ("caf&eacute by the sea", "café by the sea"),
        ("&lt b &gt", "< b >"),
        ("it&#39s, it&#x27 and &#8217s", "it's, it' and ’s"),
        ("AT&T R&D H&LT Q&A rock&ampoule", "AT&T R&D H&LT Q&A rock&ampoule"),
        ("&copy_this &notit a&lt=b", "&copy_this &notit a&lt=b"),
        ("track &#1 &#12 x", "track &#1 x"),
    ],
)
def test_what_was_encoded_twice_is_mended_before_spaces_are(tmp_path, given, found):
    pq.write_table(pa.table({"caption": [given], "url": ["http://a/1"]}), tmp_path / "t.parquet")
    table, counts = read(tmp_path, "t.parquet", (tmp_path / "t.parquet").read_bytes(), columns=None)
    assert table["caption"].to_pylist() == [found]
    assert counts["mended"] == (" ".join(given.split()) != found)


@pytest.mark.parametrize("kind", ["tsv", "csv"])
@pytest.mark.parametrize(
    "header", ["caption url", "Caption URL", "TEXT URL", "url caption", '"caption" "url"']
)
def test_a_header_row_is_no_pair(tmp_path, kind, header):
    by = {"tsv": "\t", "csv": ","}[kind]
    rows = header.replace(" ", by) + f"\na cat{by}http://a/1\n"
    for bad_rows in ("error", "drop"):
        with pytest.raises(InputError, match="row 1 holds the names.*'source.columns'.*null"):
            read(tmp_path, f"t.{kind}", rows, bad_rows=bad_rows)
    again = f"caption{by}url\na cat{by}http://a/1\n" * 2
    with pytest.raises(InputError, match="row 3 holds names of columns"):
        read(tmp_path, f"t.{kind}", again, columns=None)
    table, counts = read(tmp_path, f"t.{kind}", again, columns=None, bad_rows="drop")
    assert table["caption"].to_pylist() == ["a cat"] and counts["bad_rows"] == 1


def table_of(path, columns):
    """A table of a row, in the kind that the name says; columns: (name, value)."""
    if path.suffix == ".parquet":
        arrays = [pa.array([value]) for _, value in columns]
        pq.write_table(pa.Table.from_arrays(arrays, [name for name, _ in columns]), path)
    else:
        by = {".tsv": "\t", ".csv": ","}[path.suffix]
        path.write_text("".join(by.join(row) + "\n" for row in zip(*columns, strict=True)))
    return path.read_bytes()


@pytest.mark.parametrize("kind", ["tsv", "csv", "parquet"])
def test_columns_are_found_by_the_names_that_others_give_them(tmp_path, kind):
    name, url = f"t.{kind}", ("url", "http://a/1")
    for columns in (
        [("SAMPLE_ID", "7"), ("URL", "http://a/1"), ("TEXT", "a cat"), ("LICENSE", "?")],
        [("uid", "x"), url, ("text", "a cat")],
        [("image_url", "http://a/1"), ("caption", "a cat")],
        [url, ("text", "other"), ("caption", "a cat")],
        [("Caption", "a cat"), ("alt", "x"), ("alt", "y"), url],
    ):
        table, _ = read(tmp_path, name, table_of(tmp_path / name, columns), columns=None)
        assert table["caption"].to_pylist() == ["a cat"]
        assert table["url"].to_pylist() == ["http://a/1"]
    for twice in ("caption", "url", "key", "TEXT"):
        columns = [("caption", "a"), url, ("key", "k")]
        columns = [*columns[twice == "TEXT" :], (twice, "b"), (twice, "c")][-5:]
        with pytest.raises(InputError, match="column '.*stands .* times.*leave one") as error:
            read(tmp_path, name, table_of(tmp_path / name, columns), columns=None)
        assert f"'{twice}' and '{twice}'" in str(error.value)
    missing = table_of(tmp_path / name, [("words", "a"), url])
    with pytest.raises(InputError, match="no column 'caption' among words, url; rename") as error:
        read(tmp_path, name, missing, columns=None)
    assert (kind == "parquet") == ("'source.columns' is not heeded" in str(error.value))


def test_columns_in_the_wrong_order_are_told(tmp_path):
    rows = GOOD.replace("a cat\thttp://a/1.jpg", "http://a/1.jpg\ta cat")
    with pytest.raises(InputError, match="row 1 has a URL as its caption and none as its URL"):
        read(tmp_path, "t.tsv", rows)
    with pytest.raises(InputError, match="no usable row .row 1 has a URL as its caption"):
        read(tmp_path, "t.tsv", "http://a/1.jpg\ta cat\n", bad_rows="drop")


@pytest.mark.parametrize("name", ["t.tsv", "t.csv"])
@pytest.mark.parametrize("end", ["\r", "\r\n", "\n"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
@pytest.mark.parametrize("header", [True, False])
def test_every_end_of_line(tmp_path, name, end, encoding, header):
    by = "\t" if name == "t.tsv" else ","
    rows = [f"caption{by}url"] * header + [f"a cat{by}http://a/1", f"a dog{by}http://a/2"]
    table, _ = read(
        tmp_path, name, end.join(rows).encode(encoding), **({"columns": None} if header else {})
    )
    assert sorted(table["caption"].to_pylist()) == ["a cat", "a dog"]


@pytest.mark.parametrize(
    "name, content",
    [
        ("t.tsv", "\r".join(["a long caption"] * 9999) + "\n"),
        ("t.csv", ",".join(["a"] * 99_999)),
        ("t.tsv", "caption\turl\tkey\na cat\thttp://a/1\t" + "x\r" * 9999 + "\n"),
    ],
)
def test_no_message_quotes_a_whole_file(tmp_path, name, content):
    with pytest.raises(InputError) as error:
        read(tmp_path, name, content, columns=None)
    assert len(str(error.value)) < 1000 and str(error.value).isprintable()


def spark(folder, parts):
    folder.mkdir()
    for number, content in enumerate(parts):
        part = folder / f"part-{number:05d}-c000.snappy{folder.suffix}"
        part.write_bytes(content)
        part.with_name(f".{part.name}.crc").write_bytes(b"crc")
    (folder / "_SUCCESS").touch()
    (folder / "_temporary").mkdir()
    (folder / "_temporary" / "part-9.parquet").write_bytes(b"")


@pytest.mark.parametrize("kind", ["tsv", "csv", "parquet"])
def test_a_folder_of_parts_is_a_table(tmp_path, kind):
    parts = [
        table_of(tmp_path / f"x.{kind}", [("TEXT", text), ("URL", f"http://a/{text}")])
        for text in ("b", "a", "c")
    ]
    spark(tmp_path / f"t.{kind}", [parts[0], *([] if kind == "parquet" else [b""]), *parts[1:]])
    settings = dict(path=str(tmp_path), obtain=None, columns=None, pictures=None, bad_rows="error")
    for table in (f"t.{kind}", f"t.{kind}/*.{kind}"):
        found, counts = read_captions(Source(table=table, **settings))
        assert sorted(found["caption"].to_pylist()) == ["a", "b", "c"] and counts["captions"] == 3
    keyed = [table_of(tmp_path / f"x.{kind}", [("caption", "a"), ("url", "b"), ("key", "k")])] * 2
    spark(tmp_path / f"u.{kind}", keyed)
    with pytest.raises(InputError, match="row . of part-00000.* again in row . of part-00001"):
        read_captions(Source(table=f"u.{kind}", **settings))
    (tmp_path / f"u.{kind}" / "more.txt").touch()
    with pytest.raises(InputError, match=f"holds .{kind}, .txt files, not one of"):
        read_captions(Source(table=f"u.{kind}", **settings))
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="holds no part of a table"):
        read_captions(Source(table="empty", **settings))
