"""`gram serve`: the page, what it answers, and what it refuses."""

import asyncio
import errno
import http.client
import io
import os
import re
import resource
import socket
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import psutil
import pytest
from conftest import ENVIRONMENT, ROOT, free_port
from PIL import Image, features
from starlette.testclient import TestClient
from test_face import BACKBONE, CLASSES, picture, process, save_pictures

from gram import PromptClassifier
from gram import serve as page
from gram.collection import examine, read_collection
from gram.hosts import given_place, hosts_for, listening, own_names, place_of
from pipeline.errors import InputError
from pipeline.pictures import PICTURE

HOST = "127.0.0.1:8000"
SENDING = {"Origin": f"http://{HOST}", "Content-Type": "application/octet-stream"}


def encoded(image, kind="png", **settings):
    packed = io.BytesIO()
    image.save(packed, kind, **settings)
    return packed.getvalue()


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    own = save_pictures(tmp_path_factory.mktemp("own") / "pictures")
    return PromptClassifier(BACKBONE, method="probe", folds=4).fit(own)


@pytest.fixture
def asked(model, tmp_path):
    app = page.make_app(model, tmp_path / "corrections", {HOST}, 0.5)
    return TestClient(app, base_url=f"http://{HOST}", headers=SENDING)


def test_a_picture_is_named_with_its_neighbours(asked, model):
    content = encoded(picture(CLASSES["lion"], 77))
    told = asked.post("/name", content=content).json()
    chances = model.predict_proba([content])[0]
    assert told["top"][0]["label"] == "lion" == model.classes_[chances.argmax()]
    assert told["top"][0]["probability"] == pytest.approx(chances.max())
    assert told["set"] == model.predict_sets([content], 0.5)[0]
    assert [near["label"] for near in told["near"]] == ["lion"] * 3
    assert all(near["picture"].startswith("data:image/jpeg;base64,") for near in told["near"])


def test_a_correction_is_filed_for_the_next_adapt(asked, tmp_path):
    content = encoded(picture(CLASSES["sea_star"], 78), "jpeg")
    kept = asked.post("/correct", params={"label": "sea star"}, content=content).json()["kept"]
    files = list((tmp_path / "corrections").rglob("*.*"))
    assert [str(f) for f in files] == [kept] and files[0].parent.name == "sea star"
    assert files[0].suffix == ".jpg" and files[0].read_bytes() == content
    for label in ("../up", "", "nothing"):
        assert asked.post("/correct", params={"label": label}, content=content).status_code == 422
    assert len(list(tmp_path.rglob("*.jpg"))) == 1


def test_other_pages_and_other_names_are_refused(asked):
    content = encoded(picture(CLASSES["lion"], 77))
    for changed in (
        {"Host": "evil.example:8000"},
        {"Origin": "http://evil.example"},
        {"Origin": "null"},
        {"Origin": ""},
        {"Content-Type": "text/plain"},
        {"Content-Type": "multipart/form-data"},
    ):
        for where in ("/name", "/correct?label=bus"):
            assert asked.post(where, content=content, headers=changed).status_code == 403, changed
    assert asked.get("/", headers={"Host": "evil.example:8000"}).status_code == 403


def test_what_is_handed_in_is_bounded(asked, monkeypatch):
    assert asked.post("/name", content=b"no picture").status_code == 415
    assert asked.post("/name", content=b"").status_code == 415
    bomb = encoded(
        Image.fromarray(np.zeros((8000, 8000), np.uint8))
    )  # 64 million pixels in few bytes
    assert len(bomb) < 1 << 20
    answer = asked.post("/name", content=bomb)
    assert answer.status_code == 413 and "50 million pixels" in answer.json()["detail"]
    monkeypatch.setattr(page, "MOST_BYTES", 1 << 20)
    assert asked.post("/name", content=bytes((1 << 20) + 1)).status_code == 413
    pieces = (bytes(1 << 18) for _ in range(1000))  # no length is said, and it would be 250 MiB
    assert asked.post("/name", content=pieces).status_code == 413


