"""Every table, headline and page for every subset of protocols, on small artificial scores."""

import importlib.util
import json
import sys

import numpy as np
import plotly.graph_objects as go
import polars as pl
import pyarrow as pa
import pytest
from conftest import ROOT
from ruamel.yaml import YAML

from pipeline.artifacts import write_json, write_table
from pipeline.benchmarks.headline import headline, in_words
from pipeline.benchmarks.judged import read_epochs, read_verdicts, save_judged
from pipeline.benchmarks.params import Protocols
from pipeline.benchmarks.protocols import exams_of, runs_of
from pipeline.benchmarks.reader import samples_table
from pipeline.benchmarks.schemas import EPOCHS, SAMPLES, VERDICTS
from pipeline.schema import check

NONE = {"base_to_new": [], "all_classes": []}
HALVES = {"base_to_new": [2]}
ALL = {"all_classes": [2, 4]}
DOMAINS, SETS = {"cross_domain": ["sketches"]}, {"cross_dataset": ["others"]}
SUBSETS = {
    "nothing": ({}, set()),
    "base_to_new": (HALVES, {"base", "new", "H"}),
    "all_classes": (ALL, {"all_classes"}),
    "cross_domain": (ALL | DOMAINS, {"cross_domain"}),
    "cross_dataset": (ALL | SETS, {"cross_dataset"}),
    "both crosses": (ALL | DOMAINS | SETS, {"cross_domain", "cross_dataset"}),
    "base_to_new, all": (HALVES | ALL, {"base", "new", "H", "all_classes"}),
    "base_to_new, domains": (HALVES | ALL | DOMAINS, {"base", "new", "H", "cross_domain"}),
    "base_to_new, sets": (HALVES | ALL | SETS, {"base", "new", "H", "cross_dataset"}),
    "everything": (
        HALVES | ALL | DOMAINS | SETS,
        {"base", "new", "H", "cross_domain", "cross_dataset"},
    ),
}
SUBSETS = {name: (of and NONE | of, figures) for name, (of, figures) in SUBSETS.items()}
BENCHMARKS = ("whole", "second", "sketches", "others")
METHODS = ("clip", "coop", "coop_gram")
SHARE = {"clip": 0.4, "coop": 0.6, "coop_gram": 0.8}  # of right answers


def judged(source, protocols, method):
    """What evaluation leaves: eight classes, ten test pictures each."""
    random, parts, epochs = np.random.default_rng(3), [VERDICTS.empty_table()], []
    runs = [(c, 0, 0) for c in ("base", "all")] if method == "clip" else runs_of(protocols, [1, 2])
    for classes, shots, seed in runs:
        for benchmark, head in exams_of(source, protocols)[classes]:
            first, last = {"base": (0, 4), "new": (4, 8), "all": (0, 8)}[head]
            index = np.arange(10 * first, 10 * last, dtype=np.int32)
            label = index // 10 - first
            right = random.random(len(index)) < SHARE[method]
            columns = [source, classes, shots, seed, benchmark, head]
            parts.append(
                pa.table(
                    [
                        *(
                            pa.array([c] * len(index), f.type)
                            for c, f in zip(columns, VERDICTS, strict=False)
                        ),
                        pa.array(index),
                        pa.array(label, pa.int32()),
                        pa.array(np.where(right, label, label + 1), pa.int32()),
                    ],
                    schema=VERDICTS,
                )
            )
            if classes == "base":
                epochs += [(source, shots, seed, e, head, 50.0) for e in (1, 2)]
    return pa.concat_tables(parts), pl.DataFrame(epochs, schema=EPOCHS, orient="row")


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    """What the report takes beside scores."""
    top = tmp_path_factory.mktemp("subsets")
    rows = [("test", "", c, f"c{c}", f"test/c{c}/{i}.jpg") for c in range(8) for i in range(10)]
    for name in BENCHMARKS:
        write_table(samples_table(rows), top / "benchmarks" / name / "samples.parquet", SAMPLES)
        write_json({"split": "own"}, top / "benchmarks" / name / "about.json")
    (top / "starts" / "coop_gram").mkdir(parents=True)
    curve = ["step", "query_loss", "start_loss", "raw_agreement", "regulated_agreement"]
    pl.DataFrame({name: [1.0, 2.0] for name in curve}).with_columns(
        step=pl.Series([1, 2])
    ).write_csv(top / "starts" / "coop_gram" / "curve.csv")
    write_json(
        {
            "counts": {"in topics": 5},
            "dropped": "",
            "figures": {n: go.Figure().to_json() for n in ("funnel", "histogram", "map")},
            "map_note": "",
            "cards": [],
            "topics": [{"name": "lion", "size": 3, "words": ["lion"]}],
        },
        top / "gallery.json",
    )
    return top


