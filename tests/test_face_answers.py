"""What is passed over, doubled or renamed is told, and what one command writes the next reads."""

import copy
import io
import json
import pickle
import shutil
import unicodedata
import zipfile

import joblib
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from sklearn.base import clone
from sklearn.model_selection import GridSearchCV, LeaveOneOut, cross_val_predict, cross_val_score
from test_face import BACKBONE, CLASSES, gram, other_backbone, pack, picture, save_pictures

from gram import PromptClassifier
from gram.budget import single_steps
from gram.collection import listed, read_collection
from gram.inputs import checked_labels
from gram.output import print_evaluation, write_rows
from pipeline.errors import InputError
from pipeline.gram.tune import warn_of_single_steps

OTHERS = (
    "passed over, as no pictures that are read: 4 files (2 .heic, 1 .txt, 1 without an ending; "
    "the first: "
)


@pytest.fixture(scope="module")
def own(tmp_path_factory):
    return save_pictures(tmp_path_factory.mktemp("own") / "pictures")


@pytest.fixture(scope="module")
def learned(own):
    return PromptClassifier(BACKBONE, method="probe", folds=2).fit(own)


@pytest.fixture(scope="module")
def kept(learned, tmp_path_factory):
    folder = tmp_path_factory.mktemp("model") / "m"
    learned.save(folder)
    return folder


def encoded(colour, seed):
    packed = io.BytesIO()
    picture(colour, seed).save(packed, "png")
    return packed.getvalue()


def table(path, rows, header="path,label"):
    path.write_text("\n".join([header, *rows]) + "\n", encoding="utf-8")
    return path


def named(*arguments):
    done = gram("predict", *arguments, "--format", "json")
    return json.loads(done.stdout), done


# --- what is passed over ---


def with_others(folder):
    """Beside pictures, at the top, and in folders that hold nothing else."""
    for name in ("b.HEIC", "c", "album/d.heic", "album/notes.txt"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"x")
    return folder


@pytest.mark.parametrize("packed", [False, True])
def test_predict_counts_and_names_what_it_passes_over(packed, kept, own, tmp_path):
    folder = with_others(tmp_path / "in")
    shutil.copy(own / "bus" / "0.png", folder / "a.png")
    place = folder
    if packed:
        files = [f for f in folder.rglob("*") if f.is_file()]
        entries = [(str(f.relative_to(folder)), f.read_bytes()) for f in files]
        place = pack(tmp_path / "in.zip", entries)
    rows, done = named(kept, place)
    assert [row["path"] for row in rows] == [str(place / "a.png")]
    assert OTHERS in done.stderr and done.exit_code == 0
    table = gram("predict", kept, place, "--format", "csv")
    assert len(table.stdout.splitlines()) == 2 and OTHERS in table.stderr
    with pytest.warns(UserWarning, match="no pictures that are read: 4 files"):
        assert len(PromptClassifier.load(kept).predict(place)) == 1


def test_every_command_says_what_it_passes_over(kept, own, tmp_path):
    folder = shutil.copytree(own, tmp_path / "in")
    for name in ("b.HEIC", "bus/c", "bus/d.heic", "lion/notes.txt"):
        (folder / name).write_bytes(b"x")
    (folder / ".net").mkdir()
    made = ("--out", tmp_path / "m", "--backbone", BACKBONE, "--method", "probe", "--folds", 0)
    for words in (("check", folder), ("evaluate", kept, folder), ("adapt", folder, *made)):
        done = gram(*words, "--json")
        assert done.exit_code == 0, done.output
        notes = json.loads(done.stdout)["notes"]
        assert any(note.startswith(OTHERS) for note in notes), notes
        assert "the hidden folder '.net' is left out" in notes
        assert OTHERS in gram(*words).stderr or words[0] == "adapt"
    with pytest.warns(UserWarning) as caught:
        PromptClassifier(BACKBONE, method="probe", folds=0).fit(folder)
    assert [str(one.message) for one in caught] == notes


