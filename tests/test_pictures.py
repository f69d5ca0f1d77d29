"""Folders as people have them: links, hidden and other files, spellings, formats, copies; and a
dataset in folders of domains.
"""

import io
import os
import random
import urllib.error
import urllib.request
import zipfile

import numpy as np
import polars as pl
import pytest
from PIL import Image
from pydantic import ValidationError
from test_benchmarks import folder

from pipeline.benchmarks.labelled import by_list, read_labelled
from pipeline.benchmarks.layouts import read_benchmark
from pipeline.benchmarks.layouts.imagenet import imagenet
from pipeline.benchmarks.layouts.official import caltech101
from pipeline.benchmarks.params import Benchmark, Shots, Split
from pipeline.benchmarks.reader import read_samples
from pipeline.benchmarks.sound import check_shots, remarks
from pipeline.clip.backbone import open_picture
from pipeline.errors import InputError
from pipeline.pairs.local_site import serve
from pipeline.pictures import Pictures, class_name, copies, folder_name

NAMES = [
    f"{part}/{c}/{i}.jpg"
    for part in ("train", "test")
    for c in ("ant", "bee", "cat", "dog", "elk")
    for i in range(2)
]


def linked(tmp_path):
    """Five classes, of which two are links, one domain's test part and a picture too."""
    top = folder(tmp_path / "own", [n for n in NAMES if "/dog/" not in n and "/elk/" not in n])
    away = folder(tmp_path / "away", [n for n in NAMES if "/dog/" in n or "/elk/" in n])
    for part in ("train", "test"):
        for c in ("dog", "elk"):
            (top / part / c).symlink_to(away / part / c)
    (top / "test" / "ant" / "0.jpg").unlink()
    (top / "test" / "ant" / "0.jpg").symlink_to(away / "test" / "dog" / "0.jpg")
    return top


def test_links_are_followed(tmp_path):
    assert read_samples(Pictures(linked(tmp_path)))["file"].to_pylist() == sorted(NAMES)


def test_a_whole_part_or_domain_may_be_a_link(tmp_path):
    real = folder(tmp_path / "real", NAMES)
    top = tmp_path / "top"
    (top / "train").mkdir(parents=True)
    for domain in ("photo", "sketch"):
        (top / "train" / domain).symlink_to(real / "train")
    (top / "test").symlink_to(real / "test")
    rows = pl.from_arrow(read_samples(Pictures(top)))
    assert set(rows.filter(split="train")["domain"]) == {"photo", "sketch"}
    assert len(rows.filter(split="train")) == 20 and len(rows.filter(split="test")) == 10
    assert set(read_labelled(Pictures(top), 9, 0)["domain"]) == {0, 1}


def test_a_link_in_a_circle_ends(tmp_path):
    top = folder(tmp_path / "top", NAMES)
    (top / "test" / "ant" / "all").symlink_to(top)
    (top / "train" / "again").symlink_to(top / "train")
    assert read_samples(Pictures(top))["file"].to_pylist() == sorted(NAMES)


def test_a_link_that_leads_nowhere_is_named(tmp_path):
    top = folder(tmp_path / "top", NAMES)
    (top / "train" / "fox").symlink_to(tmp_path / "gone")
    with pytest.raises(InputError, match="train/fox: a link that leads nowhere"):
        read_samples(Pictures(top))


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_folder_that_may_not_be_read_is_named(tmp_path):
    top = folder(tmp_path / "top", NAMES)
    (top / "train" / "elk").chmod(0)
    with pytest.raises(InputError, match="train/elk: cannot be read"):
        read_samples(Pictures(top))


HIDDEN = [
    "train/.ipynb_checkpoints/0-checkpoint.jpg",
    "train/ant/.ipynb_checkpoints/0-checkpoint.jpg",
    "test/ant/._0.jpg",
    "__MACOSX/train/ant/._0.jpg",
    "test/@eaDir/bee/0.jpg",
    ".cache/test/ant/0.jpg",
]