def parameters(top, path, protocols):
    p = YAML(typ="safe").load(ROOT / "params.yaml")
    p["benchmarks"] = {
        name: {"path": name, "shots": {"base": [2], "all": [2, 4]}} for name in BENCHMARKS
    }
    p["templates"] = dict.fromkeys(BENCHMARKS, "a photo of a {}.")
    p["protocols"] = {name: protocols for name in ("whole", "second") if protocols}
    p["methods"] = {
        "zero_shot": {"clip": {}},
        "direct": {"coop": {"prompt": "coop"}},
        "meta": {"coop_gram": {"prompt": "coop", "episodes": "shifted"}},
        "titles": {"clip": "CLIP", "coop": "CoOp", "coop_gram": "GRAM"},
    }
    p["study"] |= {"benchmarks": ["whole"], "shots": 2}
    p["report"] |= {"pairs": [["coop_gram", "coop"], ["gone", "coop"]], "resamples": 1000}
    p["few_shot"]["seeds"] = [1, 2]
    YAML(typ="safe").dump(p, path)
    return check(path)


def report_stage():
    spec = importlib.util.spec_from_file_location("report_stage", ROOT / "stages" / "report.py")
    module = importlib.util.module_from_spec(spec)
    before = list(sys.path)
    sys.path.insert(0, str(ROOT / "stages"))
    try:
        spec.loader.exec_module(module)
    finally:
        sys.path[:] = before
        sys.modules.pop("_repository", None)
    return module


@pytest.mark.parametrize("subset", SUBSETS)
def test_the_report_of_a_subset_of_protocols(inputs, tmp_path, monkeypatch, capsys, subset):
    protocols, expected = SUBSETS[subset]
    p = parameters(inputs, tmp_path / "params.yaml", protocols)
    for method in METHODS:
        for source, of in p.protocols.items():
            save_judged(judged(source, of, method), tmp_path / "scores" / method, source)
        (tmp_path / "scores" / method).mkdir(parents=True, exist_ok=True)
    arguments = {name: inputs / name for name in ("starts", "benchmarks")}
    arguments |= {"gallery": inputs / "gallery.json", "scores": tmp_path / "scores"}
    arguments |= {"out": tmp_path / "report", "params": tmp_path / "params.yaml"}
    monkeypatch.setattr(
        sys, "argv", ["report", *(f"--{name}={value}" for name, value in arguments.items())]
    )
    _, figures, _ = report_stage().main()
    assert {m: set(of) for m, of in figures.items()} == dict.fromkeys(METHODS, expected)
    json.dumps(figures, allow_nan=False)
    tables = (tmp_path / "report" / "tables.csv").read_text()
    for kind, there in (
        ("base_to_new_2", bool(protocols.get("base_to_new"))),
        ("cross_domain_whole_4", "cross_domain" in protocols),
        ("cross_dataset_whole_4", "cross_dataset" in protocols),
        ("all_classes_4", "all_classes" in expected),
        ("comparison_2", bool(protocols)),
    ):
        assert (kind in tables) == there, kind
    for half in ("base", "new"):  # CLIP learns nothing: it is in epoch 0 alone, and stays there
        drawn = pl.read_csv(tmp_path / "report" / f"epochs-{half}.csv")
        lines = {"CLIP", "CoOp", "GRAM"} if protocols.get("base_to_new") else set()
        assert drawn.columns == ["epoch", "line", "top1"] and set(drawn["line"]) == lines
    assert "there is no method 'gone'" in capsys.readouterr().err
    html = (tmp_path / "report" / "report.html").read_text()
    assert '<h2 id="results">' in html and "learned once" in html


@pytest.mark.parametrize("subset", SUBSETS)
def test_the_headline_of_a_subset(tmp_path, subset):
    protocols, expected = SUBSETS[subset]
    of = {name: Protocols(**protocols) for name in ("whole", "second") if protocols}
    for source in of:
        save_judged(judged(source, of[source], "coop"), tmp_path, source)
    found = headline(read_verdicts(tmp_path, of), of)
    assert set(found) == expected and all(30 < value < 90 for value in found.values())
    assert in_words(found)
    assert read_epochs(tmp_path, of).is_empty() == (not protocols.get("base_to_new"))


def test_the_headline_of_all_classes_is_of_the_source_and_the_most_shots(tmp_path):
    protocols = {"whole": Protocols(**NONE | ALL), "second": Protocols(**NONE | ALL | DOMAINS)}
    for source in protocols:
        save_judged(judged(source, protocols[source], "coop"), tmp_path, source)
    verdicts = read_verdicts(tmp_path, protocols)
    rows = verdicts.filter(source="whole", benchmark="whole", head="all", shots=4)
    by_hand = 100 * (rows["label"] == rows["predicted"]).mean()
    assert headline(verdicts, protocols)["all_classes"] == pytest.approx(by_hand)


def test_a_source_is_none_of_its_own_targets(tmp_path):
    """The schema refuses it; a stage that reads its part alone leaves it out of the average."""
    protocols = {"whole": Protocols(**NONE | ALL, cross_dataset=["whole", "others"])}
    save_judged(judged("whole", protocols["whole"], "coop"), tmp_path, "whole")
    verdicts = read_verdicts(tmp_path, protocols)
    rows = verdicts.filter(benchmark="others", shots=4)
    by_hand = 100 * (rows["label"] == rows["predicted"]).mean()
    assert headline(verdicts, protocols) == {"cross_dataset": pytest.approx(by_hand)}