@pytest.mark.parametrize("packed", [False, True])
def test_a_class_of_which_nothing_is_read_does_not_vanish(packed, own, tmp_path):
    folder = shutil.copytree(own, tmp_path / "in")
    (folder / "cat").mkdir()
    (folder / "cat" / "a.heic").write_bytes(b"x")
    (folder / "dog").mkdir()
    if packed:
        with zipfile.ZipFile(tmp_path / "in.zip", "w") as file:
            for path in folder.rglob("*"):
                file.write(path, path.relative_to(folder))
        folder = tmp_path / "in.zip"
    problems = json.loads(gram("check", folder, "--json").stdout)["problems"]
    assert [p.split(": ")[1].split(";")[0] for p in problems] == [
        "the folder 'cat' holds no pictures",
        "the folder 'dog' holds no pictures",
    ]


def test_a_named_file_that_is_no_picture_is_named(kept, own, tmp_path):
    (tmp_path / "notes.txt").write_text("x")
    with pytest.raises(InputError, match="notes.txt: its content is no picture"):
        gram("predict", kept, own / "bus" / "0.png", tmp_path / "notes.txt")


# --- what predict takes ---


def test_predict_takes_zips_and_tables_and_gives_a_row_for_each(kept, own, tmp_path):
    files = sorted(own.rglob("*.png"))
    wanted = [row["label"] for row in named(kept, own)[0]]
    zipped = pack(tmp_path / "p.zip", [(str(f.relative_to(own)), f.read_bytes()) for f in files])
    rows, _ = named(kept, zipped)
    assert [row["label"] for row in rows] == wanted
    assert [row["path"] for row in rows] == [str(zipped / f.relative_to(own)) for f in files]
    rows, _ = named(kept, table(tmp_path / "p.csv", [f"{f},1" for f in files], "path,id"))
    assert [row["label"] for row in rows] == wanted
    assert [row["path"] for row in rows] == list(map(str, files))
    twice = table(tmp_path / "twice.csv", [files[0].name, files[0].name], "path")
    shutil.copy(files[0], tmp_path)
    for given in ((files[0], files[0]), (own / "bus", own / "bus" / "0.png"), (twice,)):
        rows, _ = named(kept, *given)
        assert len(rows) == {1: 2, 2: 2}[len(given)] + (3 if given[0] == own / "bus" else 0)
    done = gram("predict", kept, zipped, twice, "--copy-to", tmp_path / "out")
    assert done.exit_code == 0, done.output
    assert len(list((tmp_path / "out").rglob("*.png"))) == 12  # two are a copy of the first


def test_a_row_that_cannot_be_read_is_named_and_the_others_answered(kept, own, tmp_path):
    given = table(tmp_path / "p.csv", [str(own / "bus" / "0.png"), "gone.png"], "path")
    with pytest.raises(InputError, match=r"gone.png: not a picture that can be read .*the others"):
        gram("predict", kept, given)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"file\na.png\n", "its first line must name 'path'"),
        (b'path\n""\n', "line 2: has no path"),
        (b"path\n", "holds no pictures"),
        (b"path,path\na,b\n", "names the column 'path' twice"),
        (b'path\n"a.png\nb.png\n', "not a CSV in UTF-8"),
        ("path\nä.png\n".encode("latin-1"), "not a CSV in UTF-8"),
        ("path\na.png\n".encode("utf-16"), "not a CSV in UTF-8"),
    ],
)
def test_a_table_of_paths_that_is_wrong_is_named(content, words, tmp_path):
    (tmp_path / "p.csv").write_bytes(content)
    with pytest.raises(InputError, match=words):
        listed(tmp_path / "p.csv")


def test_no_row_of_a_table_changes_or_vanishes_without_a_word(own, tmp_path):
    """A comma in a label, a quote that swallows lines, blanks about names."""
    one = own / "bus" / "0.png"
    for rows, words in (
        ([f"{one},lion, the king"], "line 2: has more fields than the first line names"),
        ([f'{one},"lion', f"{one},bus"], "not a CSV in UTF-8"),
    ):
        with pytest.raises(InputError, match=words):
            read_collection(table(tmp_path / "p.csv", rows))
    rows = [f"{own / 'bus' / '0.png'}, bus", f"{own / 'lion' / '0.png'},lion "]
    found = read_collection(table(tmp_path / "p.csv", rows, "\ufeffpath, label"))
    assert found.labels == ["bus", "lion"]
    both = table(tmp_path / "p.csv", [f"{one},bus", f"{one},bus", f"{own / 'lion' / '0.png'},lion"])
    assert "copies of pictures of the same class, left out: 1" in read_collection(both).notes[0]
    assert len(read_collection(both, to_learn=False).files) == 3


