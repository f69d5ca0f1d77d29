"""A class or a picture that appears, vanishes or doubles is named, whatever it comes in: names in
zips, lists and folders.
"""

import io
import struct
import zipfile
import zlib

import polars as pl
import pytest
from test_benchmarks import folder

from gram.collection import examine, read_collection
from pipeline.benchmarks.labelled import by_list, read_labelled
from pipeline.benchmarks.layouts import read_benchmark
from pipeline.benchmarks.layouts.imagenet import imagenet
from pipeline.benchmarks.layouts.items import Item, check_parts, lines_of, object_of
from pipeline.benchmarks.layouts.official import dtd, fgvc_aircraft
from pipeline.benchmarks.params import Split
from pipeline.benchmarks.reader import read_samples
from pipeline.errors import InputError, quoted
from pipeline.pairs.local_site import _opener
from pipeline.pictures import Pictures, lines_in
from pipeline.stage import warn_of_other_files

CAFE = "café"
FOUR = ("ant", "bee", "cat", CAFE)


def place(number, name):
    """As long as the name, and found nowhere else."""
    return f"@{number}".ljust(len(name.encode()), "@")


def packed(path, names, flag=True, extra=None):
    """A zip of small files; without `flag` UTF-8 names do not say that they are."""
    with zipfile.ZipFile(path, "w") as archive:
        for number, name in enumerate(names):
            entry = zipfile.ZipInfo(place(number, name))
            if extra:
                entry.extra = extra(name)
            archive.writestr(entry, name.encode() + b"|" + path.name.encode())
    content = path.read_bytes()
    for number, name in enumerate(names):
        content = content.replace(place(number, name).encode(), name.encode())
    path.write_bytes(content)
    if flag:
        set_flag(path)
    return path


def set_flag(path, bit=0x800):
    """In every local header and every line of the directory."""
    content = bytearray(path.read_bytes())
    for mark, place in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        at = content.find(mark)
        while at >= 0:
            flags = struct.unpack_from("<H", content, at + place)[0]
            struct.pack_into("<H", content, at + place, flags | bit)
            at = content.find(mark, at + 1)
    path.write_bytes(bytes(content))


def plain_zip(path, entries):
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in entries:
            archive.writestr(name, content)
    return path


def labelled(path):
    return [f"{name}/{i}.jpg" for name in FOUR for i in range(2)]


@pytest.mark.parametrize("flag", [True, False])
def test_names_in_utf8_are_read_with_and_without_the_flag(tmp_path, flag):
    """macOS' archiver writes UTF-8 and does not say so."""
    path = packed(tmp_path / "a.zip", labelled(None), flag)
    pictures = Pictures(path)
    assert set(read_labelled(pictures, 9, 0)["name"]) == set(FOUR)
    assert pictures.read(f"{CAFE}/1.jpg").startswith(f"{CAFE}/1.jpg".encode())
    assert pictures.size(f"{CAFE}/1.jpg") == len(pictures.read(f"{CAFE}/1.jpg"))
    found = read_collection(path)
    assert found.names == sorted(FOUR)
    assert found.read(f"{CAFE}/0.jpg") == pictures.read(f"{CAFE}/0.jpg")
    assert _opener(path)(f"{CAFE}/0.jpg") == pictures.read(f"{CAFE}/0.jpg")


def test_info_zip_s_own_field_tells_the_name(tmp_path):
    def extra(name):
        field = struct.pack("<BL", 1, zlib.crc32(name.encode())) + b"new/" + name.encode()
        return struct.pack("<HH", 0x7075, len(field)) + field

    path = packed(tmp_path / "a.zip", [f"{CAFE}/1.jpg"], flag=False, extra=extra)
    assert Pictures(path).names == [f"new/{CAFE}/1.jpg"]


def test_names_of_another_encoding_are_told(tmp_path):
    raw = "caf\xe9/1.jpg".encode("cp1252")
    path = plain_zip(tmp_path / "a.zip", [("caf0/1.jpg", b"x"), ("bee/1.jpg", b"y")])
    path.write_bytes(path.read_bytes().replace(b"caf0/1.jpg", raw))
    pictures = Pictures(path)
    assert len(pictures.names) == 2
    assert "1 names are not in UTF-8" in pictures.notes[0]


UNSAFE = [
    ("../x/1.jpg", "leads out of the zip"),
    ("a/../../1.jpg", "leads out of the zip"),
    ("/x/1.jpg", "leads out of the zip"),
    ("C:/x/1.jpg", "leads out of the zip"),
    ("..\\x\\1.jpg", "leads out of the zip"),
]


@pytest.mark.parametrize(("name", "words"), UNSAFE)
def test_what_leads_out_is_no_hidden_file(tmp_path, name, words):
    path = plain_zip(tmp_path / "a.zip", [("ant/1.jpg", b"x"), (name, b"y")])
    with pytest.raises(InputError, match=words):
        Pictures(path).names  # noqa: B018
    assert any(words in problem for problem in examine(path)[1])


