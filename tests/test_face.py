"""The public face: a folder of pictures in, a classifier out."""

import csv
import io
import json
import os
import re
import shutil
import subprocess
import sys
import zipfile

import numpy as np
import polars as pl
import pytest
import torch
from conftest import ENVIRONMENT, ROOT
from PIL import Image
from sklearn.base import clone
from sklearn.utils import estimator_checks
from typer.testing import CliRunner

from gram import PromptClassifier, budget, heads, methods
from gram.choice import choose
from gram.cli import app, main
from gram.methods import METHODS, Task, candidates
from gram.trust import calibration_error, set_threshold, sets, temperature_of
from pipeline.clip.backbone import load_backbone
from pipeline.errors import InputError
from pipeline.prompts.coop import CoOp
from pipeline.prompts.starts import Start, save_start

BACKBONE = ROOT / "demo" / "backbone"
CLASSES = {"lion": (200, 60, 60), "bus": (60, 200, 60), "sea_star": (60, 60, 200)}
EACH = 4


@pytest.fixture(scope="module", autouse=True)
def few_steps():
    """Tuning as it is, but short."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(methods, "STEPS", 6)
        yield


def picture(colour, seed, size=48):
    """Noise about a colour: easy to tell apart, and nothing that a name says."""
    noise = np.random.default_rng(seed).normal(colour, 30, (size, size, 3))
    return Image.fromarray(np.clip(noise, 0, 255).astype(np.uint8))


def save_pictures(folder, each=EACH):
    for name, colour in CLASSES.items():
        (folder / name).mkdir(parents=True)
        for i in range(each):
            picture(colour, i).save(folder / name / f"{i}.png")
    return folder


@pytest.fixture(scope="module")
def own(tmp_path_factory):
    return save_pictures(tmp_path_factory.mktemp("own") / "pictures")


@pytest.fixture(scope="module")
def start(tmp_path_factory):
    """Tokens of a kind that meta-training leaves, and a regulator that halves gradients."""
    theta = CoOp(load_backbone(BACKBONE)).initial(4, torch.Generator().manual_seed(3))
    width = theta["text"].shape[1]
    phi = {
        "text.W_gamma": torch.zeros(width, width),
        "text.W_beta": torch.zeros(width, width),
        "text.b_gamma": torch.full((1, width), 0.5),
        "text.b_beta": torch.zeros(1, width),
    }
    folder = tmp_path_factory.mktemp("start") / "coop_gram"
    save_start(Start("coop", 1, {"text": theta["text"] + 0.01}, phi, "rms"), folder)
    return folder


@pytest.fixture(scope="module")
def fitted(own, start):
    return PromptClassifier(BACKBONE, start=start).fit(own)


@pytest.fixture(scope="module")
def model(fitted, tmp_path_factory):
    folder = tmp_path_factory.mktemp("model") / "m"
    fitted.save(folder)
    return folder


def gram(*arguments):
    """The command in this process."""
    done = CliRunner().invoke(app, list(map(str, arguments)))
    if done.exception and not isinstance(done.exception, SystemExit):
        raise done.exception
    return done


def process(*arguments, **changes):
    """The command as a person runs it."""
    return subprocess.run(
        [sys.executable, "-m", "gram", *map(str, arguments)],
        cwd=ROOT,
        env=ENVIRONMENT | {"PYTHONPATH": str(ROOT)} | changes,
        capture_output=True,
        text=True,
    )


# --- what is loaded, and who uses whom ---

HEAVY = (
    "torch open_clip transformers polars pyarrow sklearn pydantic dvc img2dataset umap mlflow "
    "hdbscan faiss sentence_transformers plotly fastapi huggingface_hub"
).split()
ASK = """
import sys
import gram
first = set(sys.modules)
from typer.testing import CliRunner
from gram.cli import app
assert CliRunner().invoke(app, ["--help"]).exit_code == 0
print([name for name in sys.argv[1:] if name in sys.modules])
print(sorted(name for name in first if name.startswith(("gram", "pipeline"))))
"""


def test_the_face_and_its_help_load_nothing_heavy():
    done = subprocess.run(
        [sys.executable, "-c", ASK, *HEAVY], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines() == ["[]", "['gram']"]


USE = """
import sys
import gram.commands, gram.report, gram.model_folder
print([name for name in sys.argv[1:] if name in sys.modules])
"""


@pytest.mark.whole
def test_a_command_loads_nothing_of_the_pipeline_extra():
    """What `pip install .` does not bring is not needed."""
    extra = "dvc img2dataset umap mlflow hdbscan faiss sentence_transformers plotly pynndescent"
    done = subprocess.run(
        [sys.executable, "-c", USE, *extra.split()],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("given", [None, "ACTIVE"])
def test_threads_wait_asleep_unless_told_otherwise(given, monkeypatch):
    """Beside other programs, threads that wait awake triple the time of `gram adapt`."""
    monkeypatch.setenv("OMP_WAIT_POLICY", given or "")
    if given is None:
        monkeypatch.delenv("OMP_WAIT_POLICY")
    monkeypatch.setattr(sys, "argv", ["gram", "--help"])
    with pytest.raises(SystemExit):
        main()
    assert os.environ["OMP_WAIT_POLICY"] == (given or "PASSIVE")


def test_nothing_of_the_pipeline_uses_the_face():
    for path in [*(ROOT / "pipeline").rglob("*.py"), *(ROOT / "stages").glob("*.py")]:
        assert not re.search(r"^\s*(from|import) gram\b", path.read_text(), re.M), path


# --- the estimator ---


def test_it_keeps_scikit_learns_habits(start):
    """The checks that need no array of numbers."""
    made = PromptClassifier(BACKBONE, start=start, method="probe", folds=3)
    name = "PromptClassifier"
    for check in (
        "check_estimator_cloneable",
        "check_estimator_repr",
        "check_no_attributes_set_in_init",
        "check_parameters_default_constructible",
        "check_get_params_invariance",
        "check_set_params",
        "check_do_not_raise_errors_in_init_or_set_params",
        "check_mixin_order",
        "check_estimator_tags_renamed",
        "check_valid_tag_types",
    ):
        getattr(estimator_checks, check)(name, made)
    assert clone(made).get_params() == made.get_params() and made.get_params()["method"] == "probe"


def test_it_learns_what_names_do_not_tell(fitted, own):
    """The pictures are noise of three colours, which only pictures can teach."""
    zero_shot = PromptClassifier(BACKBONE, method="zero-shot", folds=0).fit(own)
    assert zero_shot.score(own) < 0.7 < 0.99 < fitted.score(own)
    assert fitted.classes_.tolist() == ["bus", "lion", "sea star"]
    chances = fitted.predict_proba(own)
    assert chances.shape == (12, 3) and np.allclose(chances.sum(axis=1), 1)
    assert (fitted.predict(own) == fitted.classes_[chances.argmax(axis=1)]).all()


def test_paths_pictures_bytes_folder_zip_and_table_are_one(fitted, own, tmp_path):
    files = sorted(own.rglob("*.png"))
    wanted = fitted.predict_proba(own)
    assert np.array_equal(fitted.predict_proba(files), wanted)
    assert np.array_equal(fitted.predict_proba([Image.open(f) for f in files]), wanted)
    assert np.array_equal(fitted.predict_proba([f.read_bytes() for f in files]), wanted)
    labels = [f.parent.name.replace("_", " ") for f in files]
    with zipfile.ZipFile(tmp_path / "own.zip", "w") as packed:
        for file in files:
            packed.write(file, file.relative_to(own))
    with open(tmp_path / "own.csv", "w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["path", "label"])
        rows.writerows(zip(files, labels))
    fits = [
        PromptClassifier(BACKBONE, method="probe", folds=2).fit(*given)
        for given in ((own,), (files, labels), (tmp_path / "own.zip",), (tmp_path / "own.csv",))
    ]
    for other in fits[1:]:
        assert torch.equal(other.matrix_, fits[0].matrix_)
        assert other.collection_.fingerprint == fits[0].collection_.fingerprint


def test_equal_runs_give_equal_bits(fitted, own, start):
    again = PromptClassifier(BACKBONE, start=start).fit(own)
    assert torch.equal(again.matrix_, fitted.matrix_)
    assert np.array_equal(again.held_out_, fitted.held_out_)


def test_a_saved_classifier_gives_the_same_bits(fitted, model, own, tmp_path):
    again = PromptClassifier.load(model)
    assert np.array_equal(again.predict_proba(own), fitted.predict_proba(own))
    assert again.predict_sets(own, 0.8) == fitted.predict_sets(own, 0.8)
    assert torch.equal(again.with_classes(["boat"]).matrix_, fitted.with_classes(["boat"]).matrix_)
    fitted.save(tmp_path / "again")
    again.save(tmp_path / "copy")
    again.save(model)  # onto itself
    assert PromptClassifier.load(tmp_path / "copy").predict_sets(own, 0.8)
    names = sorted(p.name for p in model.iterdir())
    assert names == ["README.md", "config.json", "heldout.csv", "model.safetensors", "report.html"]
    for name in names:
        for other in ("again", "copy"):
            assert (tmp_path / other / name).read_bytes() == (model / name).read_bytes(), name


@pytest.mark.whole
@pytest.mark.parametrize("method", METHODS)
def test_every_method_is_kept_with_its_prompt(method, own, start, tmp_path):
    """New classes get the learned prompt with their names, the same before and after saving."""
    made = PromptClassifier(BACKBONE, start=start, method=method, folds=0).fit(own)
    made.save(tmp_path / "m")
    again = PromptClassifier.load(tmp_path / "m")
    wider = again.with_classes(["boat", "lion"])
    assert wider.classes_.tolist() == ["bus", "lion", "sea star", "boat"]
    assert torch.equal(wider.matrix_[:3], made.matrix_)
    assert torch.equal(wider.matrix_, made.with_classes(["boat"]).matrix_)
    assert bool(again.tokens_) == (method in ("start", "start-probe", "coop", "coop-start"))
    only = again.with_classes(["boat", "lion"], replace=True)
    assert only.predict_proba(own).shape == (12, 2)
    assert torch.equal(only.matrix_[1], made.matrix_[1])


def test_other_classes_are_not_promised_anything(fitted, own, tmp_path):
    wider = fitted.with_classes(["boat"])
    with pytest.raises(InputError, match="no held-out pictures of its classes"):
        wider.predict_sets(own)
    for other in (wider, fitted.with_classes(["boat", "plane", "tree"], replace=True)):
        with pytest.raises(InputError, match="other names than it was adapted to is not saved"):
            other.save(tmp_path / "m")
    for names in ([], ["  ...  "]):
        with pytest.raises(InputError, match="at least one|no word"):
            fitted.with_classes(names)


def test_many_pictures_are_opened_one_at_a_time(fitted, monkeypatch):
    """The tower sees a bounded batch, and no picture is held longer than its view is made."""
    from gram import looking

    content = io.BytesIO()
    picture((90, 90, 90), 1, 32).save(content, "png")
    alive, most = [0], [0]

    class Counted(bytes):
        def __init__(self, *_):
            alive[0] += 1
            most[0] = max(most[0], alive[0])

        def __del__(self):
            alive[0] -= 1

    sizes = []
    encode = fitted.backbone_.model.encode_image
    monkeypatch.setattr(
        fitted.backbone_.model,
        "encode_image",
        lambda x, **k: sizes.append(len(x)) or encode(x, **k),
    )
    found = looking.all_opened(lambda name: Counted(content.getvalue()), ["p"] * 300)
    features = looking.test_features(fitted.backbone_, found)
    assert len(features) == 300 and max(sizes) <= looking.BATCH and most[0] <= 2


def kinds_of_pictures(folder, upright):
    """The same picture as people have it, in files of several kinds, and as one that PIL opened."""
    folder.mkdir()
    turned = upright.transpose(Image.Transpose.ROTATE_90)
    exif = Image.Exif()
    exif[0x0112] = 6  # turn it a quarter clockwise
    turned.save(folder / "turned.png", exif=exif)
    frames = {"save_all": True, "append_images": [picture((0, 0, 0), 1)]}
    upright.save(folder / "animated.webp", lossless=True, **frames)
    upright.convert("CMYK").save(folder / "cmyk.tiff")
    Image.merge("RGBA", [*upright.split(), Image.new("L", upright.size, 255)]).save(
        folder / "a.png"
    )
    return sorted(folder.iterdir())


def test_pictures_as_people_have_them(fitted, tmp_path):
    """Turned by EXIF, animated, CMYK, with alpha: all are the picture that a person sees; 16-bit
    grey is grey.
    """
    ramp = np.linspace(0, 255, 48).astype(np.uint8)
    upright = Image.fromarray(
        np.stack([*np.meshgrid(ramp, ramp[::-1]), np.full((48, 48), 90, np.uint8)], 2)
    )
    files = kinds_of_pictures(tmp_path / "in", upright)
    wanted = fitted.features([upright])[0]
    for given in (files, [Image.open(file) for file in files]):
        assert float((fitted.features(given) @ wanted).min()) > 0.9985
    sideways = fitted.features([upright.transpose(Image.Transpose.ROTATE_90)])
    assert float((sideways @ wanted).max()) < 0.995  # it would be seen
    grey = np.tile(ramp, (48, 1))
    Image.fromarray(grey.astype(np.uint16) * 257).save(tmp_path / "deep.png")
    wanted = fitted.predict_proba([Image.fromarray(grey)])
    assert np.allclose(fitted.predict_proba([tmp_path / "deep.png"]), wanted, atol=1e-5)


# --- auto ---


def scene(right_of, n=40):
    """A task of two classes with methods that are right as often as told, on the same pictures."""
    labels = np.arange(n) % 2
    made = {}
    for name, right in right_of.items():
        wrong = np.random.default_rng(0).permutation(n)[: n - round(right * n)]
        guess = labels.copy()
        guess[wrong] = 1 - guess[wrong]
        made[name] = np.eye(2)[guess]
    return labels, made


@pytest.mark.parametrize(
    ("right_of", "taken", "words"),
    [
        ({"zero-shot": 0.9, "probe": 0.9, "coop": 0.9}, "zero-shot", "changed nothing"),
        ({"zero-shot": 0.875, "probe": 0.9, "coop": 0.9}, "zero-shot", "changed nothing"),
        ({"zero-shot": 0.5, "probe": 0.9, "coop": 0.925}, "probe", "not measurably worse"),
        ({"zero-shot": 0.5, "probe": 0.6, "coop": 0.95}, "coop", "every simpler method is meas"),
    ],
)
def test_auto_takes_the_simplest_that_is_not_measurably_worse(right_of, taken, words, monkeypatch):
    labels, made = scene(right_of)
    monkeypatch.setattr("gram.choice.held_out_logits", lambda task, m, *_: made[m])
    task = Task(None, ("a", "b"), "{}", None, 1)
    found = choose(task, list(right_of), None, labels, 4)
    assert found.method == taken and words in found.sentence and "\n" not in found.sentence
    for row in found.rows:
        assert len(row["folds"]) == 4 and np.isclose(np.mean(row["folds"]), row["accuracy"])
        assert np.isclose(row["accuracy"], right_of[row["method"]])


@pytest.mark.whole
def test_no_picture_is_judged_by_what_saw_it(monkeypatch):
    """Random labels can be learned by heart; held out, they are guessed."""
    monkeypatch.setattr(heads, "PULL", 1e-7)
    rng = np.random.default_rng(0)
    pictures = [picture(128, i) for i in range(40)]
    labels = rng.permutation(["bus", "lion"] * 20)
    made = PromptClassifier(BACKBONE, method="probe").fit(pictures, labels)
    assert (made.predict(pictures) == labels).mean() > 0.9
    assert made.comparison_[0]["accuracy"] < 0.8


def test_the_help_names_every_method():
    said = " ".join(gram("adapt", "--help").output.replace("│", " ").split())
    assert all(re.search(rf"\b{name}[ ,.]", said) for name in ("auto", *METHODS))


def test_the_methods_stand_simplest_first(start, fitted):
    assert candidates(None) == ["zero-shot", "probe", "logistic", "coop"]
    tried = [row["method"] for row in fitted.comparison_]
    assert (
        tried
        == list(METHODS)
        == [
            "zero-shot",
            "start",
            "probe",
            "start-probe",
            "logistic",
            "coop",
            "coop-start",
        ]
    )


# --- confidence ---


def test_prediction_sets_hold_the_truth_as_often_as_asked():
    """Against draws whose probabilities are known, over 200 repetitions."""
    rng = np.random.default_rng(0)
    held = []
    for _ in range(200):
        chances = rng.dirichlet([0.5] * 4, size=60)
        truth = np.array([rng.choice(4, p=row) for row in chances])
        scores = np.sort(1 - chances[np.arange(30), truth[:30]])
        marks = sets(chances[30:], set_threshold(scores, 0.9))
        held.append(marks[np.arange(30), truth[30:]].mean())
    assert 0.89 < np.mean(held) < 0.93
    assert set_threshold(np.array([0.1, 0.2, 0.3]), 0.9) == 1.0  # too few
    assert set_threshold(np.linspace(0.1, 0.9, 9), 0.9) == 0.9


def test_temperature_mends_confidence():
    rng = np.random.default_rng(1)
    logits = rng.normal(size=(4000, 5)) * 2
    chances = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    truth = np.array([rng.choice(5, p=row) for row in chances])
    found = temperature_of(3 * logits, truth)
    assert 2.7 < found < 3.3
    boasting = np.exp(3 * logits) / np.exp(3 * logits).sum(axis=1, keepdims=True)
    assert calibration_error(boasting, truth) > 0.15 > 0.03 > calibration_error(chances, truth)


# --- the command line ---


@pytest.mark.whole
def test_the_whole_road(own, start, tmp_path):
    """check, adapt, info, predict and evaluate as a person types them."""
    out = tmp_path / "m"
    assert gram("check", own).exit_code == 0
    common = ("--backbone", BACKBONE, "--start", start)
    done = gram("adapt", own, "--out", out, *common, "--folds", 2, "--json")
    assert done.exit_code == 0, done.output
    told = json.loads(done.stdout)
    assert "this will take about" in done.stderr and told["sentence"] and told["folds"] == 2
    shown = json.loads(gram("info", out, "--json").stdout)
    assert (
        shown["classes"] == ["bus", "lion", "sea star"] and len(shown["backbone"]["sha256"]) == 64
    )

    files = sorted(own.rglob("*.png"))
    asked = ("predict", out, own, "--top", 2, "--unsure", 0.5)
    rows = json.loads(gram(*asked, "--format", "json").stdout)
    assert [row["path"] for row in rows] == list(map(str, files))
    assert all(len(row["top"]) == 2 and row["unsure"] == (len(row["set"]) != 1) for row in rows)
    table = pl.read_csv(io.StringIO(gram(*asked, "--format", "csv").stdout))
    assert table["label"].to_list() == [row["label"] for row in rows]
    assert {"probability", "label_2", "probability_2", "unsure", "set"} <= set(table.columns)
    parquet = gram(*asked, "--format", "parquet").stdout_bytes
    assert pl.read_parquet(io.BytesIO(parquet))["path"].to_list() == list(map(str, files))
    assert "sea star" in gram("predict", out, own).stdout

    other = json.loads(
        gram("predict", out, files[0], "--names", "boat,plane", "--format", "json").stdout
    )
    assert other[0]["label"] in ("boat", "plane")
    more = gram("predict", out, files[0], "--names", "+boat", "--top", 9, "--format", "json")
    assert len(json.loads(more.stdout)[0]["top"]) == 4

    found = json.loads(gram("evaluate", out, own, "--json").stdout)
    assert found["pictures"] == 12 and found["low"] < found["accuracy"] <= found["high"]
    assert set(found["classes"]) == {"bus", "lion", "sea star"}
    assert "95% interval" in gram("evaluate", out, own).stdout


def test_copies_go_where_they_are_named(model, own, tmp_path):
    (tmp_path / "in" / "a").mkdir(parents=True)
    (tmp_path / "in" / "b").mkdir()
    shutil.copy(own / "bus" / "0.png", tmp_path / "in" / "a" / "x.png")
    shutil.copy(own / "bus" / "1.png", tmp_path / "in" / "b" / "x.png")
    done = gram("predict", model, tmp_path / "in", "--copy-to", tmp_path / "out")
    assert done.exit_code == 0
    copied = sorted(
        p.relative_to(tmp_path / "out").parts[0] for p in (tmp_path / "out").rglob("*.png")
    )
    assert copied == ["bus", "bus"]  # neither took the other's place
    named = gram(
        "predict", model, tmp_path / "in", "--names", "../up,/etc", "--copy-to", tmp_path / "far"
    )
    assert named.exit_code == 0 and not (tmp_path / "up").exists()
    assert len(list((tmp_path / "far").rglob("*.png"))) == 2


def test_report_and_card_say_what_was_measured(fitted, model):
    page = (model / "report.html").read_text()
    assert fitted.sentence_ in page and "http" not in page.replace("http-equiv", "")
    for row in fitted.comparison_:
        assert row["title"] in page and f"{100 * row['folds'][0]:.1f}" in page
    card = (model / "README.md").read_text()
    assert "license: unknown" in card and "sea star: 4" in card and fitted.sentence_ in card
    held = pl.read_csv(model / "heldout.csv")
    assert held["right"].mean() == pytest.approx(
        next(r["accuracy"] for r in fitted.comparison_ if r["method"] == fitted.method_)
    )


def test_a_name_in_a_page_is_text(own, tmp_path):
    """What a folder is called is not taken for HTML."""
    folder = tmp_path / "in"
    shutil.copytree(own, folder)
    (folder / "bus").rename(folder / "<script>alert(1)<b>bus")
    made = PromptClassifier(BACKBONE, method="zero-shot", folds=2).fit(folder)
    made.save(tmp_path / "m")
    page = (tmp_path / "m" / "report.html").read_text()
    assert "<script>" not in page and "&lt;script&gt;" in page


def test_exit_codes(own, tmp_path):
    done = process("adapt", tmp_path / "nowhere", "--out", tmp_path / "m", "--backbone", BACKBONE)
    assert done.returncode == 1 and done.stderr.count("\n") == 1
    assert done.stderr.startswith("gram: error: ") and "nowhere" in done.stderr
    for wrong in (
        ("adapt", own),
        ("adapt", own, "--out", tmp_path / "m"),  # no backbone
        ("adapt", own, "--out", tmp_path / "m", "--backbone", BACKBONE, "--folds", 1),
        ("predict", own, own, "--unsure", "7"),
        ("predict", own, own, "--format", "xml"),
        ("dance",),
    ):
        assert gram(*wrong).exit_code == 2, wrong


# --- bad input: one clear message, nothing written ---


def empty(folder):
    for file in folder.rglob("*.png"):
        file.unlink()


def one_class(folder):
    shutil.rmtree(folder / "bus")
    shutil.rmtree(folder / "sea_star")


def one_picture(folder):
    for file in sorted((folder / "bus").iterdir())[1:]:
        file.unlink()


def in_two_classes(folder):
    shutil.copy(folder / "bus" / "0.png", folder / "lion" / "copy.png")


def no_word(folder):
    (folder / "bus").rename(folder / "___")


def too_long(folder):
    (folder / "bus").rename(folder / " ".join(["bus"] * 40))


def case_only(folder):
    shutil.copytree(folder / "bus", folder / "Bus")
    for i, file in enumerate((folder / "Bus").iterdir()):
        picture((10, 10, 10), i).save(file)


def no_picture(folder):
    (folder / "bus" / "0.png").write_bytes(b"no picture")


def many(folder):
    for i in range(10_000):
        (folder / f"class {i}").mkdir()
        (folder / f"class {i}" / "p.png").write_bytes(b"%d" % i)


def deep(folder):
    (folder / "train").mkdir()
    (folder / "bus").rename(folder / "train" / "bus")


def no_pictures_in_one(folder):
    for file in (folder / "bus").iterdir():
        file.unlink()


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (empty, "holds no pictures"),
        (one_class, "only the class 'lion'"),
        (one_picture, "class 'bus' has one picture"),
        (in_two_classes, "'bus/0.png' and 'lion/copy.png' are the same picture"),
        (no_word, "no word that the text tower could read"),
        (too_long, "fit the text tower beside the prompt; shorten it"),
        (case_only, "'Bus' and 'bus' differ in case"),
        (no_picture, "bus/0.png: its content is no picture of a known format"),
        (many, "10003 classes, and 1000 are the most"),
        (deep, "'train/bus/0.png' does not fit <class>/<picture>"),
        (no_pictures_in_one, "the folder 'bus' holds no pictures"),
    ],
)
def test_a_bad_folder_is_named_and_nothing_is_written(spoil, words, own, tmp_path):
    folder = tmp_path / "in"
    shutil.copytree(own, folder)
    spoil(folder)
    before = sorted(p.name for p in tmp_path.iterdir())
    with pytest.raises(InputError, match=re.escape(words)) as caught:
        gram("adapt", folder, "--out", tmp_path / "m", "--backbone", BACKBONE, "--method", "probe")
    assert "\n" not in str(caught.value)
    assert sorted(p.name for p in tmp_path.iterdir()) == before


def test_a_packed_picture_that_is_damaged_is_named(own, tmp_path):
    """A zip's own checks fail while it is read."""
    files = [(str(f.relative_to(own)), f.read_bytes()) for f in sorted(own.rglob("*.png"))]
    path = tmp_path / "own.zip"
    with zipfile.ZipFile(path, "w") as packed:
        for name, content in files:
            packed.writestr(name, content)
    content = bytearray(path.read_bytes())
    content[content.index(b"IDAT") + 8] ^= 255
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"'bus/0.png' cannot be read \(Bad CRC.*remove it"):
        PromptClassifier(BACKBONE).fit(path)
    assert "cannot be read" in json.loads(gram("check", path, "--json").stdout)["problems"][0]