def test_who_sends_nothing_does_not_hold_a_place(model, tmp_path, monkeypatch):
    """Of the places that there are for pictures in memory; the server's own interface is used, as
    no client waits so well.
    """
    monkeypatch.setattr(page, "SECONDS", 0.05)
    app = page.make_app(model, tmp_path, {HOST})
    sent = SENDING | {"Host": HOST}
    scope = {
        "type": "http",
        "method": "POST",
        "path": "/name",
        "query_string": b"",
        "headers": [(k.lower().encode(), v.encode()) for k, v in sent.items()],
    }

    async def all_at_once():
        async def ask():
            answers = []

            async def never():
                await asyncio.sleep(3600)

            async def told(message):
                answers.append(message)

            await app(dict(scope), never, told)
            return answers[0]["status"]

        return await asyncio.gather(*(ask() for _ in range(2 * page.AT_ONCE)))

    assert asyncio.run(all_at_once()) == [408] * 2 * page.AT_ONCE


def test_the_page_loads_nothing_and_runs_its_own_script_alone(asked):
    answer = asked.get("/")
    policy, text = answer.headers["content-security-policy"], answer.text
    nonce = re.search(r"script-src 'nonce-([^']+)'", policy).group(1)
    assert "default-src 'none'" in policy and text.count(f'nonce="{nonce}"') == 2
    assert not re.search(r"(src|href)=.?https?:|//cdn", text)
    assert '["bus", "lion", "sea star"]' in text
    assert asked.get("/").text != text  # another nonce each time
    assert asked.get("/openapi.json").status_code == 404


# --- under which names it is served ---


def served_on(model, tmp_path, host, *allowed):
    return TestClient(
        page.make_app(model, tmp_path / "corrections", hosts_for(host, allowed)),
        base_url="http://localhost:8000",
        headers={"Content-Type": "application/octet-stream"},
    )


@pytest.mark.parametrize("host", ["0.0.0.0", "::", socket.gethostname()])
def test_the_machines_own_names_and_addresses_are_served(model, tmp_path, host):
    """Also where a container or a tunnel has another port for it."""
    asked = served_on(model, tmp_path, host)
    addresses = [
        f"[{a.address.partition('%')[0]}]" if a.family == socket.AF_INET6 else a.address
        for found in psutil.net_if_addrs().values()
        for a in found
        if a.family in (socket.AF_INET, socket.AF_INET6)
    ]
    own = socket.gethostname()
    content = encoded(picture(CLASSES["lion"], 77))
    for name in (own, own.upper(), f"{own}.", f"{own}.local", "localhost", *addresses):
        for place in (name, f"{name}:8000", f"{name}:49152"):
            answer = asked.get("/", headers={"Host": place})
            assert answer.status_code == 200, (place, answer.text)
            origin = {"Host": place, "Origin": f"http://{place}"}
            assert asked.post("/name", content=content, headers=origin).status_code == 200, place
    for name in ("evil.example", "localhost.evil.example", "203.0.113.9", "[2001:db8::9]", "*"):
        answer = asked.get("/", headers={"Host": f"{name}:8000"})
        assert answer.status_code == 403 and "another name" in answer.json()["detail"], name


def test_on_the_loopback_its_own_names_alone_are_served(model, tmp_path):
    asked = served_on(model, tmp_path, "127.0.0.1")
    for place in ("127.0.0.1:8000", "localhost:8000", "LOCALHOST", "[::1]:8000", "[::1%25lo]:8000"):
        assert asked.get("/", headers={"Host": place}).status_code == 200, place
    answer = asked.get("/", headers={"Host": "pictures.lan:8000"})
    assert answer.status_code == 403 and "--allow-host pictures.lan" in answer.json()["detail"]


def test_a_vouched_name_is_served_through_a_proxy(model, tmp_path):
    asked = served_on(model, tmp_path, "127.0.0.1", "Pictures.Example", "box.lan:8443", "fd00::7")
    content = encoded(picture(CLASSES["lion"], 77))
    for place, origin in (
        ("pictures.example", "https://pictures.example"),  # a tunnel that ends TLS
        ("pictures.example", "http://pictures.example"),
        ("pictures.example:9000", "http://pictures.example:9000"),
        ("pictures.example:443", "https://pictures.example"),
        ("box.lan:8443", "https://box.lan:8443"),
        ("[fd00::7]:8000", "http://[fd00::7]:8000"),
        ("localhost:8000", "https://pictures.example"),  # it puts its own name for the host
        ("localhost:8000", "https://box.lan:8443"),
    ):
        sent = {"Host": place, "Origin": origin}
        assert asked.post("/name", content=content, headers=sent).status_code == 200, sent
    for place, origin in (
        ("box.lan:8444", "http://box.lan:8444"),  # vouched for at another port
        ("www.pictures.example", "https://www.pictures.example"),
        ("pictures.example", "https://pictures.example:9443"),  # another server there
        ("pictures.example:8000", "http://pictures.example"),
        ("localhost:8000", "http://pictures.example"),
        ("localhost:8000", "https://localhost:8000"),  # no TLS ends here
        ("localhost:8000", "https://evil.example"),
        ("localhost:8000", "https://pictures.example:9443"),
    ):
        sent = {"Host": place, "Origin": origin}
        assert asked.post("/name", content=content, headers=sent).status_code == 403, sent


