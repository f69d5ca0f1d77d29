"""`gram serve` in a browser: drop, see, correct by keyboard, on a phone's width."""

import shutil
import threading
import time

import pytest
import uvicorn
from conftest import free_port
from test_face import BACKBONE, CLASSES, picture, save_pictures

from gram import PromptClassifier
from gram.serve import make_app

api = pytest.importorskip("playwright.sync_api", reason="the extra [test] brings playwright")
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
LONG = "a_name_without_a_place_to_break_it" * 6 + ".png"

pytestmark = pytest.mark.whole


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    own = save_pictures(tmp_path_factory.mktemp("own") / "pictures")
    return PromptClassifier(BACKBONE, method="probe", folds=4).fit(own)


@pytest.fixture(scope="module")
def served(model, tmp_path_factory):
    """(address, folder of corrections) of a page that is served as `gram serve` does."""
    port, corrections = free_port(), tmp_path_factory.mktemp("corrections")
    app = make_app(model, corrections, {f"127.0.0.1:{port}"}, 0.5)
    server = uvicorn.Server(uvicorn.Config(app, port=port, log_level="warning"))
    thread = threading.Thread(target=server.run)
    thread.start()
    deadline = time.time() + 60
    while not server.started:
        assert time.time() < deadline and thread.is_alive()
        time.sleep(0.05)
    yield f"http://127.0.0.1:{port}/", corrections
    server.should_exit = True
    thread.join()


@pytest.fixture(scope="module")
def browser():
    """A Chromium of this machine, or playwright's own."""
    there = next(filter(None, map(shutil.which, BROWSERS)), None)
    with api.sync_playwright() as started:
        try:
            found = started.chromium.launch(executable_path=there, args=["--no-sandbox"])
        except api.Error as error:
            pytest.skip(
                f"no Chromium here ({str(error).splitlines()[0]}): install one, or "
                "run `playwright install chromium`"
            )
        yield found
        found.close()


class Told:
    """What a page complained of, and whom it asked."""

    def __init__(self, page):
        self.wrong, self.asked = [], set()
        page.on("console", lambda m: self.wrong.append(m.text) if m.type == "error" else None)
        page.on("pageerror", lambda error: self.wrong.append(str(error)))
        page.on("request", lambda request: self.asked.add(request.url))


@pytest.fixture
def opened(browser, served):
    page = browser.new_page(viewport={"width": 900, "height": 900})
    page.set_default_timeout(60_000)
    told = Told(page)
    page.goto(served[0])
    yield page, told
    page.close()


def drop(page, *files):
    """Files dragged from outside onto the field, as a person's mouse does it."""
    box = page.locator("#drop").bounding_box()
    place = {"x": box["x"] + box["width"] / 2, "y": box["y"] + box["height"] / 2}
    data = {"items": [], "files": [str(f) for f in files], "dragOperationsMask": 1}
    mouse = page.context.new_cdp_session(page)
    for kind in ("dragEnter", "dragOver", "drop"):
        mouse.send("Input.dispatchDragEvent", {"type": kind, "data": data, **place})


@pytest.fixture
def star(tmp_path):
    path = tmp_path / LONG
    picture(CLASSES["sea_star"], 78).save(path)
    return path


def test_a_dropped_picture_is_named_with_its_neighbours(opened, model, star, tmp_path):
    page, told = opened
    (tmp_path / "notes.png").write_text("no picture")
    drop(page, star, tmp_path / "notes.png")
    page.get_by_text("not a picture that can be read").wait_for()
    page.locator("article select").wait_for()
    article = page.locator("article", has=page.locator("select"))
    chances = model.predict_proba([star])[0]
    assert article.locator("h2").inner_text() == model.classes_[chances.argmax()] == "sea star"
    bars = article.locator("progress").evaluate_all("all => all.map(one => one.value)")
    assert bars == pytest.approx(sorted(chances, reverse=True), abs=1e-4)
    near = article.locator(".near img")
    assert near.count() == 3
    assert min(near.evaluate_all("all => all.map(one => one.naturalWidth)")) > 0
    assert article.locator(":scope > img").evaluate("one => one.naturalWidth") == 48
    assert all(url.startswith((page.url, "data:", "blob:")) for url in told.asked)
    refused = [text for text in told.wrong if "415" not in text]  # what is no picture
    assert not refused


def test_a_wrong_name_is_corrected_by_keyboard_alone(opened, served, star):
    page, told = opened
    page.locator("#files").focus()
    page.locator("#files").set_input_files(star)
    page.locator("article select").wait_for()
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.getAttribute('aria-label')") == "what it is"
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")  # nothing chosen yet: it leads back to the choice
    assert page.evaluate("document.activeElement.tagName") == "SELECT"
    page.keyboard.type("lion")
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.textContent") == "Correct"
    page.keyboard.press("Enter")
    page.get_by_text("Kept for the next adapt").wait_for()
    kept = list((served[1] / "lion").iterdir())
    assert [file.read_bytes() for file in kept] == [star.read_bytes()]
    assert not told.wrong


def test_what_the_server_cannot_do_is_shown_in_words(opened, served, star):
    page, _ = opened
    (served[1]).mkdir(exist_ok=True)
    (served[1] / "bus").write_text("a file where the folder would be")
    page.locator("#files").set_input_files(star)
    page.locator("article select").select_option("bus")
    page.get_by_role("button", name="Correct").click()
    said = page.get_by_text("Not kept: ")
    said.wait_for()
    assert str(served[1] / "bus") in said.inner_text()


def test_nothing_sticks_out_on_a_phone(opened, star):
    page, _ = opened
    page.set_viewport_size({"width": 360, "height": 740})
    drop(page, star)
    page.locator("article select").wait_for()
    assert page.evaluate("document.documentElement.scrollWidth") <= 360
    edges = "all => all.map(one => one.getBoundingClientRect().right)"
    assert max(page.locator("body *").evaluate_all(edges)) <= 360
    for name in ("select", "button"):
        box = page.locator(f"article {name}").bounding_box()
        assert box["height"] >= 24, name  # a finger finds it