@pytest.mark.parametrize("place", ["file/m", "m.txt"])
def test_a_place_that_cannot_be_written_is_said_before_anything_is_learned(place, own, tmp_path):
    (tmp_path / "file").write_text("here already")
    (tmp_path / "m.txt").write_text("here already")
    done = process("adapt", own, "--out", tmp_path / place, "--backbone", BACKBONE)
    assert done.returncode == 1 and done.stderr.count("\n") == 1, done.stderr
    assert "choose another" in done.stderr


def test_what_the_file_system_says_is_one_line(model, own, tmp_path):
    (tmp_path / "taken").write_text("a file")
    done = process("predict", model, own / "bus", "--copy-to", tmp_path / "taken")
    assert done.returncode == 1 and done.stderr.count("\n") == 1, done.stderr
    assert str(tmp_path / "taken") in done.stderr


def test_names_that_are_one_prompt_are_refused_wherever_they_come_from(fitted, own):
    files = sorted(own.rglob("*.png"))
    labels = ["bus"] * 4 + ["Bus"] * 4 + ["lion"] * 4
    with pytest.raises(InputError, match="'Bus' and 'bus' differ in case"):
        PromptClassifier(BACKBONE).fit(files, labels)
    for names in (["Lion"], ["sea_star"], ["boat", "BOAT"]):
        with pytest.raises(InputError, match="differ in case or spaces only"):
            fitted.with_classes(names)


