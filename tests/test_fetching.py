"""What servers, disks and processes do to a download: each is a counted reason or ends it."""

import io
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time

import numpy as np
import psutil
import pytest
from conftest import ROOT
from PIL import Image
from test_pairs import QUIET, Site, captions, encoded, jpeg, settings

from pipeline.artifacts import fingerprint, read_table
from pipeline.clip.backbone import open_picture
from pipeline.errors import InputError
from pipeline.pairs import supervise
from pipeline.pairs.clean import statuses
from pipeline.pairs.download import Effort, download
from pipeline.pairs.fetch import lying, upright
from pipeline.pairs.index import index_pairs, inspect
from pipeline.pairs.links import NOT_VALID, NOT_WEB, asked
from pipeline.pairs.reading import read_pictures
from pipeline.pairs.schemas import FETCHED
from pipeline.pairs.supervise import Heartbeat, check_disk

BASE = "http://127.0.0.1:5/"


@pytest.mark.parametrize(
    ("url", "sent"),
    [
        ("http://a.org/café.png", "http://a.org/caf%C3%A9.png"),
        ("http://a.org/a b.png", "http://a.org/a%20b.png"),
        ("http://a.org/x?name=日本", "http://a.org/x?name=%E6%97%A5%E6%9C%AC"),
        ("http://a.org/a%20b.png?q='%27", "http://a.org/a%20b.png?q=%27%27"),
        ("http://a.org/100%.png", "http://a.org/100%.png"),
        ('http://a.org/"<a>`{b}"', "http://a.org/%22%3Ca%3E%60%7Bb%7D%22"),
        ("http://a.org\\a\\b.png", "http://a.org/a/b.png"),
        ("http://a.org", "http://a.org/"),
        ("HTTPS://a.org:8080?x#y", "https://a.org:8080/?x"),
        ("  http://a.org/a\n.png\t", "http://a.org/a.png"),
        ("http://bücher.example/ä", "http://xn--bcher-kva.example/%C3%A4"),
        ("http://[::1]:80/a", "http://[::1]:80/a"),
        ("http://a.org/a/\ud800.png", "http://a.org/a/%3F.png"),
    ],
)
def test_urls_are_encoded_as_browsers_do(url, sent):
    assert asked(url, None) == asked(url, BASE) == (sent, None)


@pytest.mark.parametrize(
    "url",
    [
        "http://[photos.example.com/a.jpg",
        "http://a]b/c.jpg",
        "http://[1::2::3]/a.jpg",
        "http:///",
        "https://",
        "http://a.org:99999/a.jpg",
        "http://a.org:8o/a.jpg",
        "http://a b.org/c.jpg",
        "http://a%2fb/c.jpg",
        "http://" + "ü" * 64 + ".org/a.jpg",
        "http://a.org:１/a.jpg",
    ],
)
def test_a_url_that_is_none_is_a_counted_reason(url):
    assert asked(url, None) == asked(url, BASE) == (None, NOT_VALID)


@pytest.mark.parametrize("url", ["ftp://a.org/b.jpg", "file:///etc/hostname", "data:image/png,a"])
def test_what_is_not_of_the_web_is_not_asked_for(url):
    assert asked(url, None) == asked(url, BASE) == (None, NOT_WEB)


@pytest.mark.parametrize(
    ("name", "sent"),
    [
        ("photo:1.png", "photo%3A1.png"),
        ("a b/é?#1.png", "a%20b/%C3%A9%3F%231.png"),
        ("mailto.png", "mailto.png"),
    ],
)
def test_names_in_a_folder_may_hold_anything(name, sent):
    assert asked(name, BASE) == (BASE + sent, None)
    assert asked(name, None) == (None, NOT_WEB)