@pytest.mark.parametrize(
    "wrong", ["*", "*.lan", "http://a.lan", "a.lan/x", "a b", "", "u@a.lan", "a:b"]
)
def test_what_is_no_name_cannot_be_allowed(wrong):
    with pytest.raises(InputError, match="--allow-host takes one host name"):
        given_place(wrong)


def test_places_have_one_spelling():
    assert place_of("Box.LAN.:80") == ("box.lan", 80) and place_of("box") == ("box", None)
    assert place_of("[0:0::1]:8000") == place_of("[::1%25eth0]:8000") == ("::1", 8000)
    assert given_place("fe80::1%eth0") == ("fe80::1", None)
    assert given_place("bücher.example") == ("xn--bcher-kva.example", None)
    for wrong in ("a@b", "a/b", "[::1", "[g::]", "a:", "a:123456", "", " a", "a\n", "ä.example"):
        assert place_of(wrong) is None, wrong
    assert "0.0.0.0" in own_names("0.0.0.0") and not any("*" in n for n in own_names("0.0.0.0"))


@pytest.mark.parametrize(
    "sent",
    [
        [("Host", HOST)],  # as a program sends it, that no browser is
        [("Host", HOST), ("Origin", "null")],
        [("Host", HOST), ("Origin", "http://evil.example")],
        [("Host", HOST), ("Origin", "http://127.0.0.1:9000")],  # another server of this machine
        [("Host", HOST), ("Origin", "http://127.0.0.1")],
        [("Host", HOST), ("Origin", f"https://{HOST}")],
        [("Host", HOST), ("Origin", f"ftp://{HOST}")],
        [("Host", HOST), ("Origin", HOST)],
        [("Host", HOST), ("Origin", f"http://{HOST}/")],
        [("Host", HOST), ("Origin", f"http://{HOST}@evil.example")],
        [("Host", HOST), ("Origin", f"http://{HOST}.evil.example")],
        [("Host", HOST), ("Origin", f"http://{HOST}"), ("Origin", "http://evil.example")],
        [("Host", "evil.example"), ("Origin", "http://evil.example")],
        [("Host", f"a@{HOST}"), ("Origin", f"http://a@{HOST}")],
        [("Host", HOST), ("Host", "evil.example"), ("Origin", f"http://{HOST}")],
        [("Host", HOST), ("Host", HOST), ("Origin", f"http://{HOST}")],
        [("Host", ""), ("Origin", "http://")],
    ],
)
def test_every_other_origin_and_host_is_refused(asked, tmp_path, sent):
    content = encoded(picture(CLASSES["lion"], 77))
    kind = [("Content-Type", "application/octet-stream")]
    for where in ("/name", "/correct?label=bus"):
        request = asked.build_request("POST", where, content=content)
        request.headers = type(request.headers)(
            [*sent, *kind, ("Content-Length", str(len(content)))]
        )
        answer = asked.send(request)
        assert answer.status_code == 403 and answer.json()["detail"], sent
    assert not (tmp_path / "corrections").exists()


# --- methods, and what is not there ---


def test_other_methods_and_places_are_answered_in_words(asked):
    head = asked.head("/")
    assert head.status_code == 200 and "content-security-policy" in head.headers
    for method, where, status in (
        ("POST", "/", 405),
        ("PUT", "/", 405),
        ("DELETE", "/name", 405),
        ("OPTIONS", "/name", 405),
        ("GET", "/name", 405),
        ("HEAD", "/correct", 405),
        ("PATCH", "/correct", 405),
        ("GET", "/nothing", 404),
        ("POST", "/nothing", 404),
        ("GET", "/name/", 404),
        ("GET", "/../etc/passwd", 404),
    ):
        answer = asked.request(method, where)
        assert answer.status_code == status, (method, where)
        assert "access-control-allow-origin" not in answer.headers
        assert method == "HEAD" or answer.json()["detail"], (method, where)
    assert asked.head("/", headers={"Host": "evil.example"}).status_code == 403
    assert asked.options("/name", headers={"Host": "evil.example"}).status_code == 403