def test_what_programs_leave_is_no_class(tmp_path):
    top = folder(tmp_path / "top", [*NAMES, *HIDDEN])
    with zipfile.ZipFile(tmp_path / "top.zip", "w") as archive:
        for name in [*NAMES, *HIDDEN]:
            archive.write(top / name, name)
    for path in (top, tmp_path / "top.zip"):
        table = read_samples(Pictures(path))
        assert table["file"].to_pylist() == sorted(NAMES)
        names = pl.from_arrow(table).select("name", "half").unique().sort("name")
        assert names["half"].to_list() == ["base", "base", "base", "new", "new"]
        assert set(read_labelled(Pictures(path), 9, 0)["name"]) == {
            "ant",
            "bee",
            "cat",
            "dog",
            "elk",
        }


def test_the_other_layouts_leave_it_out_too(tmp_path):
    top = folder(
        tmp_path / "caltech-101",
        [f"101_ObjectCategories/{c}/{i}.jpg" for c in ("ant", "bee", "__MACOSX") for i in range(4)],
    )
    found = caltech101(top, "101_ObjectCategories")
    assert {item.name for items in found.values() for item in items} == {"ant", "bee"}
    top = folder(
        tmp_path / "imagenet",
        [f"images/{p}/{c}/1.JPEG" for p in ("train", "val") for c in ("n01", "n02", "@eaDir")],
    )
    (top / "classnames.txt").write_text("n01 tench\nn02 crane\n")
    assert len(imagenet(top, "images")["test"]) == 2


@pytest.mark.parametrize(
    "one, other", [("Turkey", "turkey"), ("hot dog", "hot  dog"), ("caf\u00e9", "cafe\u0301")]
)
def test_two_names_that_are_one_prompt_are_named(tmp_path, one, other):
    names = [f"{part}/{c}/1.jpg" for part in ("train", "test") for c in (one, other, "yak")]
    top = folder(tmp_path / "top", names)
    for read in (read_samples, lambda pictures: read_labelled(pictures, 9, 0)):
        with pytest.raises(InputError) as error:
            read(Pictures(top))
        assert f"'{one}'" in str(error.value) and f"'{other}'" in str(error.value)
    split = folder(tmp_path / "split", [f"photo/{c}/{i}.jpg" for c in (one, other) for i in (1, 2)])
    with pytest.raises(InputError, match="are one prompt"):
        read_benchmark("domains", split, None, Split(seed=1, train=0.5))


ODD_LABELS = [
    *("CD/DVD", "on_off", "a:b", ".hidden", "50%", "x_y z", "CON", "aux.txt", "__MACOSX", "@eaDir"),
    *("_unsure", " a ", "a.", "..", "%2F", "100%25", "caf\u00e9", "cafe\u0301", "a\nb", "😀"),
]


@pytest.mark.parametrize("label", ODD_LABELS)
def test_a_folder_s_name_gives_its_label_back(tmp_path, label):
    (tmp_path / folder_name(label)).mkdir()
    (tmp_path / folder_name(label) / "a.png").touch()
    (name,) = Pictures(tmp_path).names
    assert class_name(name.split("/")[0]) == label
    assert not set('<>:"\\|?*') & set(folder_name(label))  # what Windows refuses


def test_any_label_comes_back_from_its_folder():
    letters = random.Random(1)
    for _ in range(5000):
        label = "".join(letters.choices("%_/ .aA25F:\\\u00e9\u0301\0CON", k=letters.randint(1, 8)))
        assert class_name(folder_name(label)) == label, label


@pytest.mark.parametrize(
    "folder, label",
    [
        ("big_cat", "big cat"),
        ("50%", "50%"),
        ("%2f", "%2f"),
        ("50%25_x", "50%25 x"),
        ("%E9", "%E9"),
    ],
)
def test_other_folders_are_read_as_they_are_called(folder, label):
    assert class_name(folder) == label


def test_a_label_that_is_too_long_for_a_folder_is_named():
    with pytest.raises(InputError, match="too long for a folder"):
        folder_name("\u00e9" * 128)