def test_check_lists_every_problem(own, tmp_path):
    folder = tmp_path / "in"
    shutil.copytree(own, folder)
    in_two_classes(folder)
    (folder / "lion" / "3.png").write_bytes(b"no picture")
    done = gram("check", folder, "--json")
    told = json.loads(done.stdout)
    assert done.exit_code == 1 and len(told["problems"]) == 2 and told["classes"]["bus"] == 4


def pack(path, entries):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as packed:
        for name, content in entries:
            packed.writestr(name, content)
    return path


@pytest.mark.parametrize(
    "name", ["../x/1.png", "/x/1.png", "a/../../x.png", "..\\x\\1.png", "C:/x/1.png"]
)
def test_a_zip_that_leads_out_is_refused(name, tmp_path):
    with pytest.raises(InputError, match="leads out of the zip"):
        PromptClassifier(BACKBONE).fit(pack(tmp_path / "z.zip", [(name, b"x"), ("a/1.png", b"y")]))


def test_a_zip_bomb_is_not_unpacked(tmp_path, monkeypatch):
    monkeypatch.setattr(zipfile.ZipFile, "read", lambda *_: pytest.fail("unpacked"))
    monkeypatch.setattr("gram.collection.MOST_BYTES", 10 << 20)
    bomb = pack(tmp_path / "z.zip", [("a/1.png", bytes(11 << 20)), ("b/1.png", b"y")])
    with pytest.raises(InputError, match="'a/1.png' would unpack to 11 MiB"):
        PromptClassifier(BACKBONE).fit(bomb)
    (tmp_path / "half.zip").write_bytes(bomb.read_bytes()[:-40])
    with pytest.raises(InputError, match="neither a folder, a complete zip"):
        PromptClassifier(BACKBONE).fit(tmp_path / "half.zip")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("file,class\na,b\n", "must name 'path' and 'label'"),
        ("path,label\nx.png,a\n", "line 2: there is no picture"),
        ("path,label\n,a\n", "line 2: has no path or no label"),
        ("", "must name 'path' and 'label'"),
    ],
)
def test_a_bad_table_is_named_by_line(text, words, tmp_path):
    (tmp_path / "t.csv").write_text(text)
    with pytest.raises(InputError, match=words):
        PromptClassifier(BACKBONE).fit(tmp_path / "t.csv")


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"backbone": None}, "no backbone is given"),
        ({"backbone": "no-such/model"}, "neither a folder nor an open_clip name"),
        ({"method": "magic"}, "no method 'magic'"),
        ({"method": "coop-start"}, "needs a meta-learned start"),
        ({"template": "a photo"}, "must hold {} once"),
        ({"template": "{0} {}"}, "must hold {} once"),
        ({"folds": 1}, "take 0, or 2"),
        ({"seed": -1}, "'seed' is -1; take a number from 0"),
        ({"seed": 2**32}, "'seed' is 4294967296"),
    ],
)
def test_wrong_settings_are_named(settings, words, own):
    with pytest.raises(InputError, match=re.escape(words)):
        PromptClassifier(**{"backbone": BACKBONE} | settings).fit(own)