# --- evaluate ---


def test_evaluate_counts_rows_as_given_and_knows_its_own_pictures(kept, own, tmp_path):
    folder = tmp_path / "in"
    for name, colour in CLASSES.items():
        (folder / name).mkdir(parents=True)
        for i in (50, 51):
            picture(colour, i).save(folder / name / f"{i}.png")
    shutil.copy(folder / "bus" / "50.png", folder / "bus" / "again.png")
    shutil.copy(own / "lion" / "0.png", folder / "lion")
    done = gram("evaluate", kept, folder, "--json")
    found = json.loads(done.stdout)
    assert found["pictures"] == 8 and found["classes"]["bus"]["pictures"] == 3
    assert found["adapted_to"] == 1
    assert "copies of other pictures of the same class, which count too: 1" in done.stderr
    assert "1 of 8 pictures are the very ones that the model was adapted to" in done.stderr
    again = json.loads(gram("evaluate", kept, own, "--json").stdout)
    assert again["adapted_to"] == again["pictures"] == 12


def test_evaluate_takes_one_class_and_names_that_prompts_take_for_the_same(kept, own, tmp_path):
    shutil.copytree(own / "bus", tmp_path / "one" / "BUS")
    done = gram("evaluate", kept, tmp_path / "one", "--json")
    assert json.loads(done.stdout)["classes"].keys() == {"bus"}
    assert "the class 'BUS' is taken for the model's 'bus'" in done.stderr
    shutil.copytree(own / "bus", tmp_path / "two" / "plane")
    with pytest.raises(InputError, match=r"'plane' is none of the model's \(bus, lion, sea star\)"):
        gram("evaluate", kept, tmp_path / "two")


def test_a_model_that_does_not_know_its_pictures_says_nothing_of_them(kept, own, tmp_path):
    """One that an earlier version wrote."""
    folder = shutil.copytree(kept, tmp_path / "m")
    config = json.loads((folder / "config.json").read_text())
    del config["data"]["sha256"]
    (folder / "config.json").write_text(json.dumps(config))
    assert json.loads(gram("evaluate", folder, own, "--json").stdout)["adapted_to"] == 0


# --- what one command writes, the next reads ---

LABELS = [
    "CD/DVD",
    "on_off",
    "a:b",
    ".hidden",
    "50%",
    "x_y z",
    "CON",
    unicodedata.normalize("NFC", "café"),
    unicodedata.normalize("NFD", "thé"),
    "_unsure",
    "what is unsure",
    "%2F slash",
    "end.",
]


def test_class_names_come_back_from_the_folders_of_copies(tmp_path):
    rng = np.random.default_rng(0)
    rows = []
    for place, label in enumerate(LABELS):
        colour = rng.uniform(0, 255, 3)
        for i in range(2):
            (tmp_path / f"{place}-{i}.png").write_bytes(encoded(colour, i))
            rows.append(f"{place}-{i}.png,{label}")
    source = table(tmp_path / "own.csv", rows)
    made = PromptClassifier(BACKBONE, method="logistic", folds=0).fit(source)
    assert made.names_ == sorted(LABELS)
    made.save(tmp_path / "m")
    done = gram("predict", tmp_path / "m", source, "--copy-to", tmp_path / "sorted")
    assert done.exit_code == 0, done.output
    again = read_collection(tmp_path / "sorted", to_learn=False)
    assert set(again.labels) == set(made.predict(source)) and len(again.files) == len(rows)
    found = json.loads(gram("evaluate", tmp_path / "m", tmp_path / "sorted", "--json").stdout)
    assert found["accuracy"] == 1.0 and not any("taken for" in note for note in found["notes"])
    anew = PromptClassifier(BACKBONE, method="probe", folds=0).fit(tmp_path / "sorted")
    assert anew.names_ == sorted(set(made.predict(source)))


