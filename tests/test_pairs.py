"""Download over a real loopback server, index, and noise filter."""

import io
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import time
import zipfile
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

import numpy as np
import polars as pl
import pyarrow as pa
import pytest
from conftest import ROOT, free_port, with_values
from PIL import Image
from tqdm import tqdm

from pipeline import neighbours
from pipeline.artifacts import Keep, read_table, to_vectors, write_table
from pipeline.errors import InputError
from pipeline.neighbours import close_rows
from pipeline.pairs import noise, reading
from pipeline.pairs.download import Effort, download
from pipeline.pairs.features import extract_features
from pipeline.pairs.index import failure_reasons, index_pairs
from pipeline.pairs.local_site import serve
from pipeline.pairs.noise import (
    filter_pairs,
    least_score,
    match_scores,
    mixture_crossing,
    near_duplicates,
)
from pipeline.pairs.params import Download, Filter
from pipeline.pairs.reading import (
    locate_pictures,
    read_features,
    read_image_features,
    read_pictures,
)
from pipeline.pairs.schemas import CAPTIONS, FETCHED, PAIRS, features_schema


def QUIET(items, label, total=None):
    return tqdm(items, total=total, disable=True)


def jpeg(seed, size=40):
    pixels = np.random.default_rng(seed).integers(0, 255, (size, size, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG")
    return buffer.getvalue()


def settings(**changes):
    return Download(
        **(
            dict(
                image_size=64,
                shard_rows=20,
                timeout=20,
                retries=0,
                private_addresses=False,
                min_success=0.5,
            )
            | changes
        )
    )


def captions(path, urls):
    keys = [f"k{i:03d}" for i in range(len(urls))]
    write_table(
        pa.table([keys, [f"picture {i}" for i in range(len(urls))], urls], schema=CAPTIONS),
        path,
        CAPTIONS,
    )
    return path


@pytest.fixture(scope="module")
def fetched(tmp_path_factory):
    """50 links into a zip: 44 good, 2 gone, 1 cut off, 1 page, 1 file: URL, 1 that climbs out of
    the site.
    """
    top = tmp_path_factory.mktemp("fetched")
    with zipfile.ZipFile(top / "site.zip", "w") as site:
        for i in range(44):
            site.writestr(f"{i}.jpg", jpeg(i))
        site.writestr("cut.jpg", jpeg(99)[:300])
        site.writestr("page.jpg", "<!doctype html><p>moved")
    urls = [f"{i}.jpg" for i in range(44)] + [
        "gone1.jpg",
        "gone2.jpg",
        "cut.jpg",
        "page.jpg",
        "file:///etc/hostname",
        "../../etc/hostname",
    ]
    table = captions(top / "captions.parquet", urls)
    for run in ("one", "two"):
        (top / run).mkdir()
        counts = download(table, top / "site.zip", top / run, settings(), Effort(2, 8), QUIET)
    return top, table, counts


def test_an_index_goes_on_at_the_next_shard(fetched, tmp_path, monkeypatch):
    top, table, _ = fetched
    shutil.copytree(top / "one", tmp_path / "shards")
    (tmp_path / "parts").mkdir()
    whole, statuses = index_pairs(table, tmp_path / "shards", QUIET)
    (tmp_path / "shards" / "00001.tar").write_bytes(b"")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    with pytest.raises(InputError, match="00001.tar"):
        index_pairs(table, tmp_path / "shards", QUIET, tmp_path / "parts")
    shutil.copy(top / "one" / "00001.tar", tmp_path / "shards")
    for shard in ("00000.tar", "00002.tar"):  # the one was read, the other may have been
        if (tmp_path / "parts" / shard).with_suffix(".parquet").exists():
            (tmp_path / "shards" / shard).write_bytes(b"")
    assert (tmp_path / "shards" / "00000.tar").stat().st_size == 0
    again = index_pairs(table, tmp_path / "shards", QUIET, tmp_path / "parts")
    assert again[0].equals(whole) and again[1] == statuses


def test_every_link_is_accounted_for(fetched):
    top, table, counts = fetched
    assert counts == {
        "links": 50,
        "shards": 3,
        "success": 44,
        "failed_to_download": 4,
        "failed_to_resize": 2,
    }
    pairs, statuses = index_pairs(table, top / "one", QUIET)
    assert statuses["success"] == 44 and len(pairs) == 50
    error = dict(zip(pairs["key"].to_pylist(), pairs["error"].to_pylist()))
    assert (
        error["k044"].startswith("HTTP Error 404")
        and error["k048"] == "not a http(s) URL"
        and error["k049"].startswith("HTTP Error 404")
    )


def test_two_downloads_give_the_same_bytes(fetched):
    """img2dataset's own shards differ in order and dates from run to run."""
    top = fetched[0]
    names = sorted(p.name for p in (top / "one").iterdir())
    assert names == ["00000.tar", "00001.tar", "00002.tar", "fetched.parquet"]
    for name in names:
        assert (top / "one" / name).read_bytes() == (top / "two" / name).read_bytes()


def test_pictures_arrive_unchanged_and_in_key_order(fetched):
    shard = list(read_pictures(fetched[0] / "one" / "00001.tar"))
    assert [k for k, _ in shard] == [f"k{i:03d}" for i in range(20, 40)]
    assert shard[3][1] == jpeg(23)


def holding(numbers):
    return [f"k{i:03d}" for i in numbers], [f"{i // 20:05d}.tar" for i in numbers]


def test_pictures_are_found_by_the_headers_alone(fetched):
    keys, names = holding(range(44))
    rows = np.array([3, 39, 20, 43])
    found = locate_pictures(fetched[0] / "one", keys, names, rows, QUIET)
    assert found.read(rows) == [jpeg(i) for i in rows]
    assert np.flatnonzero(found.offset >= 0).tolist() == sorted(rows) and found.size[20] == len(
        jpeg(20)
    )


def test_pictures_that_were_found_are_not_looked_for_again(fetched, tmp_path, monkeypatch):
    keys, names = holding(range(44))
    rows, keep = np.array([3, 39, 20, 43]), Keep(tmp_path)
    found = locate_pictures(fetched[0] / "one", keys, names, rows, QUIET, keep)
    (tmp_path / "places-2.npz").unlink()  # the last of three files
    looked_into = []
    opened = reading.tar_files
    monkeypatch.setattr(reading, "tar_files", lambda p: looked_into.append(p.name) or opened(p))
    again = locate_pictures(fetched[0] / "one", keys, names, rows, QUIET, keep)
    assert looked_into == ["00002.tar"] and again.read(rows) == found.read(rows)


def test_pictures_that_cannot_be_found(fetched, tmp_path):
    keys, names = holding(range(60))
    with pytest.raises(InputError, match="00002.tar: holds no picture 'k050.jpg'"):
        locate_pictures(fetched[0] / "one", keys, names, np.array([0, 50]), QUIET)
    with pytest.raises(InputError, match="00000.tar: missing"):
        locate_pictures(tmp_path, keys, names, np.array([0]), QUIET)
    with pytest.raises(InputError, match="names no file for picture 'k001'"):
        locate_pictures(tmp_path, keys, [None] * 60, np.array([1]), QUIET)
    whole = (fetched[0] / "one" / "00000.tar").read_bytes()
    (tmp_path / "00000.tar").write_bytes(whole)
    found = locate_pictures(tmp_path, keys, names, np.arange(20), QUIET)
    end = int(found.offset[19] + found.size[19])
    for cut in (0, 100, 700, *range(1000, end, 1500), end - 1):
        (tmp_path / "00000.tar").write_bytes(whole[:cut])
        with pytest.raises(
            InputError, match="00000.tar: (not a complete tar file|holds no picture)"
        ):
            locate_pictures(tmp_path, keys, names, np.arange(20), QUIET)
        # cut after it was looked into
        with pytest.raises(InputError, match="00000.tar: not a complete tar file"):
            found.read(np.arange(20))


def test_image_features_come_in_the_order_of_the_keys(tmp_path):
    values = np.random.default_rng(0).normal(size=(9, 4)).astype(np.float16)
    keys, schema = [f"k{i}" for i in range(9)], features_schema(4)
    for shard, rows in enumerate((range(4), range(4, 9))):
        vectors = to_vectors(values[list(rows)])
        write_table(
            pa.table([[keys[i] for i in rows], vectors, vectors], schema=schema),
            tmp_path / f"{shard:05d}.parquet",
            schema,
        )
    found = read_image_features(tmp_path, pl.Series(["k7", "k0", "k4"]))
    assert found.dtype == np.float16 and np.array_equal(found, values[[7, 0, 4]])
    with pytest.raises(InputError, match="holds no features of pair 'k9'"):
        read_image_features(tmp_path, pl.Series(["k7", "k9"]))
    read_image_features(tmp_path, pl.Series(["k7", "k0"]), Keep(tmp_path))
    for shard in tmp_path.glob("*.parquet"):
        shard.unlink()
    kept = read_image_features(tmp_path, pl.Series(["k7", "k0"]), Keep(tmp_path))
    assert np.array_equal(kept, values[[7, 0]])


@pytest.mark.parametrize("wrong", [np.nan, np.inf, 0.0])
def test_features_that_are_no_direction_are_named(tmp_path, wrong):
    """No score compares with NaN: such pairs would be kept, or dropped, in silence."""
    values, schema = np.eye(4), features_schema(4)
    values[2] = wrong
    keys = [f"k{i}" for i in range(4)]
    for image, text in ((values, np.eye(4)), (np.eye(4), values)):
        table = pa.table([keys, to_vectors(image), to_vectors(text)], schema=schema)
        write_table(table, tmp_path / "00000.parquet", schema)
        with pytest.raises(InputError, match="the vector of 'k2' is zero or not finite"):
            read_features(tmp_path)
    write_table(
        pa.table([keys, to_vectors(values), to_vectors(np.eye(4))], schema=schema),
        tmp_path / "00000.parquet",
        schema,
    )
    read_image_features(tmp_path, pl.Series(["k3", "k1"]))
    with pytest.raises(InputError, match="the vector of 'k2' is zero or not finite"):
        read_image_features(tmp_path, pl.Series(["k3", "k2"]))


@pytest.mark.whole
def test_a_server_that_is_down(tmp_path):
    port = free_port()
    table = captions(tmp_path / "c.parquet", [f"http://127.0.0.1:{port}/{i}.jpg" for i in range(5)])
    (tmp_path / "work").mkdir()
    with pytest.raises(
        InputError, match=r"only 0.0% of 5 links.*Connection refused.*Is the server up\?"
    ):
        download(
            table, None, tmp_path / "work", settings(private_addresses=True), Effort(1, 4), QUIET
        )


def test_another_least_success_is_a_check_of_what_was_fetched(fetched, tmp_path):
    """No server is asked again: the download does not depend on it, the index looks."""
    top, table, _ = fetched
    for share, code in ((1.0, 1), (0.1, 0)):
        with_values(tmp_path / "params.yaml", {"download.min_success": share})
        done = subprocess.run(
            [
                *(sys.executable, "stages/index.py", "--params", tmp_path / "params.yaml"),
                *("--captions", table, "--shards", top / "one"),
                *("--out", tmp_path / "pairs.parquet"),
            ],
            check=False,
            cwd=ROOT,
            capture_output=True,
            text=True,
        )
        assert done.returncode == code, done.stderr
        assert (tmp_path / "pairs.parquet").exists() != code
        assert ("'download.min_success' wants at least 100%" in done.stderr) == code


def test_nothing_to_ask_for(tmp_path):
    table = captions(tmp_path / "c.parquet", ["file:///etc/hostname", "relative.jpg"])
    (tmp_path / "work").mkdir()
    with pytest.raises(InputError, match="none of its 2 URLs.*2× not a http.s. URL"):
        download(table, None, tmp_path / "work", settings(), Effort(1, 4), QUIET)


@pytest.mark.parametrize(
    "path", ["../secret.txt", "%2e%2e/secret.txt", "a/../../secret.txt", "/etc/hostname"]
)
def test_the_local_site_does_not_serve_its_neighbours(tmp_path, path):
    import http.client

    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "ok.jpg").write_bytes(b"ok")
    (tmp_path / "secret.txt").write_text("secret")
    with serve(tmp_path / "site") as base:
        host = base.removeprefix("http://").rstrip("/")
        for name, status in ((path, 404), ("ok.jpg", 200)):
            connection = http.client.HTTPConnection(host)
            connection.request("GET", "/" + name)
            assert connection.getresponse().status == status


class Site(ThreadingHTTPServer):
    """Pictures over loopback; remembers what it was asked for."""

    def __init__(self, delay=0.0, headers=(), redirect=None):
        asked = self.asked = []

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                asked.append(self.path)
                time.sleep(delay)
                self.send_response(302 if redirect else 200)
                content = b"" if redirect else jpeg(int(self.path[1:-4]))
                for name, value in (
                    *headers,
                    *([("Location", redirect + self.path)] if redirect else []),
                    ("Content-Length", str(len(content))),
                ):
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(content)

            def log_message(self, *_):
                pass

        super().__init__(("127.0.0.1", 0), Handler)
        self.base = f"http://127.0.0.1:{self.server_address[1]}"
        Thread(target=self.serve_forever, daemon=True).start()

    def links(self, count):
        return [f"{self.base}/{i}.jpg" for i in range(count)]


def reasons(tmp_path, urls, **changes):
    (tmp_path / "work").mkdir()
    download(
        captions(tmp_path / "c.parquet", urls),
        None,
        tmp_path / "work",
        settings(min_success=0.0, **changes),
        Effort(1, 4),
        QUIET,
    )
    return read_table(tmp_path / "work" / "fetched.parquet", FETCHED)["error"].to_pylist()


@pytest.mark.whole
def test_private_addresses_are_not_asked(tmp_path):
    """Whatever the name that leads there."""
    site = Site()
    port = site.server_address[1]
    urls = [
        f"http://{host}:{port}/1.jpg"
        for host in (
            "127.0.0.1",
            "localhost",
            "[::1]",
            "2130706433",
            "0.0.0.0",
            "169.254.169.254",
            "10.0.0.1",
        )
    ]
    assert (
        all("private address refused" in error for error in reasons(tmp_path, urls))
        and not site.asked
    )


@pytest.mark.whole
def test_private_addresses_on_request(tmp_path):
    site = Site()
    assert (
        reasons(tmp_path, site.links(3), private_addresses=True) == [None] * 3
        and len(site.asked) == 3
    )


@pytest.mark.whole
def test_a_redirect_leads_to_no_private_address(tmp_path):
    """The one server stands for a public one, which sends us to another on the same machine."""
    inside = Site()
    outside = Site(redirect=inside.base)
    script = (
        "import runpy, sys; sys.argv[0] = 'fetch'; runpy.run_module('pipeline.pairs.fetch', "
        "run_name='__mp_main__'); import urllib.request as u; "
        "print(u.urlopen(sys.argv[1]).status)"
    )
    for allowed, words in ((outside, "private address refused"), (None, "200")):
        environment = os.environ | {
            "FETCH_ALLOWED": allowed.base.removeprefix("http://") if allowed else "*"
        }
        done = subprocess.run(
            [sys.executable, "-c", script, outside.links(1)[0]],
            cwd=ROOT,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
        assert words in done.stdout + done.stderr
        assert len(inside.asked) == (0 if allowed else 1)
    assert len(outside.asked) == 2


@pytest.mark.whole
@pytest.mark.parametrize("header", ["noai", "noindex", "img2dataset: noai"])
def test_who_opts_out_is_left_alone(tmp_path, header):
    site = Site(headers=[("X-Robots-Tag", header)])
    found = reasons(tmp_path, site.links(2), private_addresses=True)
    assert found == ["Use of image disallowed by X-Robots-Tag directive"] * 2


@pytest.mark.whole
@pytest.mark.parametrize(
    "signal_", [pytest.param(signal.SIGTERM, marks=pytest.mark.slow), signal.SIGKILL]
)
def test_interrupted_and_resumed(tmp_path, signal_):
    """In the middle: nothing goes on downloading. The second run fetches only what was not
    finished, and gives the same artifact.
    """
    site = Site(delay=0.05)
    table = captions(tmp_path / "c.parquet", site.links(120))
    text = (
        (ROOT / "params.yaml")
        .read_text()
        .replace("shard_rows: 1000", "shard_rows: 20")
        .replace("pictures: pictures.zip", "pictures: null")
        .replace("private_addresses: false", "private_addresses: true")
    )
    (tmp_path / "params.yaml").write_text(text)
    command = [
        sys.executable,
        "stages/download.py",
        "--params",
        tmp_path / "params.yaml",
        "--captions",
        table,
        "--out",
        tmp_path / "shards",
    ]
    environment = os.environ | {"DOWNLOAD_PROCESSES": "1", "DOWNLOAD_THREADS": "2"}
    child = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.DEVNULL)
    work = None
    deadline = time.time() + 120
    while time.time() < deadline and not (work and len(list(work.glob("raw/*_stats.json"))) >= 2):
        time.sleep(0.05)
        work = next(iter((tmp_path / ".partial").glob("shards-*")), None)
    child.send_signal(signal_)
    assert child.wait() == (130 if signal_ == signal.SIGTERM else -9)
    time.sleep(3)  # requests under way when the downloader died still reach the server's log
    finished = [int(p.name.split("_")[0]) for p in work.glob("raw/*_stats.json")]
    before = len(site.asked)
    time.sleep(1)
    assert len(site.asked) == before
    assert not (tmp_path / "shards").exists() and 2 <= len(finished) < 6
    done = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )
    site.shutdown()
    assert done.returncode == 0, done.stderr
    again = {int(path[1:-4]) // 20 for path in site.asked[before:]}
    assert again == set(range(6)) - set(finished)
    assert len(read_table(tmp_path / "shards" / "fetched.parquet", FETCHED)) == 120
    assert (
        sum(1 for s in sorted((tmp_path / "shards").glob("*.tar")) for _ in read_pictures(s)) == 120
    )


def encoded(picture, kind, **options):
    buffer = io.BytesIO()
    picture.save(buffer, kind, **options)
    return buffer.getvalue()


def odd_pictures():
    """name → (file, what becomes of it: status, size in the shard, mean colour within 3 of it)."""
    colour = np.full((100, 150, 3), (200, 100, 50), np.uint8)
    plain = Image.fromarray(colour)
    palette = Image.new("P", (100, 100), 1)
    palette.putpalette([255, 0, 0, 0, 0, 255])
    grey16 = Image.fromarray(np.full((100, 100), 100 * 257, np.uint16))
    broad = encoded(
        Image.fromarray(np.random.default_rng(0).integers(0, 255, (100, 100, 3), dtype=np.uint8)),
        "JPEG",
    )
    red, blue = Image.new("RGB", (100, 100), "red"), Image.new("RGB", (100, 100), "blue")
    return {
        "one_pixel": (
            encoded(Image.new("RGB", (1, 1), "red"), "PNG"),
            "success",
            (1, 1),
            (254, 0, 0),
        ),
        "huge": (encoded(Image.new("L", (20_000, 20_000)), "PNG"), "failed_to_resize", None, None),
        "animated": (
            encoded(red, "GIF", save_all=True, append_images=[blue]),
            "success",
            (64, 64),
            (254, 0, 0),
        ),
        "cmyk": (encoded(plain.convert("CMYK"), "JPEG"), "success", (96, 64), (200, 100, 50)),
        "sixteen_bits": (encoded(grey16, "PNG"), "success", (64, 64), (100, 100, 100)),
        "see_through": (
            encoded(palette, "PNG", transparency=1),
            "success",
            (64, 64),
            (255, 255, 255),
        ),
        "cut_small": (jpeg(1)[:-20], "failed_to_resize", None, None),
        "cut_large": (broad[: len(broad) * 9 // 10], "failed_to_resize", None, None),
        "nothing": (b"", "failed_to_resize", None, None),
    }


@pytest.mark.whole
def test_odd_pictures_on_the_real_road(tmp_path):
    """Each is a picture of what it shows, or a counted failure; the huge one is refused by its
    header, and never decoded.
    """
    found = odd_pictures()
    (tmp_path / "site").mkdir()
    for name, (content, *_) in found.items():
        (tmp_path / "site" / f"{name}.png").write_bytes(content)
    table = captions(tmp_path / "c.parquet", [f"{name}.png" for name in found])
    (tmp_path / "work").mkdir()
    download(
        table, tmp_path / "site", tmp_path / "work", settings(min_success=0.1), Effort(1, 4), QUIET
    )
    pairs, _ = index_pairs(table, tmp_path / "work", QUIET)
    rows = pl.from_arrow(pairs)
    pictures = dict(read_pictures(tmp_path / "work" / "00000.tar"))
    for (name, (_, status, size, colour)), row in zip(found.items(), rows.iter_rows(named=True)):
        assert (row["status"], row["width"] and (row["width"], row["height"])) == (status, size), (
            name
        )
        if colour:
            mean = np.asarray(Image.open(io.BytesIO(pictures[row["key"]])).convert("RGB")).mean(
                (0, 1)
            )
            assert abs(mean - colour).max() <= 3, (name, mean)
    assert failure_reasons(rows)["more than 50 million pixels"] == 1
    write_table(pairs, tmp_path / "pairs.parquet", PAIRS)
    (tmp_path / "features").mkdir()
    assert (
        extract_features(
            tmp_path / "pairs.parquet",
            tmp_path / "work",
            tmp_path / "features",
            ROOT / "demo" / "backbone",
            QUIET,
        )[0]
        == rows["status"].eq("success").sum()
    )


def test_a_shard_cut_anywhere_is_noticed(fetched, tmp_path):
    """Between two files too, where tarfile sees nothing. A cut among the zeros at the end loses
    nothing.
    """
    whole = (fetched[0] / "one" / "00002.tar").read_bytes()
    everything = list(read_pictures(fetched[0] / "one" / "00002.tar"))
    content = len(whole.rstrip(b"\0"))
    end = -(-content // 512) * 512
    cuts = {
        0,
        1,
        511,
        512,
        513,
        1024,
        content - 1,
        end - 512,
        end,
        end + 511,
        end + 512,
        end + 1024,
        len(whole) - 1,
    }
    cuts |= set(range(0, end, 512 * 7)) | {
        int(c) for c in np.random.default_rng(0).integers(0, len(whole), 100)
    }
    for cut in sorted(cuts):
        (tmp_path / "00000.tar").write_bytes(whole[:cut])
        try:
            assert list(read_pictures(tmp_path / "00000.tar")) == everything and cut >= end + 512, (
                cut
            )
        except InputError as error:
            assert cut < end + 512 and "00000.tar: not a complete tar file" in str(error), cut


def test_damage_within_a_shard_is_noticed(fetched, tmp_path):
    """tarfile takes a damaged header, except the first, for the end."""
    whole = bytearray((fetched[0] / "one" / "00001.tar").read_bytes())
    second = whole.index(b"k020.txt")
    whole[second : second + 512] = b"x" * 512
    (tmp_path / "00000.tar").write_bytes(whole)
    with pytest.raises(InputError, match="cut off or damaged"):
        list(read_pictures(tmp_path / "00000.tar"))


@pytest.mark.whole
def test_a_folder_with_tars_as_a_site(tmp_path):
    """Their members are served, and nothing beside the folder, whatever a member or a link is
    called.
    """
    import http.client

    (tmp_path / "site" / "sub.tar").mkdir(parents=True)
    (tmp_path / "site" / "sub.tar" / "plain.jpg").write_bytes(b"plain")
    (tmp_path / "secret.txt").write_text("secret")
    for top in (tmp_path, tmp_path / "site"):
        with tarfile.open(top / "00000.tar", "w") as tar:
            for name in ("1.jpg", "../secret.txt", "a b/é?.png"):
                entry = tarfile.TarInfo(name)
                entry.size = 3
                tar.addfile(entry, io.BytesIO(b"abc"))
            link = tarfile.TarInfo("link.jpg")
            link.type, link.linkname = tarfile.SYMTYPE, "/etc/hostname"
            tar.addfile(link)
    wanted = {
        "00000.tar/1.jpg": b"abc",
        "00000.tar/a%20b/%C3%A9%3F.png": b"abc",
        "00000.tar/../secret.txt": b"abc",
        "sub.tar/plain.jpg": b"plain",
    } | dict.fromkeys(
        [
            "00000.tar/2.jpg",
            "00000.tar/link.jpg",
            "../00000.tar/1.jpg",
            "%2e%2e/00000.tar/1.jpg",
            "1.tar/1.jpg",
            "../secret.txt",
        ]
    )
    with serve(tmp_path / "site") as base:
        for path, content in wanted.items():
            connection = http.client.HTTPConnection(base.removeprefix("http://").rstrip("/"))
            connection.request("GET", "/" + path)
            answer = connection.getresponse()
            assert (answer.status, answer.read()) == ((200, content) if content else (404, b"")), (
                path
            )


def test_failed_links_are_asked_again(fetched, tmp_path):
    """And no others: the shards stay, a new one follows them, and every link is accounted for as
    before.
    """
    top, table, _ = fetched
    shutil.copytree(top / "one", tmp_path / "shards")
    (tmp_path / "site").mkdir()
    for name in ("0", "gone1", "cut", "page"):
        (tmp_path / "site" / f"{name}.jpg").write_bytes(jpeg(1000))
    text = (
        (ROOT / "params.yaml")
        .read_text()
        .replace("path: data/world/demo", f"path: {tmp_path}")
        .replace("pictures: pictures.zip", "pictures: site")
    )
    (tmp_path / "params.yaml").write_text(text)
    command = [
        sys.executable,
        "stages/download.py",
        "--params",
        tmp_path / "params.yaml",
        "--captions",
        table,
        "--out",
        tmp_path / "shards",
        "--retry-failed",
    ]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert "45 of 50 pictures fetched in 4 shards; 3 links dead, 2 not pictures" in done.stdout, (
        done.stderr
    )
    after = {p.name: p.read_bytes() for p in (tmp_path / "shards").iterdir()}
    assert after | {p.name: p.read_bytes() for p in (top / "one").glob("*.tar")} == after
    assert sorted(after) == ["00000.tar", "00001.tar", "00002.tar", "00003.tar", "fetched.parquet"]
    assert list(read_pictures(tmp_path / "shards" / "00003.tar")) == [("k044", jpeg(1000))]
    _, statuses = index_pairs(table, tmp_path / "shards", QUIET)
    assert statuses == {"failed_to_download": 3, "failed_to_resize": 2, "success": 45}


def test_asked_again_only_for_the_same_captions_and_if_any_failed(fetched, tmp_path):
    top, table, _ = fetched
    with pytest.raises(InputError, match="was fetched for other captions"):
        download(
            captions(tmp_path / "d.parquet", ["1.jpg"]),
            top / "site.zip",
            tmp_path,
            settings(),
            Effort(1, 4),
            QUIET,
            earlier=top / "one",
        )
    whole = read_table(top / "one" / "fetched.parquet", FETCHED).set_column(
        1, "status", pa.array(["success"] * 50)
    )
    write_table(whole, tmp_path / "fetched.parquet", FETCHED)
    with pytest.raises(InputError, match="nothing to ask again"):
        download(
            table, top / "site.zip", tmp_path, settings(), Effort(1, 4), QUIET, earlier=tmp_path
        )


def test_reasons_are_counted_without_their_wrapping():
    errors = [
        "<urlopen error [Errno 111] Connection refused>",
        "<urlopen error timed out>",
        "[Errno 111] Connection refused",
        "x",
        "y",
        None,
    ]
    pairs = pl.DataFrame({"status": ["failed_to_download"] * 5 + ["success"], "error": errors})
    assert failure_reasons(pairs, most=2) == {
        "Connection refused": 2,
        "timed out": 1,
        "other reasons": 2,
    }


def unit(x):
    return (x / np.linalg.norm(x, axis=-1, keepdims=True)).astype(np.float32)


def test_csls_by_brute_force():
    rng = np.random.default_rng(0)
    image, text = unit(rng.normal(size=(30, 6))), unit(rng.normal(size=(30, 6)))
    similarity = image @ text.T
    nearest = lambda s: np.sort(s, axis=1)[:, -4:].mean(axis=1)
    expected = 2 * np.diag(similarity) - nearest(similarity) - nearest(similarity.T)
    assert np.allclose(match_scores(image, text, "csls", 4), expected, atol=1e-5)
    assert np.allclose(match_scores(image, text, "cosine", 4), np.diag(similarity), atol=1e-6)


FILTER = dict(
    min_words=2,
    min_characters=6,
    max_characters=20,
    min_side=32,
    max_aspect=3,
    duplicate_similarity=0.999,
    exact_up_to=10**6,
    recall=0.95,
    score="csls",
    neighbours=10,
)


def of(similarity, **others):
    return Filter(
        **FILTER
        | {"duplicate_similarity": similarity, "select": "threshold", "threshold": 0.0}
        | others
    )


def test_features_come_in_key_order_whatever_the_shards_order(tmp_path):
    rng, keys = np.random.default_rng(0), [f"k{n:02d}" for n in range(30)]
    image, text = (unit(rng.normal(size=(30, 8))).astype(np.float16) for _ in range(2))
    order = rng.permutation(30)
    for shard, rows in enumerate(np.split(order, [7, 20])):
        columns = [[keys[row] for row in rows], to_vectors(image[rows]), to_vectors(text[rows])]
        table = pa.table(columns, names=["key", "image", "text"])
        write_table(table, tmp_path / f"{shard:05d}.parquet", features_schema(8))
    found = read_features(tmp_path)
    assert found.keys.to_list() == keys and found.image.dtype == np.float16
    assert np.array_equal(found.image, image) and np.array_equal(found.text, text)
    both = (part.astype(np.float32) for part in (image, text))
    assert np.allclose(found.own, np.einsum("nd,nd->n", *both), atol=1e-6)
    assert read_features(tmp_path, texts=False).text is None
    shutil.copy(tmp_path / "00002.parquet", tmp_path / "00003.parquet")
    with pytest.raises(InputError, match="holds 'k.*' more than once"):
        read_features(tmp_path)


def test_the_first_of_near_duplicates_stays():
    x = unit(np.array([[1, 0, 0], [0, 1, 0], [1, 0.001, 0], [1, 0, 0.002], [0, 0, 1]]))
    assert near_duplicates(x, of(0.999)).tolist() == [False, False, True, True, False]
    assert not near_duplicates(x, of(1.01)).any()


def test_copies_are_found_in_cells_too():
    rng = np.random.default_rng(3)
    x = rng.normal(size=(1500, 16))
    x[1000:] = x[rng.integers(0, 1000, 500)] + 0.15 * rng.normal(size=(500, 16))
    x = (x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float32)[rng.permutation(1500)]
    exact, cells = (
        near_duplicates(x, of(0.95)),
        near_duplicates(x, of(0.95, exact_up_to=100, recall=0.99)),
    )
    assert (
        exact.sum() > 480
        and (exact & cells).sum() >= 0.99 * exact.sum()
        and not (cells & ~exact).any()
    )


def test_cells_find_nearly_all_copies_and_nothing_else():
    rng = np.random.default_rng(5)
    x = rng.normal(size=(3000, 160))
    x[2400:] = x[:600] + 0.6 * rng.normal(size=(600, 160))
    x = unit(x).astype(np.float16)[rng.permutation(3000)]
    true = np.argwhere(x.astype(np.float32) @ x.astype(np.float32).T > 0.85)
    for recall, cells in ((0.5, (1, 1)), (0.98, (2, 30))):
        index = close_rows(x, 0.85, recall, seed=0)
        limits, similarity, found = index.range_search(x.astype(np.float32), 0.85)
        pairs = np.stack([np.repeat(np.arange(3000), np.diff(limits)), found], axis=1)
        assert {*map(tuple, pairs.tolist())} <= {*map(tuple, true.tolist())}
        assert np.allclose(similarity, (x[pairs[:, 0]] * x[pairs[:, 1]]).sum(1), atol=0.01)
        assert (pairs[:, 0] == pairs[:, 1]).sum() == 3000  # no row is in a cell that is not found
        share = (len(pairs) - 3000) / (len(true) - 3000)
        assert share > recall - 0.04 and cells[0] <= index.index.nprobe <= cells[1]


def test_the_recall_is_that_of_rows_that_no_cell_was_learned_from(monkeypatch):
    """Of two samples with one seed, numpy may give the smaller one's rows to the larger, too: their
    copies are found in the nearest cell, others' are not.
    """
    monkeypatch.setattr(neighbours, "TRAINED", 2)
    monkeypatch.setattr(neighbours, "LOOKED_AT", 1)
    rng = np.random.default_rng(1)
    x = unit(rng.normal(size=(12_000, 24)))
    x[6000:] = unit(x[:6000] + 0.05 * rng.normal(size=(6000, 24)))
    x = x[rng.permutation(12_000)].astype(np.float32)
    index = close_rows(x, 0.9, 0.85, seed=0)
    limits, _, _ = index.range_search(x, 0.9)
    true = sum((x @ part.T > 0.9).sum() for part in np.split(x, 6))
    assert (limits[-1] - 12_000) / (true - 12_000) > 0.85 - 0.05


@pytest.mark.parametrize("part", ["paired-7", "copies-7"])
def test_a_search_for_copies_goes_on_at_its_next_part(tmp_path, monkeypatch, part):
    rng = np.random.default_rng(3)
    x = unit(rng.normal(size=(6000, 16)))
    x[3000:] = x[rng.integers(0, 3000, 3000)]
    settings_, keep = of(0.95, exact_up_to=100), Keep(tmp_path)
    searched, search = [], noise.CloseRows.range_search
    measure = neighbours._enough

    def stopped(name, make):
        if name == part:
            raise KeyboardInterrupt
        return keep(name, make)

    def measured(*how):
        found, _ = measure(*how), searched.clear()  # how many cells are enough is another question
        return found

    monkeypatch.setattr(
        noise.CloseRows, "range_search", lambda *a: searched.append(len(a[1])) or search(*a)
    )
    monkeypatch.setattr(neighbours, "_enough", measured)
    alone = near_duplicates(x, settings_)
    whole = sum(searched)
    with pytest.raises(KeyboardInterrupt):
        near_duplicates(x, settings_, stopped)
    assert alone.sum() >= 3000 and 0 < sum(searched) < whole
    # what is looked in, and into how much of it
    for name in ("_trained", "_with_copies", "_counted", "_enough"):
        monkeypatch.setattr(neighbours, name, pytest.fail)
    assert np.array_equal(near_duplicates(x, settings_, keep), alone)
    assert sum(searched) == whole
    near_duplicates(x, settings_, keep)
    assert sum(searched) == whole


def test_rows_without_copies_are_searched_once_and_copies_hardly(monkeypatch):
    """Cell by cell, which is quick, and only what is near another once more in its own order."""
    rng = np.random.default_rng(3)
    x = unit(rng.normal(size=(6000, 16)))
    x[rng.choice(6000, 600, replace=False)] = x[0]  # one picture, six hundred times
    asked, search = [], noise.CloseRows.range_search
    monkeypatch.setattr(
        noise.CloseRows,
        "range_search",
        lambda self, *a: asked.append((self, a[0])) or search(self, *a),
    )
    monkeypatch.setattr(neighbours, "_with_copies", lambda *_: np.zeros((0, 16), np.float32))
    monkeypatch.setattr(neighbours, "_enough", lambda *_: (np.array(2),))
    repeated = near_duplicates(x, of(0.95, exact_up_to=100))
    rows = np.concatenate([queries for _, queries in asked])
    often = (rows == x[0]).all(axis=1)
    assert repeated.sum() >= 599 and often.sum() <= 2 * noise.COPY_ROWS
    assert 5399 <= len(rows) - often.sum() <= 5500
    index = asked[0][0]
    cell = {row.tobytes(): number for row, number in zip(x, index.cell, strict=True)}
    came = np.array([cell[row.tobytes()] for row in rows[:5399]])
    assert (np.diff(came) >= 0).all()


def two_groups(wrong=0.2, n=4000):
    rng = np.random.default_rng(3)
    return np.concatenate(
        [rng.normal(0.0, 0.1, int(n * wrong)), rng.normal(1.0, 0.2, n - int(n * wrong))]
    ).astype(np.float32)


@pytest.mark.parametrize("mismatch", [0.1, 0.5, 0.9])
def test_the_mixture_s_crossing_is_the_densities_own(mismatch):
    """Of N(0, 0.1²) with a fifth of the pairs and N(1, 0.2²) with the rest, found without
    knowing either.
    """
    density = lambda x, mean, sd: np.exp(-(((x - mean) / sd) ** 2) / 2) / sd
    x = np.linspace(0, 1, 100001)
    wrong, right = 0.2 * density(x, 0.0, 0.1), 0.8 * density(x, 1.0, 0.2)
    expected = x[np.argmin(abs(wrong / (wrong + right) - mismatch))]
    assert mixture_crossing(two_groups(), mismatch) == pytest.approx(expected, abs=0.02)


@pytest.mark.parametrize("seed", range(5))
def test_scores_of_one_kind_have_no_crossing(seed):
    with pytest.raises(
        InputError, match="do not fall into two groups.*choose another 'filter.select'"
    ):
        mixture_crossing(np.random.default_rng(seed).normal(size=3000).astype(np.float32), 0.5)


def test_three_ways_to_select():
    scores = two_groups()
    chosen = {
        select: least_score(scores, Filter(**FILTER | {"select": select, "threshold": value}))
        for select, value in (("threshold", 0.3), ("quantile", 0.2), ("mixture", 0.5))
    }
    assert chosen["threshold"] == 0.3
    assert (scores < chosen["quantile"]).mean() == pytest.approx(0.2, abs=0.001)
    assert (scores < chosen["mixture"]).mean() == pytest.approx(0.2, abs=0.01)
    with pytest.raises(
        ValueError,
        match="with 'select: mixture', 'threshold' is a share between 0 and 1, but it is -0.76",
    ):
        Filter(**FILTER | {"select": "mixture", "threshold": -0.76})


def test_captions_are_judged_by_their_length(tmp_path):
    """100 kB of text go as far as the filter, and no further."""
    texts = ["a cat", "cat on a mat", "cat " * 25_000, "catonamat", "a cat sits on a mat!"]
    count = len(texts)
    keys = [f"k{i}" for i in range(count)]
    pairs = pa.table(
        [
            keys,
            texts,
            ["success"] * count,
            [None] * count,
            ["00000.tar"] * count,
            [64] * count,
            [64] * count,
            [1] * count,
            keys,
        ],
        schema=PAIRS,
    )
    write_table(pairs, tmp_path / "pairs.parquet", PAIRS)
    (tmp_path / "features").mkdir()
    write_table(
        pa.table(
            [pa.array(keys), to_vectors(np.eye(count)), to_vectors(np.eye(count))],
            schema=features_schema(count),
        ),
        tmp_path / "features" / "00000.parquet",
        features_schema(count),
    )
    kept, counts = filter_pairs(
        tmp_path / "pairs.parquet",
        tmp_path / "features",
        Filter(**FILTER | {"score": "cosine", "select": "threshold", "threshold": 0.5}),
    )
    assert (
        kept["reason"].to_pylist() == ["short caption", "", "long caption", "short caption", ""]
        and counts["long_caption"] == 1
    )


@pytest.mark.parametrize("score", ["cosine", "csls"])
def test_a_filter_that_was_stopped_reads_and_scores_nothing_again(tmp_path, monkeypatch, score):
    rng, count = np.random.default_rng(4), 300
    keys = [f"k{i:03d}" for i in rng.permutation(count)]
    image, text = (unit(rng.normal(size=(count, 16))) for _ in range(2))
    image[250:] = image[:50]
    table = pl.DataFrame({"key": keys, "caption": [f"a cat of {key}" for key in keys]})
    table = table.with_columns(status=pl.lit("success"), error=None, shard=pl.lit("00000.tar"))
    table = table.with_columns(width=64, height=64, bytes=1, sha256=pl.col("key"))
    write_table(table.select(PAIRS.names).to_arrow().cast(PAIRS), tmp_path / "pairs.parquet", PAIRS)
    (tmp_path / "features").mkdir()
    columns = [pa.array(keys), to_vectors(image), to_vectors(text)]
    written = pa.table(columns, schema=features_schema(16))
    write_table(written, tmp_path / "features" / "00000.parquet", features_schema(16))
    limits = {"exact_up_to": 100, "select": "quantile", "threshold": 0.1, "score": score}
    asked = tmp_path / "pairs.parquet", tmp_path / "features", of(0.95, **limits)
    alone, kept = filter_pairs(*asked), Keep(tmp_path)

    def stopped(name, make):
        if name == "copies-1":
            raise KeyboardInterrupt
        return kept(name, make)

    with pytest.raises(KeyboardInterrupt):
        filter_pairs(*asked, stopped)
    monkeypatch.setattr(reading, "_vectors", pytest.fail)
    monkeypatch.setattr(noise, "_scores", pytest.fail)
    again = filter_pairs(*asked, kept)
    assert again[0].equals(alone[0]) and again[1] == alone[1]
    assert alone[1]["near_duplicate"] > 30
