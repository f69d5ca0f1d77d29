"""Wrong parameters: each gives one clear error that names file, key and remedy."""

import json
import subprocess
import sys

import pytest
from conftest import ROOT

from pipeline.errors import InputError
from pipeline.gram.params import Rate
from pipeline.params import JSON_SCHEMA, Seed, load_params
from pipeline.schema import Params, check


def edited(tmp_path, old, new):
    text = (ROOT / "params.yaml").read_text()
    assert text.count(old) == 1, old
    path = tmp_path / "params.yaml"
    path.write_text(text.replace(old, new))
    return path


@pytest.mark.parametrize("profile", ["params.yaml", "profiles/paper.yaml", "profiles/own.yaml"])
def test_the_committed_profiles_are_sound(profile):
    check(ROOT / profile)


def test_json_schema_is_up_to_date():
    """`python -m pipeline.schema --write` renews it."""
    assert json.loads(JSON_SCHEMA.read_text()) == json.loads(json.dumps(Params.model_json_schema()))


@pytest.mark.parametrize(
    "old, new, words",
    [
        (
            "\ninner_lr:",
            "\ninner_lrr:",
            ["unknown parameter 'inner_lrr'", "did you mean 'inner_lr'"],
        ),
        (
            "  min_cluster_size: 12",
            "  min_clster_size: 12",
            [
                "unknown parameter 'topics.min_clster_size'",
                "did you mean 'min_cluster_size'",
                "'topics.min_cluster_size' is missing",
            ],
        ),
        (
            "  min_cluster_size: 12",
            "  min_cluster_size: twelve",
            ["'topics.min_cluster_size'", "valid integer", "'twelve'"],
        ),
        (
            "  min_cluster_size: 12",
            "  min_cluster_size: 1",
            ["'topics.min_cluster_size'", "greater than or equal to 2"],
        ),
        (
            "  selection: leaf",
            "  selection: leef",
            ["'topics.selection'", "'eom' or 'leaf'", "'leef'"],
        ),
        ("inner_lr: 0.5", "inner_lr: '0.1'", ["'inner_lr'", "'0.1'"]),
        ("inner_lr: 0.5", "inner_lr: -0.1", ["'inner_lr'", "greater than 0"]),
        (
            "episodes: shifted, regulator: affine",
            "episodes: shiftd, regulator: affine",
            ["methods.meta.coop_gram.episodes", "'shiftd'", "shifted"],
        ),
        (
            'path: data/world/animals.zip, template: "a photo of a {}."',
            'path: data/world/animals.zip, template: "a photo"',
            ["benchmarks.animals.template", "{}"],
        ),
        (
            "animals: {path: data/world/animals.zip,",
            "animals: {layout: imagenet21k, path: data/world/animals.zip,",
            ["benchmarks.animals.layout", "'imagenet21k'"],
        ),
    ],
)
def test_one_clear_error(tmp_path, old, new, words):
    path = edited(tmp_path, old, new)
    with pytest.raises(InputError) as error:
        check(path)
    message = str(error.value)
    assert str(path) in message
    for word in words:
        assert word in message, message