class Slow:
    """Speaks HTTP by hand: /headers and /body come a byte at a time, /large and /endless are too
    large; /N.jpg is a picture.
    """

    def __init__(self):
        self.socket = socket.create_server(("127.0.0.1", 0))
        self.base = f"http://127.0.0.1:{self.socket.getsockname()[1]}"
        self.sent = 0
        threading.Thread(target=self.serve, daemon=True).start()

    def serve(self):
        while True:
            connection, _ = self.socket.accept()
            threading.Thread(target=self.answer, args=(connection,), daemon=True).start()

    def answer(self, connection):
        path = connection.recv(9999).split(b" ")[1]
        head = b"HTTP/1.1 200 OK\r\nContent-Type: image/jpeg\r\n"
        try:
            if path == b"/headers":
                self.trickle(connection, b"HTTP/1.1 200 OK\r\n" + b"X-A: b\r\n" * 999)
            elif path == b"/body":
                connection.sendall(head + b"Content-Length: 9999\r\n\r\n")
                self.trickle(connection, b"x" * 9999)
            elif path == b"/large":
                connection.sendall(head + b"Content-Length: 1500000000\r\n\r\n")
            elif path == b"/endless":
                connection.sendall(head + b"\r\n")
                while True:
                    connection.sendall(b"x" * 10_000)
                    self.sent += 10_000
            else:
                content = jpeg(int(path[1:-4]))
                connection.sendall(head + b"Content-Length: %d\r\n\r\n" % len(content) + content)
        except OSError:
            pass
        connection.close()

    def trickle(self, connection, content):
        for byte in content:
            connection.sendall(bytes([byte]))
            time.sleep(0.1)


def fetched(folder):
    table = read_table(folder / "fetched.parquet", FETCHED)
    return table["error"].to_pylist()


def test_no_server_holds_a_worker_as_long_as_it_likes(tmp_path):
    """Nor fills its memory: a picture has a deadline and a largest size, whatever comes."""
    slow = Slow()
    names = ["headers", "body", "large", "endless", "1.jpg", "2.jpg"]
    urls = [f"{slow.base}/{name}" for name in names] + ["http://[photos.example.com/a.jpg"]
    table = captions(tmp_path / "c.parquet", urls)
    (tmp_path / "work").mkdir()
    limits = settings(
        private_addresses=True, min_success=0.0, timeout=2, retries=2, deadline=3, max_megabytes=0.5
    )
    download(table, None, tmp_path / "work", limits, Effort(1, 8), QUIET)
    long, large = "took longer than 'download.deadline'", "larger than 'download.max_megabytes'"
    assert fetched(tmp_path / "work") == [long, long, large, large, None, None, NOT_VALID]
    assert slow.sent < 20e6


def running(tmp_path, site, **changes):
    """A download in a thread, and its workers; the error that it ends with comes later."""
    table = captions(tmp_path / "c.parquet", site.links(60))
    (tmp_path / "work").mkdir()
    ended = []

    def fetch():
        chosen = settings(private_addresses=True, shard_rows=10, **changes)
        with pytest.raises(InputError) as error:
            download(table, None, tmp_path / "work", chosen, Effort(2, 1), QUIET)
        ended.append(str(error.value))

    thread = threading.Thread(target=fetch)
    thread.start()
    port, workers = site.server_address[1], []
    until = time.monotonic() + 120
    while (len(site.asked) < 8 or len(workers) < 2) and time.monotonic() < until:
        time.sleep(0.05)
        workers = [p for p in psutil.Process().children(recursive=True) if asks(p, port)]
    return thread, workers, ended


def asks(process, port):
    """Whether it fetches; img2dataset has a process for its statistics beside those that do."""
    try:
        return any(c.raddr and c.raddr.port == port for c in process.net_connections("tcp"))
    except psutil.NoSuchProcess:
        return False


def test_a_worker_that_is_killed_ends_the_download(tmp_path):
    """img2dataset would wait for ever for what it had under way."""
    thread, workers, ended = running(tmp_path, Site(delay=0.3))
    workers[0].kill()
    thread.join(60)
    assert not thread.is_alive()
    assert "a download process ended before its time (signal SIGKILL, as when memory" in ended[0]
    assert "run the stage again: finished shards are kept" in ended[0]


def test_a_standstill_ends_the_download(tmp_path, monkeypatch):
    monkeypatch.setattr("pipeline.pairs.download.PATIENCE", 2)
    thread, workers, ended = running(tmp_path, Site(delay=0.3), deadline=1, timeout=1)
    for worker in workers:
        worker.send_signal(signal.SIGSTOP)
    thread.join(60)
    assert not thread.is_alive()
    assert "the download stood still: in" in ended[0] and "no picture was done with" in ended[0]
    until = time.monotonic() + 10
    while any(map(alive, workers)) and time.monotonic() < until:
        time.sleep(0.1)
    assert not any(map(alive, workers))