@pytest.mark.parametrize("name", ["_", "n01440764"])
def test_a_name_that_says_nothing_is_no_class(tmp_path, name):
    """ImageNet's folders read as class folders would make prompts of their numbers."""
    names = [f"{part}/{c}/1.jpg" for part in ("train", "test") for c in (name, "yak")]
    for read in (read_samples, lambda pictures: read_labelled(pictures, 9, 0)):
        with pytest.raises(InputError, match=f"called '{class_name(name)}', which says nothing"):
            read(Pictures(folder(tmp_path, names)))


def test_names_of_a_list_that_are_one_prompt_are_one_class(tmp_path):
    """WebVision's names hold "Cardigan" (a dog) and "cardigan"; a person cannot rename them all."""
    top = folder(tmp_path, ["a/1.jpg", "a/2.jpg"])
    (top / "names.txt").write_text("n02113186 Cardigan, Cardigan Welsh corgi\nn02963159 cardigan\n")
    (top / "list.txt").write_text("a/1.jpg 0\na/2.jpg 1\n")
    assert by_list(Pictures(top), "list.txt", "names.txt") == [
        ("a/1.jpg", "Cardigan", ""),
        ("a/2.jpg", "Cardigan", ""),
    ]


def test_parts_in_capitals_are_parts(tmp_path):
    names = [name.replace("train", "Train").replace("test", "TEST") for name in NAMES]
    pictures = Pictures(folder(tmp_path, names))
    assert pl.from_arrow(read_samples(pictures))["split"].value_counts()["count"].to_list() == [
        10,
        10,
    ]
    assert len(read_labelled(pictures, 9, 0)) == 10  # and never its test part


def test_a_folder_inside_a_class_is_no_class(tmp_path):
    pictures = Pictures(folder(tmp_path, [*NAMES, "train/ant/more/9.jpg"]))
    for read in (read_samples, lambda p: read_labelled(p, 9, 0)):
        with pytest.raises(InputError, match="'train/ant/more/9.jpg' lies deeper than 'train/ant"):
            read(pictures)


def saved(picture, path, **settings):
    path.parent.mkdir(parents=True, exist_ok=True)
    picture.save(path, **settings)


def test_formats_that_are_pictures_and_files_that_are_none(tmp_path):
    grey = Image.new("RGB", (8, 8), (90, 90, 90))
    for part in ("train", "test"):
        for c in ("ant", "bee"):
            for number, ending in enumerate(
                ["jpg", "JPEG", "tif", "TIFF", "gif", "webp", "bmp", "jfif"]
            ):
                saved(grey, tmp_path / part / c / f"{number}.{ending}")
            (tmp_path / part / c / "9.heic").write_bytes(b"x")
    (tmp_path / "README.txt").write_text("what this is")
    pictures = Pictures(tmp_path)
    assert len(read_samples(pictures)) == 2 * 2 * 8
    assert pictures.passed_over == {".heic": 4}
    assert all(open_picture(pictures.read(name)).mode == "RGB" for name in pictures.names)