def test_a_fault_of_the_servers_is_told_in_words(model, tmp_path, monkeypatch):
    app = page.make_app(model, tmp_path, {HOST})
    asked = TestClient(app, f"http://{HOST}", False, headers=SENDING)
    monkeypatch.setattr(page, "TOP", None)
    monkeypatch.setattr(page, "NEAR", "many")
    answer = asked.post("/name", content=encoded(picture(CLASSES["lion"], 77)))
    assert answer.status_code == 500 and "TypeError" in answer.json()["detail"]


# --- corrections ---


def two_frames(image):
    """As phones do it: a JPEG with a second one behind it."""
    other = image.transpose(Image.Transpose.FLIP_TOP_BOTTOM)
    return encoded(image, "mpo", save_all=True, append_images=[other])


def test_a_phones_correction_is_read_by_the_next_adapt(asked, tmp_path):
    content = two_frames(picture(CLASSES["lion"], 79))
    assert Image.open(io.BytesIO(content)).format == "MPO"
    for label, sent in (("lion", content), ("sea star", encoded(picture((9, 9, 9), 1), "webp"))):
        kept = asked.post("/correct", params={"label": label}, content=sent).json()["kept"]
        assert PICTURE.search(kept)
    found = read_collection(tmp_path / "corrections")
    assert sorted(found.labels) == ["lion", "sea star"] and not found.notes
    assert content in map(found.read, found.files)
    asked.post("/correct", params={"label": "lion"}, content=content)  # once more: no second file
    assert read_collection(tmp_path / "corrections").fingerprint == found.fingerprint