def test_a_stage_refuses_an_unknown_key_by_itself(tmp_path):
    """Even a stage that does not read the mistyped key, and without a traceback."""
    path = edited(tmp_path, "\ninner_lr:", "\niner_lr: 0.1\ninner_lr:")
    done = subprocess.run(
        [sys.executable, "stages/captions.py", "--params", path, "--out", tmp_path / "c.parquet"],
        check=False,
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1
    assert "unknown parameter 'iner_lr'; did you mean 'inner_lr'?" in done.stderr
    assert "Traceback" not in done.stderr and not (tmp_path / "c.parquet").exists()


def test_missing_and_unreadable_files(tmp_path):
    with pytest.raises(InputError, match="no such file"):
        check(tmp_path / "params.yaml")
    (tmp_path / "params.yaml").write_text("seed: [1")
    with pytest.raises(InputError, match="not readable as YAML"):
        check(tmp_path / "params.yaml")


@pytest.mark.parametrize(
    "written, value", [("1e-05", 1e-5), ("1e-5", 1e-5), ("2", 2.0), ("0.01", 0.01)]
)
def test_numbers_as_dvc_writes_them(tmp_path, written, value):
    """DVC turns -S inner_lr=1e-5 into `1e-05`, which a YAML 1.1 reader takes for a string."""
    path = edited(tmp_path, "inner_lr: 0.5", f"inner_lr: {written}")
    assert load_params(path, {"lr": ("inner_lr", Rate)}).lr == value


def test_only_declared_keys_are_handed_out():
    params = load_params(ROOT / "params.yaml", {"lr": ("inner_lr", Rate)})
    with pytest.raises(AttributeError):
        _ = params.seed


COOP = "    coop: {prompt: coop, title: CoOp}\n    vpt:"
SHIFTED = "  shifted: {support: one_domain, tasks: 300, confusable: 0.5}\nlabelled"


@pytest.mark.parametrize(
    "old, new, words",
    [
        # a value given twice would count twice
        ("  draws: [1, 2, 3]", "  draws: [1, 2, 1]", ["few_shot.draws", "1 stands there twice"]),
        ("  seeds: [1]  #", "  seeds: [1, 1]  #", ["few_shot.seeds", "1 stands there twice"]),
        ("{all: [16, 4]}", "{all: [16, 16]}", ["benchmarks.broad.shots.all", "16 stands"]),
        ("  animals: {base_to_new: [16]}", "  animals: {base_to_new: [16, 16]}", ["16 stands"]),
        ("cross_domain: [broad_sketch,", "cross_domain: [broad_night,", ["'broad_night' stands"]),
        ("curve_epochs: [2, 5]", "curve_epochs: [2, 2]", ["evaluate.curve_epochs", "2 stands"]),
        ("  seeds: [1, 2, 3, 4, 5]", "  seeds: [1, 2, 2]", ["study.seeds", "2 stands"]),
        ("domains: [flat, textured]", "domains: [flat, flat]", ["broad.domains", "'flat' stands"]),
        ("[[coop_gram, coop], [vpt", "[[coop, coop], [vpt", ["report.pairs.0", "'coop' stands"]),
        ("columns: [caption, url]", "columns: [url, url]", ["source.columns", "'url' stands"]),
        # seeds that no generator takes
        ("  draws: [1, 2, 3]", "  draws: [1, -2]", ["few_shot.draws.1", "greater than or equal"]),
        ("\nseed: 1 ", "\nseed: -1 ", ["'seed'", "greater than or equal to 0"]),
        ("  seeds: [1, 2, 3, 4, 5]", "  seeds: [1, -5]", ["study.seeds.1", "greater than or"]),
        # numbers that are none
        ("  lr: 0.002", "  lr: .inf", ["'tuning.lr'", "finite number"]),
        ("inner_lr: 0.5  #", "inner_lr: .nan  #", ["'inner_lr'", "finite number"]),
        ("  threshold: -0.76", "  threshold: .nan", ["'filter.threshold'", "finite number"]),
        # templates that no class name can be put into
        (
            'path: data/world/food.zip, template: "a photo of a {}."',
            'path: data/world/food.zip, template: "a {kind} of {}."',
            ["benchmarks.food.template", "no other brace"],
        ),
        (
            'path: data/world/food.zip, template: "a photo of a {}."',
            'path: data/world/food.zip, template: "a photo of {}}."',
            ["benchmarks.food.template", "no other brace"],
        ),
        ("clip: {title: CLIP}", 'clip: {title: CLIP, templates: ["{0} {}"]}', ["no other brace"]),
        # names that go into commands, files and MLflow
        (COOP, COOP.replace("coop:", "coop v2:"), ["'methods.direct.coop v2'", "letters"]),
        (COOP, COOP.replace("coop:", "own+:"), ["'methods.direct.own+'", "letters"]),
        (COOP, COOP.replace("coop:", "-x:"), ["'methods.direct.-x'", "letters"]),
        (
            "  food: {path: data/world/food.zip, t",
            "  ../food: {path: data/world/food.zip, t",
            ["'benchmarks.../food'", "letters"],
        ),
        (SHIFTED, SHIFTED.replace("shifted", "sh/ift"), ["'episodes.sh/ift'", "letters"]),
        # what would end hours later
        (
            "cross_dataset: [animals,",
            "cross_dataset: [broad,",
            ["protocols.broad.cross_dataset names 'broad' itself"],
        ),
        (
            "context_tokens: 4",
            "context_tokens: 3",
            ["methods.meta.unigram", "even number", "study.methods.direct.joint"],
        ),
        (
            "cocoop: {prompt: cocoop,",
            "cocoop: {prompt: cocoop, depth: 2,",
            ["methods.direct.cocoop", "'depth'"],
        ),
        ("  per_topic: 4  # U", "  per_topic: 1", ["domains.per_topic is 1", "two domains"]),
        ("  min_characters: 3", "  min_characters: 2000", ["filter", "no caption would be kept"]),
        ("  bias: 2.0", "  bias: 0.0", ["regulator", "'bias' and 'weight_std' are both 0"]),
        (
            "      strength: [0.1, 0.8]\n      wrong",
            "      strength: [0.8, 0.1]\n      wrong",
            ["world.webs.demo.strength", "the weakest comes first"],
        ),
        ("  food: {path", "  average: {path", ["benchmarks.average", "give it another one"]),
        ("per_class: 30,", "per_class: 9,", ["study.labelled.supervised.per_class is 9", "4 + 6"]),
        # a key that is not known inside something that may be null
        (
            "  obtain: null",
            "  obtain: {urll: 'http://a', sha256: b}",
            ["'source.obtain.urll'", "did you mean 'url'"],
        ),
    ],
)
def test_what_can_be_known_before_hours_are_spent(tmp_path, old, new, words):
    with pytest.raises(InputError) as error:
        check(edited(tmp_path, old, new))
    for word in words:
        assert word in str(error.value), error.value
    assert len(str(error.value)) < 1500  # never the whole file behind it


def test_all_that_does_not_fit_is_said_at_once(tmp_path):
    """Whoever removes a benchmark reads every place that names it."""
    text = (ROOT / "params.yaml").read_text()
    line = next(line for line in text.splitlines() if line.startswith("  things: {path"))
    with pytest.raises(InputError) as error:
        check(edited(tmp_path, line + "\n", ""))
    message = str(error.value)
    for place in ("protocols.things.base_to_new", "protocols.broad.cross_dataset", "study.bench"):
        assert f"{place}" in message, message
    assert len(message) < 1500


def test_a_pair_of_a_method_that_was_removed_is_left_out_with_a_word(tmp_path):
    text = (ROOT / "params.yaml").read_text()
    line = next(line for line in text.splitlines() if line.startswith("    cocoop: {prompt"))
    path = edited(tmp_path, line + "\n", "")
    remark = "report.pairs compares unigram with cocoop, but there is no method 'cocoop'"
    assert [r.startswith(remark) for r in check(path).remarks()] == [True]
    done = subprocess.run(
        [sys.executable, "-m", "pipeline.schema", path], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0 and remark in done.stderr


def test_a_stage_refuses_a_seed_below_zero_by_itself(tmp_path):
    """As `dvc exp run -S seed=-1` gives it, which no check of the whole file comes before."""
    path = edited(tmp_path, "\nseed: 1 ", "\nseed: -1 ")
    with pytest.raises(InputError, match="'seed': Input should be greater than or equal to 0"):
        load_params(path, {"seed": ("seed", Seed)})


def test_epochs_that_are_never_reached_are_left_out_with_a_word(tmp_path):
    path = edited(tmp_path, "curve_epochs: [2, 5]", "curve_epochs: [2, 50]")
    assert check(path).remarks() == [
        "evaluate.curve_epochs has 50, but 'few_shot.epochs' is 10; it is left out"
    ]