def encoded(picture, kind, **settings):
    buffer = io.BytesIO()
    picture.save(buffer, kind, **settings)
    return buffer.getvalue()


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_grey_with_16_bits_is_not_white(kind):
    ramp = np.linspace(0, 65535, 64).reshape(8, 8).astype(np.uint16)
    found = np.asarray(open_picture(encoded(Image.fromarray(ramp), kind)))
    assert np.abs(found.astype(int) - (ramp // 256)[..., None]).max() <= 1


@pytest.mark.parametrize("kind", [np.int32, np.float32])
def test_numbers_of_no_known_range_are_no_picture(kind):
    with pytest.raises(ValueError, match="32-bit"):
        open_picture(encoded(Image.fromarray(np.full((4, 4), 1, kind)), "TIFF"))


def test_the_first_frame_of_an_animated_picture():
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")]
    for kind in ("GIF", "WEBP", "PNG"):
        content = encoded(frames[0], kind, save_all=True, append_images=frames[1:], duration=50)
        assert open_picture(content).getpixel((4, 4))[0] > 200


def test_printers_colours_are_colours():
    content = encoded(Image.new("CMYK", (8, 8), (0, 255, 255, 0)), "JPEG")
    assert open_picture(content).getpixel((4, 4)) == (255, 0, 0)


def different(tmp_path, names):
    """Pictures of which no two are alike."""
    for number, name in enumerate(names):
        saved(Image.new("RGB", (8, 8), (number, 7 * number % 256, 3)), tmp_path / name)
    return tmp_path


def test_copies_of_training_pictures_are_counted(tmp_path):
    top = different(tmp_path / "d", [name.replace("jpg", "png") for name in NAMES])
    for test in ("test/ant/1.png", "test/bee/0.png"):
        (top / test).write_bytes((top / "train/dog/1.png").read_bytes())
    with zipfile.ZipFile(tmp_path / "d.zip", "w") as archive:
        for path in sorted(top.rglob("*.png")):
            archive.write(path, path.relative_to(top))
    settings = Benchmark(path="d")
    for path in (top, tmp_path / "d.zip"):
        (remark,) = remarks("d", settings, read_benchmark("folders", path))
        assert "2 of 10 test pictures are copies of training pictures" in remark
        assert "test/ant/1.png of train/dog/1.png" in remark


def test_pictures_of_one_size_are_no_copies(tmp_path):
    (tmp_path / "a.png").write_bytes(b"12345")
    (tmp_path / "b.png").write_bytes(b"12346")
    assert copies(Pictures(tmp_path), ["a.png"], ["b.png"]) == {}
    assert copies(Pictures(tmp_path), ["a.png"], ["a.png"]) == {"a.png": "a.png"}


@pytest.mark.parametrize("classes, refused", [(2, True), (3, True), (4, False)])
def test_a_half_of_one_class_is_refused(tmp_path, classes, refused):
    """Whatever is shown, a head of one name is right: accuracy 100 says nothing."""
    names = [f"{p}/{c}/1.jpg" for p in ("train", "test") for c in "abcdefg"[:classes]]
    samples = pl.from_arrow(read_samples(Pictures(folder(tmp_path, names))))
    few = Benchmark(path="p", shots=Shots(all=[1]))
    check_shots("few", few, samples)
    both = few.model_copy(update={"shots": Shots(base=[1], all=[1])})
    if not refused:
        return check_shots("few", both, samples)
    with pytest.raises(InputError, match=f"has {classes} classes, so that its new half has one"):
        check_shots("few", both, samples)


def test_local_pictures_may_be_links_but_urls_lead_nowhere(tmp_path):
    away = folder(tmp_path / "away", ["1.jpg", "in/2.jpg"])
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "a.jpg").symlink_to(away / "1.jpg")
    (tmp_path / "site" / "in").symlink_to(away / "in")
    with serve(tmp_path / "site") as url:
        for name in ("a.jpg", "in/2.jpg"):
            assert urllib.request.urlopen(url + name).read() == (away / "1.jpg").read_bytes()
        for name in ("../away/1.jpg", "%2e%2e/away/1.jpg", "in/../../away/1.jpg", "/etc/hostname"):
            with pytest.raises(urllib.error.HTTPError):
                urllib.request.urlopen(url + name)


# --- folders of domains ---

HALF = Split(seed=1, train=0.5)
OFFICE = [
    f"{d}/{c}/{i}.jpg"
    for d in ("amazon", "dslr", "webcam")
    for c in ("back_pack", "bike", "mug", "ruler")
    for i in range(5)
]


def parts_of(table, **where):
    return {
        s: set(pl.from_arrow(table).filter(split=s, **where)["file"]) for s in ("train", "test")
    }


def test_a_dataset_in_domains_is_cut_the_same_for_every_entry(tmp_path):
    top = folder(tmp_path, OFFICE)
    whole = read_benchmark("domains", top, None, HALF).samples
    rows = pl.from_arrow(whole)
    assert rows["index"].to_list() == list(range(60)) and rows["split"].is_sorted(descending=True)
    assert rows.select("label", "name", "half").unique().sort("label").rows() == [
        (0, "back pack", "base"),
        (1, "bike", "base"),
        (2, "mug", "new"),
        (3, "ruler", "new"),
    ]
    for domain in ("amazon", "dslr", "webcam"):
        one = read_benchmark("domains", top, [domain], HALF).samples
        assert parts_of(one) == parts_of(whole, domain=domain)
        counts = pl.from_arrow(one).group_by("split", "name").len()
        assert set(counts["len"]) == {2, 3}
    two = parts_of(read_benchmark("domains", top, ["dslr", "webcam"], HALF).samples)
    assert not two["train"] & two["test"] and len(two["train"] | two["test"]) == 40


def test_the_cut_follows_seed_and_share_alone(tmp_path):
    top = folder(tmp_path, OFFICE)
    one, again = (parts_of(read_benchmark("domains", top, None, HALF).samples) for _ in range(2))
    other = parts_of(read_benchmark("domains", top, None, Split(seed=2, train=0.5)).samples)
    assert one == again and one != other
    few = parts_of(read_benchmark("domains", top, None, Split(seed=1, train=0.01)).samples)
    assert len(few["train"]) == 12  # one of each class and domain at least
    folder(tmp_path, ["clipart/mug/0.jpg", "clipart/mug/1.jpg"])  # moves nothing elsewhere
    more = read_benchmark("domains", top, None, HALF).samples
    assert parts_of(more, domain="amazon") == {
        k: {n for n in v if n.startswith("amazon")} for k, v in one.items()
    }
    none = parts_of(read_benchmark("domains", top, ["dslr"], Split(seed=1, train=0)).samples)
    assert not none["train"] and len(none["test"]) == 20


def test_the_cut_is_the_documented_one(tmp_path):
    files = [f"amazon/mug/{i}.jpg" for i in range(10)]
    top = folder(tmp_path, [*files, "amazon/pen/1.jpg", "amazon/pen/2.jpg"])
    found = parts_of(read_benchmark("domains", top, None, Split(seed=7, train=0.3)).samples)
    random.Random("7/amazon/mug").shuffle(files)
    assert {n for n in found["train"] if "mug" in n} == set(files[:3])


def test_office_31_has_a_folder_between_and_zips_are_read(tmp_path):
    names = [name.replace("/", "/images/", 1) for name in OFFICE]
    top = folder(tmp_path / "office31", names)
    with zipfile.ZipFile(tmp_path / "o.zip", "w") as archive:
        for name in names:
            archive.write(top / name, name)
    for path in (top, tmp_path / "o.zip"):
        assert len(read_benchmark("domains", path, ["amazon"], HALF).samples) == 20


@pytest.mark.parametrize(
    "names, domains, words",
    [
        (OFFICE, ["amazn"], "has no domain 'amazn', only amazon, dslr, webcam"),
        (["a/1.jpg"], None, "'a/1.jpg' does not fit <domain>/<class>/<picture>"),
        ([f"top/{name}" for name in OFFICE], None, "does not fit"),
        ([*OFFICE, "dslr/pen/1.jpg"], None, "class 'pen' of domain 'dslr' has one picture"),
        (["a/pen/1.jpg", "a/pen/2.jpg"], None, "only the class 'pen'"),
        (["notes.txt"], None, "holds no pictures"),
    ],
)
def test_other_folders_of_domains_are_explained(tmp_path, names, domains, words):
    with pytest.raises(InputError, match=words):
        read_benchmark("domains", folder(tmp_path, names), domains, HALF)


@pytest.mark.parametrize(
    "entry, words",
    [
        ({"layout": "domains"}, "needs a 'split"),
        ({"split": HALF}, "needs a 'split"),
        ({"layout": "dtd", "domains": ["a"]}, "'domains' is for the layout"),
        (
            {"layout": "domains", "split": Split(seed=1, train=0.0), "shots": Shots(base=[1])},
            "'split.train' is 0",
        ),
    ],
)
def test_an_entry_must_fit_its_layout(entry, words):
    with pytest.raises(ValidationError, match=words):
        Benchmark(path="p", **entry)
