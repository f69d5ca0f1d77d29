"""Nothing that a person made is removed or overwritten by the command `gram`."""

import json
import os
import shutil

import pytest
from conftest import snapshot
from test_face import BACKBONE, gram, process, save_pictures

from gram import PromptClassifier
from gram.model_folder import check_target
from pipeline.errors import InputError

HUGGING_FACE = {"architectures": ["CLIPModel"], "model_type": "clip", "format": "gram"}


@pytest.fixture(scope="module")
def own(tmp_path_factory):
    return save_pictures(tmp_path_factory.mktemp("own") / "pictures")


@pytest.fixture(scope="module")
def fitted(own):
    return PromptClassifier(BACKBONE, method="probe", folds=0).fit(own)


@pytest.fixture(scope="module")
def saved(fitted, tmp_path_factory):
    folder = tmp_path_factory.mktemp("model") / "m"
    fitted.save(folder)
    return folder


@pytest.fixture
def model(saved, tmp_path):
    return shutil.copytree(saved, tmp_path / "model")


def a_web_project(folder, config=None):
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config if config is not None else {"port": 80}))
    (folder / "src").mkdir()
    (folder / "src" / "main.js").write_text("1")
    (folder / ".env").write_text("secret")
    (folder / "latest").symlink_to("src")
    return folder


@pytest.mark.parametrize("config", [{"port": 80}, HUGGING_FACE, [], "x"])
def test_another_program_s_folder_is_refused_before_a_picture_is_read(own, tmp_path, config):
    project = a_web_project(tmp_path / "project", config)
    before = snapshot(project)
    with pytest.raises(InputError, match="is there already, and is no classifier"):
        gram("adapt", tmp_path / "no pictures", "--out", project, "--backbone", BACKBONE)
    assert snapshot(project) == before


def refused(target, *words, source=None):
    with pytest.raises(InputError) as refusal:
        check_target(target, source)
    assert all(word in str(refusal.value) for word in words), refusal.value


def test_what_a_person_put_into_a_model_folder_stays(fitted, model):
    for name, make in {
        "notes.txt": lambda path: path.write_text("mine"),
        "deeper": lambda path: path.mkdir(),
        "link.html": lambda path: path.symlink_to("report.html"),
        ".hidden": lambda path: path.touch(),
    }.items():
        make(model / name)
        before = snapshot(model)
        refused(model, f"holds '{name}'", "which `gram adapt` did not write", "another name")
        with pytest.raises(InputError):
            fitted.save(model)
        assert snapshot(model) == before
        (model / name).rmdir() if name == "deeper" else (model / name).unlink()
    check_target(model)


@pytest.mark.parametrize("name", ["README.md", "report.html", "model.safetensors"])
def test_a_file_that_a_person_changed_stays(fitted, model, name):
    with (model / name).open("ab") as file:
        file.write(b"\nmy own words")
    before = snapshot(model)
    refused(model, f"holds '{name}', which was changed")
    with pytest.raises(InputError):
        fitted.save(model)
    assert snapshot(model) == before


def test_a_config_that_a_person_changed_stays(fitted, model):
    config = json.loads((model / "config.json").read_text())
    for key, value in (("template", "a sketch of a {}."), ("note", "my own")):
        (model / "config.json").write_text(json.dumps(config | {key: value}))
        refused(model, "holds 'config.json', which was changed")
    (model / "config.json").write_text(json.dumps(config))  # its form alone
    check_target(model)


def test_a_list_of_files_in_a_config_is_no_leave_to_remove_them(fitted, model):
    config = json.loads((model / "config.json").read_text())
    config["files"] |= {"../victim": "0" * 64, "src": "0" * 64}
    (model / "config.json").write_text(json.dumps(config))
    (model / "src").mkdir()
    (model.parent / "victim").write_text("mine")
    before = snapshot(model.parent)
    with pytest.raises(InputError):
        fitted.save(model)
    assert snapshot(model.parent) == before


def test_a_model_of_before_files_were_noted_stays(model):
    config = json.loads((model / "config.json").read_text())
    del config["files"]
    (model / "config.json").write_text(json.dumps(config))
    refused(model, "earlier version")
    assert PromptClassifier.load(model).classes_.tolist()


def test_an_unchanged_model_is_replaced_and_an_empty_folder_filled(fitted, model, tmp_path):
    fitted.save(model)
    (tmp_path / "empty").mkdir()
    fitted.save(tmp_path / "empty")
    assert snapshot(tmp_path / "empty").keys()
    (tmp_path / "link").symlink_to(model)
    fitted.save(tmp_path / "link")
    assert (tmp_path / "link").is_symlink()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["empty", "link", "model"]


def test_what_cannot_be_a_model_folder_is_refused_at_once(own, tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    (tmp_path / "here" / "below").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "here" / "below")
    for target in (".", "..", "/", tmp_path / "here"):
        with pytest.raises(InputError, match="the folder that you are in"):
            gram("adapt", own, "--out", target, "--backbone", BACKBONE)
    refused(tmp_path / "file" / "model", "is a file")
    refused(tmp_path / "file", "is no classifier")
    refused(own / "model", "lies in the folder of the pictures", source=own)
    refused(own, "lies in the folder of the pictures", source=own)
    done = process("adapt", own, "--out", "/", "--backbone", BACKBONE)
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert done.stderr.count("\n") == 1


def test_a_model_that_cannot_be_put_in_place_leaves_the_old_one(fitted, model, monkeypatch):
    before = snapshot(model)
    replace, calls = os.replace, []

    def once(source, target):
        calls.append(source)
        if len(calls) == 2:  # the new one into its place
            raise OSError(5, "Input/output error")
        replace(source, target)

    monkeypatch.setattr("gram.model_folder.os.replace", once)
    with pytest.raises(OSError, match="Input"):
        fitted.save(model)
    assert snapshot(model) == before
    assert [path.name for path in model.parent.iterdir()] == ["model"]


def test_pictures_that_lie_where_they_should_are_named(model, own, tmp_path):
    pictures = shutil.copytree(own, tmp_path / "pics")
    before = snapshot(pictures)
    done = gram("predict", model, pictures, "--copy-to", pictures, "--format", "csv")
    assert done.exit_code == 0
    assert len(done.stdout.splitlines()) == 13
    assert before.items() <= snapshot(pictures).items()


def test_copies_overwrite_nothing(model, own, tmp_path):
    """Neither another picture, nor where a link leads, nor a folder; a copy that fails costs the
    answer of none.
    """
    out = tmp_path / "out"
    gram("predict", model, own, "--copy-to", out)
    (label,) = {path.parent.name for path in out.rglob("0.png")} & {"lion"} or {"lion"}
    (out / label / "1.png").unlink()
    (tmp_path / "precious").write_text("mine")
    (out / label / "1.png").symlink_to(tmp_path / "precious")
    (out / label / "2.png").unlink()
    (out / label / "2.png").mkdir()
    before = snapshot(tmp_path)
    done = gram("predict", model, own / "lion", "--copy-to", out, "--format", "csv")
    assert done.exit_code == 0
    after = snapshot(tmp_path)
    assert before.items() <= after.items()
    shutil.rmtree(out / label)
    (out / label).write_text("a file where a folder belongs")
    with pytest.raises(InputError, match="was not copied"):
        gram("predict", model, own / "lion", "--copy-to", out, "--format", "csv")
    assert (out / label).read_text() == "a file where a folder belongs"
