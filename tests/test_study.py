"""What a study makes of its runs: paired intervals, and entries that do not exist."""

from typing import get_args

import numpy as np
import pytest
from conftest import with_values
from scipy import stats

from pipeline.benchmarks.scores import interval
from pipeline.gram.params import Prompt
from pipeline.prompts import METHODS
from pipeline.schema import check


def test_the_interval_is_the_paired_t_test_s():
    a, b = np.array([66.1, 65.2, 67.3, 66.6, 65.9]), np.array([64.9, 64.6, 65.1, 65.2, 64.7])
    mean, half = interval(a - b)
    expected = stats.ttest_rel(a, b).confidence_interval(0.95)
    assert (mean - half, mean + half) == pytest.approx((expected.low, expected.high))


def test_every_prompt_that_params_yaml_may_name_exists():
    assert set(get_args(Prompt)) == set(METHODS)


def test_a_pair_of_unknown_methods(tmp_path):
    path = with_values(tmp_path / "params.yaml", {"study.pairs": [["vpt_gram", "vtp"]]})
    assert any("study.pairs" in r and "'vtp'" in r for r in check(path).remarks())