def alive(process):
    try:
        return process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def test_who_works_does_not_stand_still(tmp_path):
    work = "import sys, time\nfor line in sys.stdin:\n until = time.process_time() + 0.3\n"
    work += " while time.process_time() < until: pass\n print(flush=True)"
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    (tmp_path / "beat").touch()
    os.utime(tmp_path / "beat", (0, 0))
    with subprocess.Popen([sys.executable, "-c", work], text=True, bufsize=1, **pipes) as child:
        for _ in range(2):  # it has begun, then worked
            heart = Heartbeat(child.pid, tmp_path / "beat", quiet=0.2)
            child.stdin.write("\n")
            child.stdout.readline()
        assert heart.stopped() is None  # it used the processor
        time.sleep(0.5)
        os.utime(tmp_path / "beat")
        assert heart.stopped() is None  # a picture was done with
        time.sleep(0.5)
        assert heart.stopped() >= 0.5
        child.stdin.close()


def test_a_full_disk_is_noticed_before_and_while(tmp_path, monkeypatch):
    free = iter([10**9, 10**9, 10**9, 10**7] + [10**6] * 99)
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(supervise.shutil, "disk_usage", lambda _: usage._replace(free=next(free)))
    site = Site(delay=0.2)
    table = captions(tmp_path / "c.parquet", site.links(60))
    (tmp_path / "work").mkdir()
    for left in (10, 1):
        with pytest.raises(InputError, match=f"its disk has {left} MB left.*make room there"):
            download(
                table,
                None,
                tmp_path / "work",
                settings(private_addresses=True),
                Effort(1, 1),
                QUIET,
            )
    check_disk_message(tmp_path)


def check_disk_message(folder):
    with pytest.raises(InputError, match="finished shards are kept"):
        check_disk(folder)


class Picky(Site):
    """Answers every other picture, and all of them when told so."""

    def __init__(self):
        super().__init__()
        self.all = False
        site, handler = self, self.RequestHandlerClass
        answer = handler.do_GET

        def do_get(request):
            if site.all or int(request.path[1:-4]) < 35:
                return answer(request)
            site.asked.append(request.path)
            return request.send_error(503)

        handler.do_GET = do_get


def test_what_came_is_not_asked_for_again(tmp_path):
    """`min_success` lowered as the message advises: nothing. Run again: what failed, by shard."""
    site = Picky()
    table = captions(tmp_path / "c.parquet", site.links(60))
    (tmp_path / "work").mkdir()

    def fetch(**changes):
        before = len(site.asked)
        chosen = settings(private_addresses=True, **changes)
        try:
            counts = download(table, None, tmp_path / "work", chosen, Effort(1, 8), QUIET)
        finally:
            asked_for.append(len(site.asked) - before)
        return counts

    asked_for = []
    for timeout in (20, 10):
        with pytest.raises(InputError, match=r"only 58.3% of 60.*25× HTTP Error 503.*what came"):
            fetch(min_success=0.9, timeout=timeout)
    assert asked_for == [60, 40]  # the first shard of 20 is whole, whatever the timeout
    assert fetch(min_success=0.5)["success"] == 35 and asked_for[2] == 0
    assert not (tmp_path / "work" / "raw").exists()


def test_the_limits_are_no_part_of_what_was_fetched():
    """A check's threshold, or a timeout where nothing failed, changes no byte."""
    one = fingerprint(settings())
    patient = {"timeout": 5, "retries": 3, "min_success": 0.1, "deadline": 9, "max_megabytes": 1}
    assert fingerprint(settings(**patient)) == one
    for changed in ({"image_size": 32}, {"shard_rows": 7}, {"private_addresses": True}):
        assert fingerprint(settings(**changed)) != one