def test_pictures_of_no_one_class_are_no_class(kept, own, tmp_path):
    """`--unsure` with `--copy-to` makes a folder that is not one."""
    out = tmp_path / "out"
    gram("predict", kept, own, "--copy-to", out)
    shutil.copytree(own / "bus", out / "_unsure")
    for spoil in (lambda: None, lambda: [f.unlink() for f in (out / "_unsure").iterdir()]):
        spoil()
        done = gram("evaluate", kept, out, "--json")
        assert set(json.loads(done.stdout)["classes"]) == {"bus", "lion", "sea star"}
        left = "left out until you file them by class, as none was sure: 4 files" in done.stderr
        assert left == any((out / "_unsure").iterdir())
    shutil.copy(own / "bus" / "0.png", out / "_unsure")
    assert len(named(kept, out)[0]) == 13  # to name them is another matter


# --- a classifier that was loaded, pickled or copied ---


def test_what_was_measured_is_there_after_loading(learned, kept, own, tmp_path):
    again = PromptClassifier.load(kept)
    assert np.array_equal(again.judged, learned.judged)
    assert again.get_params()["folds"] == 2 and again.threshold(0.5) == learned.threshold(0.5)
    with pytest.raises(InputError, match="say nothing about other names"):
        _ = again.with_classes(["boat"]).judged
    unmeasured = PromptClassifier(BACKBONE, method="probe", folds=0).fit(own)
    unmeasured.save(tmp_path / "m")
    with pytest.raises(InputError, match="nothing was held out; adapt with --folds 2"):
        _ = PromptClassifier.load(tmp_path / "m").judged


def test_a_model_of_before_says_that_an_earlier_version_kept_less(kept, tmp_path):
    import hashlib

    folder = shutil.copytree(kept, tmp_path / "m")
    tensors = load_file(folder / "model.safetensors")
    save_file(
        {k: v for k, v in tensors.items() if k != "held_out_logits"}, folder / "model.safetensors"
    )
    config = json.loads((folder / "config.json").read_text())
    content = (folder / "model.safetensors").read_bytes()
    config["weights_sha256"] = hashlib.sha256(content).hexdigest()
    (folder / "config.json").write_text(json.dumps(config))
    again = PromptClassifier.load(folder)
    assert 0 <= again.threshold(0.5) <= 1
    with pytest.raises(InputError, match="an earlier version kept none with a classifier"):
        _ = again.judged


def dumped(model, folder):
    joblib.dump(model, folder / "m.joblib")
    return joblib.load(folder / "m.joblib")


@pytest.mark.parametrize(
    "another",
    [
        lambda model, folder: pickle.loads(pickle.dumps(model)),
        dumped,
        lambda model, folder: copy.deepcopy(model),
        lambda model, folder: copy.copy(model),
    ],
)
@pytest.mark.parametrize("source", ["folder", "zip", "csv", "list"])
def test_a_fitted_classifier_is_pickled_without_its_towers(another, source, own, tmp_path):
    files = sorted(own.rglob("*.png"))
    labels = [f.parent.name for f in files]
    given = {
        "folder": lambda: (own,),
        "zip": lambda: (
            pack(tmp_path / "z.zip", [(str(f.relative_to(own)), f.read_bytes()) for f in files]),
        ),
        "csv": lambda: (
            table(tmp_path / "t.csv", [f"{f},{n}" for f, n in zip(files, labels, strict=True)]),
        ),
        "list": lambda: (files, labels),
    }[source]()
    made = PromptClassifier(BACKBONE, method="zero-shot", folds=0).fit(*given)
    assert len(pickle.dumps(made)) < 1 << 20
    again = another(made, tmp_path)
    assert again.collection_.picture(0).size == (48, 48)
    if source == "folder":
        assert np.array_equal(again.predict_proba(own), made.predict_proba(own))
        assert again.with_classes(["boat"]).names_ == [*made.names_, "boat"]
        assert clone(again).get_params() == made.get_params()