WRITTEN = ["JPEG", "MPO", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF"]


@pytest.mark.parametrize("kind", WRITTEN)
def test_every_format_gets_an_ending_that_is_read(asked, tmp_path, kind):
    if kind == "AVIF" and not features.check("avif"):
        pytest.skip("this Pillow has no AVIF")
    image = picture(CLASSES["lion"], 80)
    content = two_frames(image) if kind == "MPO" else encoded(image, kind)
    answer = asked.post("/correct", params={"label": "lion"}, content=content)
    assert answer.status_code == 200, answer.text
    found = read_collection_of_one(tmp_path / "corrections")
    assert found.read_bytes() == content
    with Image.open(found) as opened:
        assert opened.format == kind
    of_ending = Image.registered_extensions()[found.suffix]
    assert of_ending == ("JPEG" if kind == "MPO" else kind)


def read_collection_of_one(folder):
    """The one file of a folder that the reader of pictures takes for one."""
    files = [f for f in folder.rglob("*") if f.is_file()]
    assert len(files) == 1 and PICTURE.search(files[0].name), files
    return files[0]


def test_a_format_that_is_not_read_is_not_kept(asked, tmp_path):
    content = encoded(picture(CLASSES["lion"], 80), "ico")
    answer = asked.post("/correct", params={"label": "lion"}, content=content)
    assert answer.status_code == 415 and answer.json()["detail"]
    assert not (tmp_path / "corrections").exists()


def test_a_persons_file_is_never_overwritten(asked, tmp_path):
    content = encoded(picture(CLASSES["lion"], 81))
    kept = asked.post("/correct", params={"label": "lion"}, content=content).json()["kept"]
    for i in range(2):
        Path(kept).write_bytes(b"mine %d" % i)
        again = asked.post("/correct", params={"label": "lion"}, content=content)
        assert Path(kept).read_bytes() == b"mine %d" % i
        if i == 0:
            assert again.status_code == 200
            kept = again.json()["kept"]
    assert again.status_code == 409 and kept in again.json()["detail"]
    assert sorted(os.listdir(tmp_path / "corrections" / "lion")) == sorted(
        [os.path.basename(kept), os.path.basename(kept)[:16] + ".png"]
    )


def test_corrections_that_cannot_be_written_are_told_in_words(asked, tmp_path):
    content = encoded(picture(CLASSES["lion"], 82))
    (tmp_path / "corrections").write_text("a file")
    answer = asked.post("/correct", params={"label": "lion"}, content=content)
    assert answer.status_code == 500 and "corrections" in answer.json()["detail"]
    assert (tmp_path / "corrections").read_text() == "a file"
    (tmp_path / "corrections").unlink()
    (tmp_path / "corrections").symlink_to("nowhere/at/all")
    answer = asked.post("/correct", params={"label": "lion"}, content=content)
    assert answer.status_code == 500 and "corrections" in answer.json()["detail"]
    (tmp_path / "corrections").unlink()
    (tmp_path / "corrections").mkdir()
    (tmp_path / "corrections" / "lion").touch()
    answer = asked.post("/correct", params={"label": "lion"}, content=content)
    assert answer.status_code == 500 and "lion" in answer.json()["detail"]
    answer = asked.post("/correct", params={"label": "bus"}, content=content)
    assert answer.status_code == 200  # it serves on


def test_a_full_disk_is_told_in_words(asked, tmp_path):
    """A limit on a file's size, which is refused at the same place as a full disk."""
    content = encoded(picture(CLASSES["lion"], 83, 200))
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
    try:
        answer = asked.post("/correct", params={"label": "lion"}, content=content)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert answer.status_code == 507 and os.strerror(errno.EFBIG) in answer.json()["detail"]
    assert not any(f.is_file() for f in tmp_path.rglob("*"))


# --- before it serves ---


def refused(*arguments):
    done = process("serve", "no-such-model", *arguments)
    assert done.returncode == 1 and not done.stdout, done
    assert "http://" not in done.stderr and len(done.stderr.splitlines()) == 1, done.stderr
    return done.stderr


def test_what_cannot_be_served_is_told_before_anything_is_announced(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert f"port {port} of 127.0.0.1 is taken" in refused("--port", port)
    assert "no name or address of this machine" in refused("--host", "203.0.113.9")
    assert "no name or address of this machine" in refused("--host", "no.such.host.invalid")
    assert "--allow-host takes" in refused("--allow-host", "*")
    (tmp_path / "file").touch()
    free = ("--port", free_port(), "--corrections")
    assert "is no folder" in refused(*free, tmp_path / "file")
    assert "is no folder" in refused(*free, tmp_path / "file" / "below")
    assert "no-such-model" in refused(*free, tmp_path / "new")
    assert sorted(os.listdir(tmp_path)) == ["file"]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere and take every port")
def test_rights_that_are_lacking_are_told(tmp_path):
    (tmp_path / "locked").mkdir(mode=0o500)
    assert "cannot be written" in refused(
        "--port", free_port(), "--corrections", tmp_path / "locked"
    )
    if int(Path("/proc/sys/net/ipv4/ip_unprivileged_port_start").read_text()) > 80:
        assert "needs rights" in refused("--port", 80)


def test_a_port_that_is_free_can_be_asked_for():
    for host in ("127.0.0.1", "localhost", "0.0.0.0", "::"):
        if host == "::" and not socket.has_dualstack_ipv6():
            continue
        opened = listening(host, 0)
        ports = {one.getsockname()[1] for one in opened}
        assert len(ports) == 1 and 0 not in ports
        socket.create_connection(("127.0.0.1", *ports)).close()
        for one in opened:
            one.close()


@pytest.mark.whole
def test_the_command_serves_a_container(model, tmp_path):
    """From announcement to the correction that `adapt` reads, as a person runs it."""
    model.save(tmp_path / "model")
    command = [sys.executable, "-m", "gram", "serve", tmp_path / "model", "--backbone", BACKBONE]
    command += ["--host", "0.0.0.0", "--port", "0", "--allow-host", "pictures.example"]
    command += ["--corrections", tmp_path / "corrections"]
    served = subprocess.Popen(
        list(map(str, command)),
        cwd=ROOT,
        env=ENVIRONMENT | {"PYTHONPATH": str(ROOT)},
        stderr=subprocess.PIPE,
        text=True,
    )
    watch = threading.Timer(120, served.kill)
    watch.start()
    try:
        port = int(re.match(r"http://0\.0\.0\.0:(\d+) ", served.stderr.readline()).group(1))
        asked = http.client.HTTPConnection("127.0.0.1", port)
        for name in (socket.gethostname(), "pictures.example", f"localhost:{port}"):
            asked.request("HEAD", "/", headers={"Host": name})
            answer = asked.getresponse()
            assert answer.status == 200 and answer.read() == b"", name
        content = two_frames(picture(CLASSES["lion"], 79))
        sent = SENDING | {"Host": "pictures.example", "Origin": "https://pictures.example"}
        asked.request("POST", "/correct?label=sea%20star", content, sent)
        assert asked.getresponse().status == 200
    finally:
        served.terminate()
        served.wait()
        watch.cancel()
    assert examine(tmp_path / "corrections")[0].labels == ["sea star"]