def test_a_download_leaves_nothing_in_the_temporary_directory(tmp_path, monkeypatch):
    site = Site()
    table = captions(tmp_path / "c.parquet", site.links(20))
    (tmp_path / "t").mkdir()
    (tmp_path / "work").mkdir()
    monkeypatch.setenv("TMPDIR", str(tmp_path / "t"))
    allowed = settings(private_addresses=True)
    assert download(table, None, tmp_path / "work", allowed, Effort(1, 8), QUIET)["success"] == 20
    assert not list((tmp_path / "t").iterdir())


def test_interrupted_while_it_is_cleaned_up(tmp_path, monkeypatch):
    """Whatever of img2dataset's own files is gone by then: no link is forgotten."""
    site = Site()
    table = captions(tmp_path / "c.parquet", site.links(60))
    (tmp_path / "work").mkdir()

    def half(raw, **_):
        for path in sorted(raw.glob("0000[01]*")):
            path.unlink()
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("pipeline.pairs.download.shutil.rmtree", half)
        download(
            table, None, tmp_path / "work", settings(private_addresses=True), Effort(1, 8), QUIET
        )
    counts = download(
        table, None, tmp_path / "work", settings(private_addresses=True), Effort(1, 8), QUIET
    )
    assert counts["links"] == counts["success"] == 60 and len(site.asked) == 60
    assert sorted(p.name for p in (tmp_path / "work").iterdir()) == [
        "00000.tar",
        "00001.tar",
        "00002.tar",
        "fetched.parquet",
    ]


def test_links_that_img2dataset_loses_are_missed(tmp_path, monkeypatch):
    """It goes on without a row whose writing failed; the next run fetches that shard anew."""
    site = Site()
    table = captions(tmp_path / "c.parquet", site.links(60))
    (tmp_path / "work").mkdir()

    def short(part):
        found = statuses(part)
        return found.head(17) if part.stem == "00001" else found

    chosen = settings(private_addresses=True)
    with monkeypatch.context() as patch:
        patch.setattr("pipeline.pairs.download.statuses", short)
        with pytest.raises(InputError, match=r"lost links of 1 shards \(00001"):
            download(table, None, tmp_path / "work", chosen, Effort(1, 8), QUIET)
    before = len(site.asked)
    counts = download(table, None, tmp_path / "work", chosen, Effort(1, 8), QUIET)
    assert counts["success"] == 60 and len(site.asked) - before == 20