def test_a_pickle_asks_for_its_own_backbone(own, tmp_path):
    backbone = shutil.copytree(BACKBONE, tmp_path / "there")
    made = PromptClassifier(backbone, method="zero-shot", folds=0).fit(own)
    packed = pickle.dumps(made)
    backbone.rename(tmp_path / "elsewhere")
    again = pickle.loads(packed)
    with pytest.raises(InputError, match="neither a folder nor an open_clip name"):
        again.predict(own)
    again.set_params(backbone=other_backbone(tmp_path / "other"))
    with pytest.raises(InputError, match="is another backbone"):
        again.predict(own)
    again.set_params(backbone=tmp_path / "elsewhere", template="{} in space.")
    assert np.array_equal(again.predict_proba(own), made.predict_proba(own))
    wider = [model.with_classes(["boat"]).matrix_ for model in (again, made)]
    assert torch.equal(*wider)  # parameters are of the next `fit`
    again.save(tmp_path / "m")
    assert json.loads((tmp_path / "m" / "config.json").read_text())["template"] == made.template
    assert not hasattr(PromptClassifier(), "backbone_")


# --- labels of every type, and scikit-learn's ways to judge ---


@pytest.fixture(scope="module")
def files(own):
    return sorted(own.rglob("*.png"))


def scored(**changes):
    return PromptClassifier(BACKBONE, **{"method": "probe", "folds": 0} | changes)


@pytest.mark.parametrize(
    "values",
    [
        ["a", "b", "c"],
        [10, 2, 3],
        np.array([10, 2, 3], dtype=np.int32),
        np.array([1.0, 20.0, 3.0]),
        np.array(["bus", "lion", "star"], dtype=object),
    ],
)
def test_labels_come_back_in_the_type_that_was_given(values, files, tmp_path):
    y = np.repeat(np.asarray(values), 4)
    for given in (y, y.tolist()):
        made = scored().fit(files, given)
        assert np.array_equal(made.classes_, np.unique(y))
        assert made.classes_.dtype.kind == np.unique(np.array(y.tolist())).dtype.kind
        assert (made.predict(files) == y).all() and made.score(files, given) == 1
        assert made.predict_sets(files) if made.scores_ is not None else True
    made.save(tmp_path / "m")
    again = PromptClassifier.load(tmp_path / "m")
    assert np.array_equal(again.classes_, made.classes_)
    assert (again.predict(files) == y).all()


def test_truth_values_are_classes(files):
    y = np.repeat([True, False], [4, 4])
    made = scored().fit(files[:8], y)
    assert made.classes_.dtype == bool and made.names_ == ["False", "True"]
    assert (made.predict(files[:8]) == y).all()


@pytest.mark.parametrize(
    "y",
    [
        np.repeat([2, 10, 3], 4),
        pytest.param(np.repeat(["z", "b", "c"], 4), marks=pytest.mark.whole),
    ],
)
def test_scikit_learn_judges_it(y, files):
    for scoring in (None, "accuracy", "neg_log_loss", "roc_auc_ovr", "f1_macro"):
        found = cross_val_score(scored(), files, y, cv=2, scoring=scoring, error_score="raise")
        assert np.isfinite(found).all() and (scoring == "neg_log_loss" or found.min() > 0.9)
    assert (cross_val_predict(scored(), files, y, cv=2) == y).all()
    one = cross_val_score(scored(), files, y, cv=LeaveOneOut(), error_score="raise")
    assert len(one) == 12 and one.mean() > 0.9
    grid = {"method": ["zero-shot", "probe"]}
    best = GridSearchCV(scored(), grid, cv=2, error_score="raise").fit(files, y)
    assert best.best_params_ == {"method": "probe"} and (best.predict(files) == y).all()