def test_links_and_encrypted_files_are_named(tmp_path):
    link = zipfile.ZipInfo("ant/1.jpg")
    link.external_attr = 0o120777 << 16
    path = plain_zip(tmp_path / "a.zip", [(link, b"/etc/passwd"), ("bee/1.jpg", b"y")])
    with pytest.raises(InputError, match="'ant/1.jpg' is a link"):
        Pictures(path).names  # noqa: B018
    path = plain_zip(tmp_path / "b.zip", [("ant/1.jpg", b"x")])
    set_flag(path, 1)
    with pytest.raises(InputError, match="'ant/1.jpg' is encrypted"):
        Pictures(path).names  # noqa: B018


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_an_entry_that_is_there_twice_is_named(tmp_path):
    path = plain_zip(tmp_path / "a.zip", [("ant/1.jpg", b"x"), ("ant/1.jpg", b"y")])
    with pytest.raises(InputError, match="'ant/1.jpg' is in the zip twice"):
        Pictures(path).names  # noqa: B018
    assert "twice" in examine(path)[1][0]


def test_a_folder_separator_of_windows_is_one(tmp_path):
    path = packed(tmp_path / "a.zip", [f"{name}\\1.jpg" for name in FOUR])
    assert set(read_labelled(Pictures(path), 9, 0)["name"]) == set(FOUR)


# --- one folder at the top ---


def test_what_zip_r_makes_of_a_folder_is_read(tmp_path):
    names = [f"{name}/{i}.jpg" for name in ("ant", "bee") for i in range(2)]
    own = plain_zip(
        tmp_path / "a.zip",
        [(f"pets/{name}", name) for name in names] + [("__MACOSX/pets/ant/._0.jpg", b"x")],
    )
    found = read_collection(own)
    assert found.names == ["ant", "bee"] and found.files[0] == "pets/ant/0.jpg"
    assert any("was read from the folder 'pets' inside" in note for note in found.notes)
    parts = [f"{part}/{name}" for part in ("train", "test") for name in names]
    path = plain_zip(tmp_path / "b.zip", [(f"pets/{name}", name) for name in parts])
    pictures = Pictures(path)
    samples = pl.from_arrow(read_samples(pictures))
    assert set(samples["name"]) == {"ant", "bee"} and set(samples["split"]) == {"train", "test"}
    assert pictures.read(samples["file"][0]) == samples["file"][0].removeprefix("pets/").encode()
    assert len(pictures.notes) == 1
    assert set(read_labelled(Pictures(path), 9, 0)["name"]) == {"ant", "bee"}
    path = plain_zip(
        tmp_path / "c.zip", [(f"office/{d}/{n}", n) for d in ("amazon", "dslr") for n in names]
    )
    split = Split(seed=1, train=0.5)
    found = pl.from_arrow(read_benchmark("domains", path, None, split).samples)
    assert set(found["domain"]) == {"amazon", "dslr"} and set(found["name"]) == {"ant", "bee"}


def test_one_domain_is_no_folder_around_the_dataset(tmp_path):
    names = [(f"photo/{name}/{i}.jpg", b"x") for name in ("ant", "bee") for i in range(2)]
    table = read_labelled(Pictures(plain_zip(tmp_path / "a.zip", names)), 9, 0)
    assert set(table["name"]) == {"ant", "bee"}
    split = Split(seed=1, train=0.5)
    samples = read_benchmark("domains", tmp_path / "a.zip", None, split).samples
    assert set(samples["domain"].to_pylist()) == {"photo"}


# --- classes that are one, pictures that double ---


def test_two_folders_of_one_class_are_named(tmp_path):
    names = [f"{part}/{c}/1.jpg" for part in ("train", "test") for c in ("big_cat", "big cat", "x")]
    top = folder(tmp_path / "top", names)
    words = "folders 'big cat' and 'big_cat' are one class"
    for read in (read_samples, lambda pictures: read_labelled(pictures, 9, 0)):
        with pytest.raises(InputError, match=words):
            read(Pictures(top))
    top = folder(tmp_path / "d", [f"a/{c}/{i}.jpg" for c in ("big_cat", "big cat") for i in (1, 2)])
    with pytest.raises(InputError, match=words):
        read_benchmark("domains", top, None, Split(seed=1, train=0.5))


@pytest.mark.parametrize(("label", "words"), [(0, "in train twice"), (1, "as 'ant' and as 'bee'")])
def test_a_picture_that_a_list_names_twice_is_named(tmp_path, label, words):
    parts = {
        "train": [Item("a/1.jpg", 0, "ant"), Item("b/1.jpg", 1, "bee")],
        "val": [],
        "test": [Item("a/2.jpg", 0, "ant"), Item("b/2.jpg", 1, "bee")],
    }
    check_parts(parts, tmp_path)
    parts["train"].append(Item("a/1.jpg", label, ("ant", "bee")[label]))
    with pytest.raises(InputError, match=words):
        check_parts(parts, tmp_path)


