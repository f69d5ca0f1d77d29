"""A smaller world than the demo's, through the same stages, for tests that run the chain several
times.
"""

from __future__ import annotations

from pathlib import Path

from ruamel.yaml import YAML


def make_small(path: Path) -> None:
    """Changes a params.yaml: a tenth of the pictures, one benchmark, CoOp with and without GRAM,
    short training.
    """
    yaml = YAML()
    p = yaml.load(path)
    p["meta_steps"] = 20
    p["world"]["webs"]["demo"].update(classes=60, pictures_per_class=20)
    p["topics"]["min_cluster_size"] = 8
    p["episodes"]["shifted"]["tasks"] = 60
    p["methods"]["direct"] = {"coop": p["methods"]["direct"]["coop"]}
    p["methods"]["meta"] = {"coop_gram": p["methods"]["meta"]["coop_gram"]}
    for name in list(p["benchmarks"]):
        if name != "animals":
            del p["benchmarks"][name], p["templates"][name]
    p["protocols"] = {"animals": {"base_to_new": [16], "all_classes": []}}
    p["world"]["benchmarks"] = {"animals": p["world"]["benchmarks"]["animals"]}
    p["world"]["benchmarks"]["animals"]["test_per_class"] = 16
    p["few_shot"].update(draws=[1, 2], epochs=3)
    p["evaluate"]["curve_epochs"] = [2]
    p["study"].update(benchmarks=["animals"], labelled={})
    p["study"]["methods"]["meta"] = {"coop_gram": p["study"]["methods"]["meta"]["coop_gram"]}
    p["study"]["methods"]["direct"] = {"coop": p["study"]["methods"]["direct"]["coop"]}
    p["study"]["pairs"] = [["coop_gram", "coop"]]
    p["gallery"].update(topics=5, map_points=500)
    p["report"]["pairs"] = [["coop_gram", "coop"]]
    yaml.dump(p, path)