@pytest.mark.parametrize(
    ("labels", "words"),
    [
        ([1, "a"], r"several types \(int at 0, str at 1\)"),
        ([1, True], "several types"),
        (["a", None], "label 1 is None"),
        (["a", float("nan")], "label 1 is nan"),
        ([1.0, float("inf")], "label 1 is inf"),
        ([1.0, 0.5], "label 1 is 0.5, and a class is no measure"),
        ([b"a", b"b"], "label 0 is b'a'"),
        ([["a"], ["b"]], r"label 0 is \['a'\]"),
        (np.array([[1], [2]]), r"one for each picture; these are \(2, 1\)"),
        ("ab", "one for each picture; these are of one text"),
    ],
)
def test_labels_that_are_none_are_named(labels, words):
    with pytest.raises(InputError, match=words):
        checked_labels(labels)


def test_lengths_that_differ_and_nothing_are_named(files):
    with pytest.raises(InputError, match="12 pictures and 1 labels"):
        scored().fit(files, ["a"])
    with pytest.raises(InputError, match="holds no pictures"):
        scored().fit([], [])


def test_probabilities_that_are_no_numbers_are_no_answer(learned, files):
    spoiled = copy.copy(learned)
    spoiled.matrix_ = learned.matrix_ * torch.nan
    with pytest.raises(InputError, match="probabilities of picture 0 are not numbers"):
        spoiled.predict(files)
    assert len(learned.predict([])) == 0


# --- tables where there is no terminal ---

LONG = "/folder" * 40 + "/[red]a:bus:b.png"


def rows_of(path, label):
    chance = {"label": label, "probability": 0.5}
    return [{"path": path, **chance, "top": [chance]}]


def evaluation_of(name):
    row = {"pictures": 1, "accuracy": 1.0, "low": 0.5, "high": 1.0}
    return row | {"calibration_error": 0.0, "classes": {name: row}}


def test_without_a_terminal_nothing_is_cut_or_wrapped(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "40")
    write_rows(rows_of(LONG, "a class of many words " * 9), "table")
    print_evaluation(evaluation_of(LONG))
    told = capsys.readouterr().out
    assert told.count(LONG) == 2 and "a class of many words " * 8 in told and "…" not in told


def test_on_a_terminal_long_paths_are_folded(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "60")
    monkeypatch.setenv("FORCE_COLOR", "1")
    write_rows(rows_of(LONG, "lion"), "table")
    lines = capsys.readouterr().out.splitlines()
    folded = "".join(line.split("│")[1].strip() for line in lines if line.startswith("│"))
    assert folded == LONG and max(map(len, lines)) < 200


# --- a batch that is larger than the set ---


def test_a_batch_that_is_larger_than_the_set_is_said_once(capsys):
    warn_of_single_steps("coop", 128, {"a, 1 shots": 80, "b, 1 shots": 100, "c, 16 shots": 1000})
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and "a, 1 shots (and 1 more tunings): 80 images are fewer" in said
    assert "1 step of 80" in said and "'tuning.batch_of.coop'" in said
    warn_of_single_steps("coop", 128, {"a": 128})
    assert capsys.readouterr().err == ""


def test_the_stage_says_it(tiny_world, starts, tmp_path, capsys):
    """Eight pictures, and a batch of a hundred."""
    import tiny

    (tmp_path / "batch.json").write_text('{"batch": 100}')
    common = ("--name", "whole", "--seed", 1, "--start", starts / "coop")
    where = ("--benchmark", tiny_world / "benchmarks" / "whole", "--out", tmp_path / "out")
    batch = ("--batch", tmp_path / "batch.json")
    tiny.stage_in(tiny_world, "tune", *common, *where, *batch)
    said = capsys.readouterr().err
    assert said.count("fewer than the batch of 100") == 1 and "1 step of" in said
    where = ("--benchmarks", tiny_world / "benchmarks", "--out", tmp_path / "study")
    tiny.stage_in(tiny_world, "study_direct", "--name", "coop", "--seed", 1, *where, *batch)
    assert capsys.readouterr().err.count("whole, 2 shots of base classes: 4 images are fewer") == 1


def test_adapt_says_it_where_it_tunes(own):
    def said(method):
        return single_steps(scored(method=method, folds=2).prepared(read_collection(own)))

    assert "a batch of 32, and a training set has 6 pictures" in said("coop")
    assert said("probe") is None
