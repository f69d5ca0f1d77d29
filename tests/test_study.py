"""What a study makes of its runs: paired intervals, and entries that do not exist."""

import importlib
from typing import get_args

import numpy as np
import polars as pl
import pytest
from conftest import ROOT, with_values
from scipy import stats

from pipeline.benchmarks.headline import headline
from pipeline.benchmarks.schemas import VERDICTS
from pipeline.benchmarks.scores import interval
from pipeline.gram.params import Prompt
from pipeline.prompts import METHODS
from pipeline.schema import check


def test_the_interval_is_the_paired_t_test_s():
    a, b = np.array([66.1, 65.2, 67.3, 66.6, 65.9]), np.array([64.9, 64.6, 65.1, 65.2, 64.7])
    mean, half = interval(a - b)
    expected = stats.ttest_rel(a, b).confidence_interval(0.95)
    assert (mean - half, mean + half) == pytest.approx((expected.low, expected.high))


@pytest.fixture
def compare(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "stages")
    return importlib.import_module("compare")


def judged(right, seed, source="animals"):
    """Verdicts on four pictures of each half, `right` of them told right: (base, new)."""
    heads = {"base": right[0], "new": right[1]}
    rows = [
        (source, "base", 16, seed, source, head, n, 1, int(n < of_head))
        for head, of_head in heads.items()
        for n in range(4)
    ]
    return pl.DataFrame(rows, schema=VERDICTS.names, orient="row")


def test_a_run_s_spread_over_draws_is_told_from_that_over_seeds(compare):
    """Two seeds of two draws: base 100 and 50, and 75 and 25 percent."""
    runs, variances, method_rows = [], compare.variances, compare.method_rows
    for seed, draws in ((1, (4, 2)), (2, (3, 1))):
        verdicts = pl.concat([judged((n, 2), draw) for draw, n in enumerate(draws, 1)])
        runs.append({"method": "m", "seed": seed, **headline(verdicts, {}), **variances(verdicts)})
    (row,) = method_rows(pl.DataFrame(runs), {"m": "M"})
    assert row["base"] == 62.5 and row["new"] == 50
    assert row["base_sd"] == pytest.approx(np.std([75, 50], ddof=1))
    assert row["base_draws_sd"] == pytest.approx(np.std([100, 50], ddof=1))
    assert row["new_sd"] == row["new_draws_sd"] == 0
    alone = judged((3, 2), 1)
    runs = [{"method": "m", "seed": 1, **headline(alone, {}), **variances(alone)}] * 2
    assert method_rows(pl.DataFrame(runs), {"m": "M"})[0]["base_draws_sd"] is None


def test_every_prompt_that_params_yaml_may_name_exists():
    assert set(get_args(Prompt)) == set(METHODS)


def test_a_pair_of_unknown_methods(tmp_path):
    path = with_values(tmp_path / "params.yaml", {"study.pairs": [["vpt_gram", "vtp"]]})
    assert any("study.pairs" in r and "'vtp'" in r for r in check(path).remarks())