def test_a_backbone_by_name_needs_the_network_and_says_so(own, tmp_path):
    """Tests run without one (HF_HUB_OFFLINE)."""
    words = ["adapt", own, "--out", tmp_path / "m", "--backbone", "ViT-B-32/openai"]
    done = CliRunner().invoke(app, list(map(str, words)))
    assert isinstance(done.exception, InputError) and not (tmp_path / "m").exists()
    assert "obtained from the Hugging Face repository timm/" in done.stderr
    assert "could not be obtained" in str(done.exception)


def other_backbone(folder):
    shutil.copytree(BACKBONE, folder)
    config = json.loads((folder / "open_clip_config.json").read_text())
    config["preprocess_cfg"]["mean"] = [0.4, 0.4, 0.4]
    (folder / "open_clip_config.json").write_text(json.dumps(config))
    return folder


def test_a_damaged_model_is_named(model, tmp_path):
    def spoiled(change):
        shutil.rmtree(tmp_path / "m", ignore_errors=True)
        shutil.copytree(model, tmp_path / "m")
        change(tmp_path / "m")
        with pytest.raises(InputError) as caught:
            PromptClassifier.load(tmp_path / "m")
        return str(caught.value)

    weights = (model / "model.safetensors").read_bytes()
    config = json.loads((model / "config.json").read_text())

    def rewritten(**changes):
        return lambda m: (m / "config.json").write_text(json.dumps(config | changes))

    assert "model.safetensors: missing" in spoiled(lambda m: (m / "model.safetensors").unlink())
    assert "config.json: missing" in spoiled(lambda m: (m / "config.json").unlink())
    assert "model.safetensors: truncated" in spoiled(
        lambda m: (m / "model.safetensors").write_bytes(weights[:-10])
    )
    assert "config.json: damaged" in spoiled(lambda m: (m / "config.json").write_text("{"))
    assert "version 2" in spoiled(rewritten(version=2))
    for key in ("classes", "data", "prompt", "temperature"):
        without = {name: value for name, value in config.items() if name != key}
        text = json.dumps(without)
        told = spoiled(lambda m, text=text: (m / "config.json").write_text(text))
        assert f"config.json: damaged ('{key}" in told
    assert "names 2 classes" in spoiled(rewritten(classes=["bus", "lion"]))
    assert "is not of a classifier" in spoiled(rewritten(format="else"))
    assert "not at /nowhere any more" in spoiled(
        rewritten(backbone=config["backbone"] | {"path": "/nowhere"})
    )
    with pytest.raises(InputError, match="is another one"):
        PromptClassifier.load(model, other_backbone(tmp_path / "other"))
    with pytest.raises(InputError, match="no such model folder"):
        PromptClassifier.load(tmp_path / "nothing")


