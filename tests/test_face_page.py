"""`gram serve`: the page, what it answers, and what it refuses."""

import io
import re

import numpy as np
import pytest
from PIL import Image
from starlette.testclient import TestClient
from test_face import BACKBONE, CLASSES, picture, save_pictures

from gram import PromptClassifier
from gram import serve as page

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


def test_the_page_loads_nothing_and_runs_its_own_script_alone(asked):
    answer = asked.get("/")
    policy, text = answer.headers["content-security-policy"], answer.text
    nonce = re.search(r"script-src 'nonce-([^']+)'", policy).group(1)
    assert "default-src 'none'" in policy and text.count(f'nonce="{nonce}"') == 2
    assert not re.search(r"(src|href)=.?https?:|//cdn", text)
    assert '["bus", "lion", "sea star"]' in text
    assert asked.get("/").text != text  # another nonce each time
    assert asked.get("/openapi.json").status_code == 404