def test_repeated_lines_and_merged_names_of_a_list_are_told(tmp_path, capsys):
    top = folder(tmp_path, ["a/1.jpg", "a/2.jpg", "a/3.HEIC"])
    (top / "names.txt").write_text("n02113186 Cardigan, Welsh corgi\nn02963159 cardigan\n")
    (top / "list.txt").write_text("a/1.jpg 0\na/2.jpg 1\na/1.jpg 0\n")
    pictures = Pictures(top)
    assert len(by_list(pictures, "list.txt", "names.txt")) == 2
    warn_of_other_files(pictures)
    said = capsys.readouterr().err
    assert "1 lines repeat a picture" in said and "'Cardigan' and 'cardigan' are one class" in said
    assert "1 .heic" in said


# --- lists as editors save them ---


def test_a_byte_order_mark_is_no_part_of_a_name(tmp_path):
    for part in ("train", "val", "test"):
        (tmp_path / "labels").mkdir(exist_ok=True)
        lines = "".join(f"{c}/{part}.jpg\r\n" for c in ("banded", "dotted"))
        (tmp_path / "labels" / f"{part}1.txt").write_bytes(b"\xef\xbb\xbf" + lines.encode())
    parts = dtd(tmp_path, "images")
    assert parts["train"][0] == Item("images/banded/train.jpg", 0, "banded")
    top = folder(
        tmp_path / "imagenet",
        [f"images/{p}/{c}/1.JPEG" for p in ("train", "val") for c in ("n01", "n02")],
    )
    (top / "classnames.txt").write_bytes(b"\xef\xbb\xbfn01 tench\nn02 crane\n")
    assert [item.name for item in imagenet(top, "images")["test"]] == ["tench", "crane"]
    (tmp_path / "variants.txt").write_bytes(b"\xef\xbb\xbf707\n747\n")
    for part in ("train", "val", "test"):
        path = tmp_path / f"images_variant_{part}.txt"
        path.write_bytes(b"\xef\xbb\xbf0000001 707\n0000002 747\n")
    assert fgvc_aircraft(tmp_path, "images")["test"][0].name == "707"
    (tmp_path / "o.json").write_bytes(b"\xef\xbb\xbf{}")
    assert object_of(tmp_path / "o.json") == {}
    top = folder(tmp_path / "web", ["a/1.jpg", "a/2.jpg"])
    (top / "names.txt").write_bytes(b"\xef\xbb\xbfn00000001 tench\nn00000002 crane\n")
    (top / "list.txt").write_bytes(b"\xef\xbb\xbfa/1.jpg 0\na/2.jpg 1\n")
    assert by_list(Pictures(top), "list.txt", "names.txt")[0] == ("a/1.jpg", "tench", "")


def test_lines_end_where_editors_end_them():
    text = "one\u2028more\x0cpage\r\ntwo\rthree\n\nfive"
    assert lines_in(text.encode(), "f") == ["one\u2028more\x0cpage", "two", "three", "", "five"]
    assert lines_in(b"", "f") == []
    with pytest.raises(InputError, match=r"list.txt: is no UTF-8 text \(line 2"):
        lines_in(b"one\ncaf\xe9\n", "list.txt")


def test_a_list_in_another_encoding_is_named(tmp_path):
    (tmp_path / "l.txt").write_bytes("caf\xe9\n".encode("utf-16"))
    with pytest.raises(InputError, match="no UTF-8 text"):
        list(lines_of(tmp_path / "l.txt"))


def test_messages_show_what_cannot_be_seen():
    assert quoted("a\u200bb\ufeff\n") == r"'a\u200bb\ufeff\n'"
    assert quoted("caf\xe9") == "'caf\xe9'"
    assert quoted("x" * 500).endswith("x … (500 characters)'") and len(quoted("x" * 500)) < 150


# --- what is passed over ---


def test_what_is_passed_over_is_counted_wherever_it_lies(tmp_path):
    names = ["ant/1.jpg", "bee/1.jpg", "cow/1.HEIC", "cow/2.HEIC", "ant/2", "README.txt", "x.nef"]
    top = folder(tmp_path / "top", names)
    archive = plain_zip(tmp_path / "top.zip", [(name, b"") for name in names])
    for path in (top, archive):
        pictures = Pictures(path)
        assert pictures.passed_over == {".heic": 2, "no ending": 1, ".nef": 1}
        assert pictures.empty_folders == ["cow"]
    assert Pictures(folder(tmp_path / "flat", ["a.png", "b.HEIC", "c"])).passed_over == {
        ".heic": 1,
        "no ending": 1,
    }


def test_a_class_without_pictures_is_told(tmp_path, capsys):
    top = folder(tmp_path / "top", ["train/ant/1.jpg", "train/bee/1.jpg", "test/ant/1.jpg"])
    (top / "test" / "bee").mkdir()
    (top / "train" / "cow").mkdir()
    (top / "train" / ".cache").mkdir()
    warn_of_other_files(Pictures(top))
    assert "test/bee, train/cow: no pictures, so no class" in capsys.readouterr().err
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name in ("ant/1.jpg", "bee/1.jpg", "cow/", "__MACOSX/"):
            archive.writestr(name, b"")
    (tmp_path / "a.zip").write_bytes(buffer.getvalue())
    assert Pictures(tmp_path / "a.zip").empty_folders == ["cow"]
    assert any("folder 'cow' holds no pictures" in p for p in examine(tmp_path / "a.zip")[1])