def test_what_is_no_classifier_is_not_replaced(fitted, own, tmp_path):
    (tmp_path / "m").mkdir()
    (tmp_path / "m" / "thesis.txt").write_text("years of work")
    with pytest.raises(InputError, match="is no classifier"):
        fitted.save(tmp_path / "m")
    assert (tmp_path / "m" / "thesis.txt").exists()


def test_a_start_for_other_tokens_is_refused(own, start, tmp_path):
    save_start(Start("coop", 1, {"text": torch.zeros(4, 64)}, {}, "none"), tmp_path / "narrow")
    with pytest.raises(InputError, match="64 wide"):
        PromptClassifier(BACKBONE, start=tmp_path / "narrow").fit(own)


def test_minutes_leave_out_what_takes_too_long(own, start, tmp_path, monkeypatch):
    # as on a machine where a step of tuning takes a second
    monkeypatch.setattr(budget, "_costs", lambda _: budget.Costs(1e-3, 1e-3, 1.0, 1.0, 0.0))
    done = gram(
        "adapt", own, "--out", tmp_path / "m", "--backbone", BACKBONE, "--minutes", 0.02, "--json"
    )
    assert done.exit_code == 0 and "coop" in json.loads(done.stdout)["left_out"]
    assert "left out, to stay within 0.02 minutes" in done.stderr
    with pytest.raises(InputError, match="--minutes is 0;"):
        gram("adapt", own, "--out", tmp_path / "n", "--backbone", BACKBONE, "--minutes", 0)
    assert not (tmp_path / "n").exists()