def lying_picture(way, kind="JPEG", size=(60, 40)):
    """Red in the upper left corner as it is stored, with a note of how the camera was held."""
    pixels = np.zeros((*size[::-1], 3), np.uint8)
    pixels[: size[1] // 2, : size[0] // 2] = (255, 0, 0)
    note = Image.Exif()
    note[0x0112] = way
    return encoded(Image.fromarray(pixels), kind, exif=note, quality=95)


# where the stored picture's upper left corner is to be seen: below, right
CORNER = dict(enumerate([(0, 0), (0, 1), (1, 1), (1, 0), (0, 0), (0, 1), (1, 1), (1, 0)], 1))


def corner(picture):
    pixels = np.asarray(picture)[..., :3].astype(int)
    red = pixels[..., 0] - pixels[..., 1]
    down, right = red.shape[0] // 2, red.shape[1] // 2
    parts = {(0, 0): red[:down, :right], (0, 1): red[:down, right:]}
    parts |= {(1, 0): red[down:, :right], (1, 1): red[down:, right:]}
    return max(parts, key=lambda place: parts[place].mean())


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("way", range(1, 9))
def test_pictures_are_opened_upright(way, kind):
    content = lying_picture(way, kind)
    size = (40, 60) if way > 4 else (60, 40)
    picture = open_picture(content)
    assert (picture.size, corner(picture)) == (size, CORNER[way])
    assert inspect(content) == (*size, None)
    if kind != "TIFF":  # which OpenCV turns by itself
        stored = np.asarray(Image.open(io.BytesIO(content)).convert("RGB"))
        assert lying(content) == way and corner(upright(stored, way)) == CORNER[way]
    else:
        assert lying(content) == 1


def test_a_damaged_note_does_not_cost_the_picture():
    content = bytearray(lying_picture(6))
    start = content.index(b"Exif\0\0") + 6
    for end in (8, 12, 20):
        damaged = bytes(content[:start] + b"\xff" * end + content[start + end :])
        assert open_picture(damaged).size == (60, 40) and lying(damaged) == 1
        assert inspect(damaged) == (60, 40, None)


def test_pictures_are_stored_upright(tmp_path):
    """Those that are small enough to stay as they are, too; and no second time when opened."""
    (tmp_path / "site").mkdir()
    names = [f"{size}-{way}.jpg" for size in ("small", "large") for way in (1, 3, 6, 8)]
    for name in names:
        size = (60, 40) if name.startswith("small") else (300, 200)
        (tmp_path / "site" / name).write_bytes(lying_picture(int(name[-5]), size=size))
    (tmp_path / "site" / "photo:1.jpg").write_bytes(b"")
    table = captions(tmp_path / "c.parquet", [*names, "photo:1.jpg"])
    (tmp_path / "work").mkdir()
    download(table, tmp_path / "site", tmp_path / "work", settings(), Effort(1, 4), QUIET)
    found = dict(read_pictures(tmp_path / "work" / "00000.tar"))
    pairs, _ = index_pairs(table, tmp_path / "work", QUIET)
    assert pairs["error"].to_pylist()[-1] == "the file is empty"
    for name, (key, content) in zip(names, found.items(), strict=True):
        way, long = int(name[-5]), 60 if name.startswith("small") else 96
        size = (long * 2 // 3, long) if way > 4 else (long, long * 2 // 3)
        with Image.open(io.BytesIO(content)) as stored:
            assert (stored.size, corner(stored)) == (size, CORNER[way]), name
        assert corner(open_picture(content)) == CORNER[way]
        row = pairs["key"].to_pylist().index(key)
        assert (pairs["width"][row].as_py(), pairs["height"][row].as_py()) == size
    # what lies upright and is small enough is not written anew
    assert found["k000"] == (tmp_path / "site" / "small-1.jpg").read_bytes()


STAGES = {
    "captions": ["--out", "captions.parquet"],
    "download": ["--captions", "captions.parquet", "--out", "shards"],
    "index": ["--captions", "captions.parquet", "--shards", "shards", "--out", "pairs.parquet"],
    "features": ["--pairs", "pairs.parquet", "--shards", "shards", "--out", "features"],
    "filter": ["--pairs", "pairs.parquet", "--features", "features", "--out", "kept.parquet"],
    "embed": ["--kept", "kept.parquet", "--out", "sentences"],
}


@pytest.mark.parametrize("last", ["index", pytest.param("embed", marks=pytest.mark.slow)])
def test_no_stage_talks_to_the_world(tmp_path, last):
    """With pictures of one's own: not for their newest versions either, when libraries are
    imported.
    """
    (tmp_path / "site").mkdir()
    for number in range(4):
        (tmp_path / "site" / f"{number}.jpg").write_bytes(jpeg(number))
    rows = [f"a picture of number {number}\t{number}.jpg\n" for number in range(4)]
    (tmp_path / "captions.tsv").write_text("".join(rows))
    text = (ROOT / "params.yaml").read_text()
    for old, new in (
        ("path: data/world/demo ", f"path: {tmp_path} "),
        ("pictures: pictures.zip", "pictures: site"),
        ("threshold: -0.76", "threshold: -9.0"),
    ):
        assert text.count(old) == 1
        text = text.replace(old, new)
    (tmp_path / "params.yaml").write_text(text)
    environment = os.environ | {
        "PYTHONPATH": str(ROOT / "tests" / "offline"),
        "OUTSIDE": str(tmp_path / "outside.log"),
        "DOWNLOAD_PROCESSES": "1",
    }
    environment.pop("NO_ALBUMENTATIONS_UPDATE", None)
    names = list(STAGES)[: list(STAGES).index(last) + 1]
    for name in names:
        options = [a if a.startswith("--") else tmp_path / a for a in STAGES[name]]
        reads = [] if name == "index" else ["--params", tmp_path / "params.yaml"]
        command = [sys.executable, ROOT / "stages" / f"{name}.py", *reads, *options]
        done = subprocess.run(
            list(map(str, command)), env=environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
    outside = tmp_path / "outside.log"
    assert not outside.exists(), outside.read_text()
