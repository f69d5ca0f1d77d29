"""Statistics over seeds and pictures, the published figures, and the tables in the paper's
arrangement.
"""

import csv
import io
import re
from dataclasses import replace
from html.parser import HTMLParser
from types import SimpleNamespace

import conftest  # noqa: F401
import numpy as np
import polars as pl
import pytest
from scipy import stats

from pipeline.benchmarks.scores import (
    RESULTS,
    Measured,
    Setting,
    average,
    difference,
    harmonic,
    harmonic_mean,
    measure,
    resampled_means,
)
from pipeline.errors import InputError
from pipeline.report.formats import as_csv, as_html, as_latex, as_markdown
from pipeline.report.published import published
from pipeline.report.tables import (
    Block,
    Cell,
    Column,
    Findings,
    Row,
    Table,
    base_to_new_table,
    comparison_table,
    result_tables,
    study_tables,
    transfer_table,
)

PAPER = published()
KINDS = pl.from_arrow(RESULTS.empty_table()).schema
# Where the paper's printed figures do not follow from the figures that they are made of.
ODD_H = {("dtd", "unigram")}
ODD_AVERAGES = {(1, "unigram", "new")}


# --- what was published ---


def test_every_printed_h_is_the_harmonic_mean_of_its_row():
    tables = {
        "average": PAPER.base_to_new.average,
        **PAPER.base_to_new.benchmarks,
        "others": PAPER.others,
    }
    tables |= {"study": {v.title: v.figures for v in PAPER.ablation.rows + PAPER.tokens.rows}}
    off = {
        (name, row)
        for name, rows in tables.items()
        for row, (base, new, h) in rows.items()
        if abs(harmonic_mean(base, new) - h) > 0.0101
    }
    assert off == ODD_H
    assert len(PAPER.base_to_new.benchmarks) == 11 and all(
        len(rows) == 7 for name, rows in tables.items() if name not in ("others", "study")
    )


def test_printed_averages_are_those_of_the_printed_figures():
    theirs, off = PAPER.base_to_new, set()
    for method, printed in theirs.average.items():
        for k, name in enumerate(("base", "new")):
            if (
                abs(np.mean([rows[method][k] for rows in theirs.benchmarks.values()]) - printed[k])
                > 0.0051
            ):
                off.add((theirs.table, method, name))
    transfers = [*PAPER.cross_domain, *PAPER.cross_dataset]
    for t in transfers:
        for method, (_, *targets, printed) in t.rows.items():
            assert len(targets) == len(t.targets)
            if abs(np.mean(targets) - printed) > 0.0051:
                off.add((t.table, method, "average"))
    assert off == ODD_AVERAGES
    assert [(t.table, t.shots, len(t.targets), len(t.rows)) for t in transfers] == [
        (2, 16, 4, 7),
        (4, 4, 4, 7),
        (3, 16, 10, 6),
        (5, 4, 10, 6),
    ]


def test_figures_that_the_paper_prints_twice_are_the_same():
    theirs = PAPER.base_to_new.average
    assert [PAPER.others[PAPER.methods[m]] for m in ("clip", "cocoop", "unigram")] == [
        theirs[m] for m in ("clip", "cocoop", "unigram")
    ]
    assert PAPER.ablation.rows[0].figures == PAPER.tokens.rows[1].figures == theirs["unigram"]
    for one, other in zip(PAPER.cross_domain, PAPER.cross_dataset):
        assert all(one.rows[m][0] == row[0] for m, row in other.rows.items())
    assert set(theirs) == set(PAPER.methods) and set(PAPER.base_to_new.benchmarks) | set(
        PAPER.cross_domain[0].targets
    ) == set(PAPER.benchmarks)
    assert set(PAPER.notes) == set(range(1, 8))


# --- statistics ---


def verdicts(
    method,
    benchmark,
    head,
    right,
    shots=16,
    source=None,
    tuned_on="base",
    classes=2,
    seeds=(1, 2, 3),
):
    """Rows of RESULTS from (seeds, n) booleans; labels go round the classes."""
    parts = []
    for seed, of_seed in zip(seeds, np.atleast_2d(right)):
        n = len(of_seed)
        label = np.arange(n) % classes
        columns = [
            method,
            benchmark if source is None else source,
            tuned_on,
            shots,
            seed,
            benchmark,
            head,
        ]
        parts.append(
            pl.DataFrame(
                [[c] * n for c in columns]
                + [np.arange(n), label, np.where(of_seed, label, (label + 1) % classes)],
                schema=KINDS,
                strict=True,
            )
        )
    return pl.concat(parts)


def alone(found, head="base"):
    return next(m for (_, _, h), m in found.items() if h == head)


def test_accuracy_its_spread_over_seeds_and_classes_that_count_alike():
    right = np.array([[1, 1, 1, 1, 0], [1, 0, 1, 0, 0], [1, 0, 1, 1, 0]], bool)  # labels 0 1 0 1 0
    found = alone(
        measure(verdicts("m", "b", "base", right).sample(fraction=1, shuffle=True, seed=3), 1000, 1)
    )
    assert found.by_seed == pytest.approx([80, 40, 60]) and found.seeds == (1, 2, 3)
    assert (found.value, found.sd) == (pytest.approx(60), pytest.approx(20))
    of_class = [right[:, ::2].mean(), right[:, 1::2].mean()]
    assert found.per_class == pytest.approx(
        100 * np.mean(of_class)
    ) and found.per_class != pytest.approx(60)
    expected = stats.ttest_1samp([80, 40, 60], 0).confidence_interval(0.95)
    assert found.over_seeds == pytest.approx((expected.low, expected.high))
    single = alone(measure(verdicts("m", "b", "base", right[:1]), 10, 1))
    assert single.sd is None and single.over_seeds is None


def test_the_bootstrap_is_scipy_s():
    rng = np.random.default_rng(5)
    values = rng.random((80, 2)) < [0.6, 0.7]
    found = np.percentile(
        resampled_means(values, 20000, np.random.default_rng(1)), [2.5, 97.5], axis=0
    )
    for column in range(2):
        expected = stats.bootstrap(
            [values[:, column]], np.mean, n_resamples=20000, method="percentile", rng=2
        ).confidence_interval
        assert found[:, column] == pytest.approx(tuple(expected), abs=0.008)
    # the same pictures for both: the interval of the difference is that of paired values
    drawn = resampled_means(values, 20000, np.random.default_rng(1))
    expected = stats.bootstrap(
        [values[:, 1].astype(float), values[:, 0].astype(float)],
        lambda a, b, axis: a.mean(axis=axis) - b.mean(axis=axis),
        paired=True,
        n_resamples=20000,
        method="percentile",
        vectorized=True,
        rng=3,
    ).confidence_interval
    assert np.percentile(drawn[:, 1] - drawn[:, 0], [2.5, 97.5]) == pytest.approx(
        tuple(expected), abs=0.008
    )


def test_blocks_of_resamples_are_a_loop_over_them(monkeypatch):
    values = np.random.default_rng(2).random((30, 3))
    stream = np.random.default_rng(9)
    expected = [values[stream.integers(30, size=30)].mean(axis=0) for _ in range(25)]
    for numbers in (2**22, 30 * 7, 1):  # all at once; in unequal blocks; one by one
        monkeypatch.setattr("pipeline.benchmarks.scores.BLOCK", numbers)
        assert np.allclose(resampled_means(values, 25, np.random.default_rng(9)), expected)


def test_the_interval_over_pictures_covers():
    rng, hits = np.random.default_rng(4), 0
    for _ in range(300):
        drawn = resampled_means(rng.random((150, 1)) < 0.7, 300, rng)
        low, high = np.percentile(drawn, [2.5, 97.5])
        hits += low <= 0.7 <= high
    assert 0.90 <= hits / 300 <= 0.985


def test_averages_h_and_differences_are_taken_resample_by_resample():
    rng = np.random.default_rng(6)
    hard = {(b, h): rng.random(400) for b in ("x", "y") for h in ("base", "new")}

    def noisy(level, b, h):
        return hard[b, h] + 0.05 * rng.standard_normal((3, 400)) < level

    results = pl.concat(
        [
            verdicts(m, b, h, noisy(level, b, h))
            for m, level in (("one", 0.66), ("other", 0.6))
            for b, h in hard
        ]
    )
    found = measure(results, 1000, 1)
    of = {
        (m, b, h): found[Setting(m, b, "base", 16), b, h] for m in ("one", "other") for b, h in hard
    }
    averages = {
        (m, h): average([of[m, "x", h], of[m, "y", h]])
        for m in ("one", "other")
        for h in ("base", "new")
    }
    h_of = {m: harmonic(averages[m, "base"], averages[m, "new"]) for m in ("one", "other")}
    one = h_of["one"]
    assert one.value == pytest.approx(
        harmonic_mean(averages["one", "base"].value, averages["one", "new"].value)
    )
    assert one.by_seed == pytest.approx(
        [
            harmonic_mean(
                (of["one", "x", "base"].by_seed[s] + of["one", "y", "base"].by_seed[s]) / 2,
                (of["one", "x", "new"].by_seed[s] + of["one", "y", "new"].by_seed[s]) / 2,
            )
            for s in range(3)
        ]
    )
    assert one.resampled[7] == pytest.approx(
        harmonic_mean(averages["one", "base"].resampled[7], averages["one", "new"].resampled[7])
    )
    gain = difference(h_of["one"], h_of["other"])
    assert gain.value == pytest.approx(h_of["one"].value - h_of["other"].value)
    low, high = gain.over_pictures
    unpaired = np.percentile(
        h_of["one"].resampled - np.random.default_rng(0).permutation(h_of["other"].resampled),
        [2.5, 97.5],
    )
    assert 0 < low < gain.value < high and high - low < 0.7 * (unpaired[1] - unpaired[0])
    assert (
        np.corrcoef(of["one", "x", "base"].resampled, of["other", "x", "base"].resampled)[0, 1]
        > 0.7
    )
    # and one benchmark alone gives what all together gave
    again = measure(results.filter(pl.col("benchmark") == "y"), 1000, 1)
    assert (
        again[Setting("one", "y", "base", 16), "y", "new"].resampled
        == of["one", "y", "new"].resampled
    ).all()


def test_heads_and_benchmarks_are_resampled_independently():
    right = np.random.default_rng(8).random((3, 200)) < 0.6  # the same verdicts everywhere
    found = measure(
        pl.concat([verdicts("m", b, h, right) for b in ("x", "y") for h in ("base", "new")]),
        1000,
        1,
    )
    r = np.corrcoef([m.resampled for m in found.values()])
    assert r.shape == (4, 4) and np.abs(r - np.eye(4)).max() < 0.12
    one = next(iter(found.values()))
    expected = stats.bootstrap(
        [100 * right.mean(axis=0)], np.mean, n_resamples=10000, method="percentile", rng=1
    ).confidence_interval
    assert one.over_pictures == pytest.approx(tuple(expected), abs=0.6)


def test_what_tunes_nothing_is_the_same_for_every_source_and_seed():
    right = np.array([[1, 0, 1, 1], [1, 0, 0, 1]], bool)
    results = pl.concat(
        [
            verdicts("clip", "b", "base", [1, 0, 0, 1], shots=0, source="a", seeds=(0,)),
            verdicts("clip", "b", "base", [1, 0, 0, 1], shots=0, source="b", seeds=(0,)),
            verdicts("coop", "b", "base", right, seeds=(1, 2)),
        ]
    )
    found = measure(results, 50, 1)
    assert len(found) == 2
    gain = difference(
        found[Setting("coop", "b", "base", 16), "b", "base"],
        found[Setting("clip", "", "", 0), "b", "base"],
    )
    assert gain.by_seed == pytest.approx([25, 0]) and gain.value == pytest.approx(12.5)


@pytest.mark.parametrize("spoil", ["missing", "twice", "label"])
def test_runs_of_other_pictures_are_not_compared(spoil):
    results = pl.concat(
        [
            verdicts("one", "b", "new", np.ones((2, 6), bool)),
            verdicts("other", "b", "new", np.ones((2, 6), bool)),
        ]
    )
    last = pl.int_range(pl.len()) == pl.len() - 1
    if spoil == "missing":
        results = results.head(-1)
    elif spoil == "twice":
        results = results.with_columns(
            pl.when(pl.col("index") == 5)
            .then(4)
            .otherwise(pl.col("index"))
            .cast(pl.Int32)
            .alias("index")
        )
    else:
        results = results.with_columns(
            pl.when(last).then(7).otherwise(pl.col("label")).cast(pl.Int32).alias("label")
        )
    with pytest.raises(
        InputError,
        match="benchmark 'b', head 'new': not every method and seed was judged on the same "
        "pictures",
    ):
        measure(results, 10, 1)


# --- tables ---


def figure(value, seeds=(1, 2, 3)):
    by_seed = value + np.array([-1.0, 0, 1])[: len(seeds)] * (len(seeds) > 1)
    return Measured(value, value - 0.5, seeds, by_seed, value + np.linspace(-2, 2, 101))


def source(base_to_new=(), all_classes=(), cross_domain=(), cross_dataset=()):
    return SimpleNamespace(
        base_to_new=list(base_to_new),
        all_classes=list(all_classes),
        cross_domain=list(cross_domain),
        cross_dataset=list(cross_dataset),
    )


def half_way(benchmarks, methods=("clip", "coop", "coop_gram"), **more):
    """Base 60, 61, 62 … by method, new 50; benchmarks differ by one."""
    measured = {}
    for i, b in enumerate(benchmarks):
        for j, m in enumerate(methods):
            run, seeds = (
                (Setting(m, "", "", 0), (0,))
                if m == "clip"
                else (Setting(m, b, "base", 16), (1, 2, 3))
            )
            measured |= {
                (run, b, "base"): figure(60.0 + i + j, seeds),
                (run, b, "new"): figure(50.0, seeds),
            }
    given = {
        "measured": measured,
        "titles": {m: PAPER.methods.get(m, m) for m in methods},
        "benchmarks": list(benchmarks),
        "sources": {b: source([16]) for b in benchmarks},
        "paper": PAPER,
    }
    return Findings(**given | more)


def values(table, block, row):
    return next(r.cells for b in table.blocks if b.key == block for r in b.rows if r.key == row)


def test_table_1_of_own_benchmarks_has_no_paper():
    table = base_to_new_table(half_way(["animals", "food"]), 16, others=True)
    assert table.heading == "Base-to-new generalisation, 16 shots"
    assert [b.title for b in table.blocks] == [
        "Average over 2 benchmarks",
        "animals",
        "food",
    ] and not any(b.paper for b in table.blocks)
    # no method of the paper's that is not ours
    assert [r.key for r in table.blocks[0].rows] == ["clip", "coop", "coop_gram"]
    base, new, h = values(table, "average", "coop_gram")
    assert (base.value, new.value, h.value) == pytest.approx((62.5, 50, harmonic_mean(62.5, 50)))
    assert (
        base.best
        and h.best
        and not values(table, "average", "coop")[0].best
        and new.best
        and values(table, "food", "clip")[1].best
    )
    assert base.sd == pytest.approx(1) and values(table, "food", "clip")[0].sd is None
    assert "paper" not in as_html([table]) + as_markdown([table]).lower()
    assert base_to_new_table(half_way(["animals"]), 4) is None


def test_table_1_beside_the_paper():
    whole = base_to_new_table(half_way(PAPER.base_to_new.benchmarks), 16, others=True)
    assert whole.heading == "Table 1: Base-to-new generalisation, 16 shots" and [
        b.key for b in whole.blocks
    ] == ["average", *PAPER.base_to_new.benchmarks]
    assert [c.paper for c in values(whole, "average", "coop_gram")] == [78.74, 74.93, 76.79] and [
        c.paper for c in values(whole, "eurosat", "coop")
    ] == [74.79, 61.5, 67.5]
    assert (
        values(whole, "average", "MaPLe")[2].paper == 78.55
        and sum(r.others for r in whole.blocks[0].rows) == 10
        and not any(r.others for b in whole.blocks[1:] for r in b.rows)
    )
    assert {c.missing for c in values(whole, "dtd", "vpt")} == {
        "method vpt is not in params.yaml"
    } and values(whole, "dtd", "vpt")[0].paper == 56.71
    assert [b.paper for b in base_to_new_table(half_way(["dtd", "eurosat"]), 16).blocks] == [
        False,
        True,
        True,
    ]
    some = base_to_new_table(half_way(["dtd", "eurosat", "animals"]), 16, others=True)
    assert [b.key for b in some.blocks] == ["average", "dtd", "eurosat", "animals"] and [
        b.paper for b in some.blocks
    ] == [False, True, True, False]
    assert not any(r.others for b in some.blocks for r in b.rows)
    assert any(
        "not tune on them with 16 shots: ImageNet, Caltech101" in note for note in some.notes
    )


def test_a_cell_says_why_it_is_empty():
    f = half_way(["dtd", "eurosat"])
    left = {
        part: m
        for part, m in f.measured.items()
        if part[:2] != (Setting("coop", "dtd", "base", 16), "dtd")
        and part != (Setting("coop_gram", "dtd", "base", 16), "dtd", "new")
    }
    table = base_to_new_table(half_way(["dtd", "eurosat"], measured=left), 16)
    assert (
        values(table, "dtd", "coop")[0].missing
        == "CoOp was not tuned on dtd (16 shots of base classes)"
    )
    base, new, h = values(table, "dtd", "coop_gram")
    assert base.value == 62 and new.missing == h.missing == "CoOp + GRAM was not judged here"
    assert (
        values(table, "average", "coop")[0].missing == "no average without dtd"
        and values(table, "average", "clip")[0].value == 60.5
    )
    assert (
        list(table.footnotes.values()) == list("abcdefg")
        and table.footnotes["method cocoop is not in params.yaml"] == "a"
        and table.footnotes["no average without dtd"] == "b"
    )
    for text in (as_html([table]), as_markdown([table]), as_latex([table])):
        assert "was not tuned on dtd" in text and "no average without dtd" in text


def across(setting, listed, known, shots=16, marks=None):
    measured = {}
    for i, b in enumerate(["imagenet", *listed]):
        measured[Setting("clip", "", "", 0), b, "all"] = figure(50.0 + i, (0,))
        measured[Setting("coop", "imagenet", "all", shots), b, "all"] = figure(60.0 + i)
    sources = {"imagenet": source(all_classes=[shots], **{setting: listed})}
    return Findings(measured, {"clip": "CLIP", "coop": "CoOp"}, known, sources, PAPER, marks or {})


@pytest.mark.parametrize(
    ("setting", "shots", "number"),
    [
        ("cross_domain", 16, 2),
        ("cross_dataset", 16, 3),
        ("cross_domain", 4, 4),
        ("cross_dataset", 4, 5),
    ],
)
def test_tables_2_to_5(setting, shots, number):
    theirs = next(t for t in getattr(PAPER, setting) if t.shots == shots)
    f = across(setting, theirs.targets, ["imagenet", *theirs.targets], shots)
    table = transfer_table(f, setting, "imagenet", shots)
    assert table.number == number and [c.key for c in table.blocks[0].columns] == [
        "imagenet",
        *theirs.targets,
        "average",
    ]
    cells = values(table, "", "coop")
    assert tuple(c.paper for c in cells) == theirs.rows["coop"]
    # the source left out
    assert cells[-1].value == pytest.approx(
        np.mean([60.0 + i for i in range(1, len(theirs.targets) + 1)])
    )
    assert [c.paper is None for c in values(table, "", "clip")] == [number in (3, 5)] * len(cells)
    # the source's own test part is its first column
    assert [t.key for t in result_tables(f)] == [f"{setting}_imagenet_{shots}"]


def test_few_shot_learning_without_targets():
    f = across("cross_domain", [], ["imagenet"], 4)
    [table] = result_tables(f)
    assert (
        table.key == "all_classes_4"
        and values(table, "", "coop")[0].value == 60
        and "standard deviation" in table.caption
    )
    [table] = result_tables(
        replace(f, measured={part: m for part, m in f.measured.items() if part[0].method == "clip"})
    )
    assert (
        values(table, "", "coop")[0].missing
        == "CoOp was not tuned on imagenet (4 shots of all classes)"
        and "standard deviation" not in table.caption
    )


def test_a_target_that_is_not_there():
    f = across(
        "cross_domain",
        ["imagenetv2", "imagenet_r"],
        ["imagenet", "imagenetv2", "imagenet_r", "imagenet_sketch"],
        marks={"imagenet_r": "read without the reference split"},
    )
    table = transfer_table(f, "cross_domain", "imagenet", 16)
    cells = dict(zip([c.key for c in table.blocks[0].columns], values(table, "", "coop")))
    assert cells["imagenet_a"] == Cell(
        paper=50.65, missing="not evaluated: benchmark imagenet_a is not in params.yaml"
    )
    assert (
        cells["imagenet_sketch"].missing
        == "imagenet_sketch is not among the cross_domain benchmarks of imagenet in params.yaml"
    )
    assert cells["average"].value == 61.5 and cells["average"].paper is None
    assert table.notes[0].startswith(
        "The average is over ImageNetV2, ImageNet-R, not over the paper's 4 targets"
    )
    assert "| –<sup>c</sup> (paper 50.65) |" in as_markdown([table])
    assert table.footnotes[
        "read without the reference split"
    ] == "a" and "ImageNet-R<sup>a</sup>" in as_markdown([table])


def test_tables_6_and_7():
    made = [
        {
            "method": m,
            "title": m,
            "runs": 5,
            "base": b,
            "new": 50.0,
            "H": 55.0,
            "base_sd": 1.0,
            "new_sd": 2.0,
            "H_sd": 3.0,
        }
        for m, b in (
            ("unigram", 70.0),
            ("no_shift", 60.0),
            ("unigram_no_shift", 65.0),
            ("unigram_6", 50.0),
        )
    ]
    ablation, tokens = study_tables(made, list(PAPER.base_to_new.benchmarks), PAPER)
    assert ablation.number == 6 and values(ablation, "", "unigram_no_shift")[0] == Cell(
        65.0, 1.0, seeds=5, paper=79.68
    )
    assert values(ablation, "", "joint")[2] == Cell(
        paper=75.06, missing="no method joint in study.methods of params.yaml"
    )
    assert [r.cells[0].value for r in tokens.blocks[0].rows] == [None, 70, 50, None] and values(
        tokens, "", "unigram"
    )[0].best
    assert not any(b.paper for t in study_tables(made, ["animals"], PAPER) for b in t.blocks)
    assert study_tables(made[:1], ["animals"], PAPER) == []


def test_differences_with_both_intervals():
    f = half_way(PAPER.base_to_new.benchmarks)
    table = comparison_table(f, [("coop_gram", "coop"), ("coop", "vpt")], 16)
    base, new, _ = values(table, "", "coop_gram-coop")
    assert (base.value, base.over_pictures, base.best) == (
        pytest.approx(1),
        pytest.approx((1, 1)),
        True,
    ) and base.paper == pytest.approx(78.74 - 77.58)
    assert not new.best and new.over_seeds == pytest.approx((0, 0))
    assert values(table, "", "coop-vpt")[0].missing == "method vpt is not in params.yaml"
    assert (
        table.blocks[0].columns[0].group == "Base to new"
        and "+1.00" in as_html([table])
        and "seeds +1.00 to +1.00" in as_markdown([table])
    )


def test_differences_over_the_targets_too():
    of_targets = across(
        "cross_domain",
        list(PAPER.cross_domain[0].targets),
        ["imagenet", "dtd", *PAPER.cross_domain[0].targets],
    )
    of_halves = half_way(["dtd"], methods=("clip", "coop"))
    f = Findings(
        of_targets.measured | of_halves.measured,
        of_targets.titles,
        of_targets.benchmarks,
        of_targets.sources | of_halves.sources,
        PAPER,
    )
    table = comparison_table(f, [("coop", "clip")], 16)
    base, _, _, targets = values(table, "", "coop-clip")
    assert (base.value, base.paper) == (pytest.approx(1), None) and (
        targets.value,
        targets.paper,
    ) == (pytest.approx(10), pytest.approx(60.03 - 57.18))
    assert r"\cmidrule(lr){2-4}\cmidrule(lr){5-5}" in as_latex([table])


# --- files ---

NASTY = r"a & b_c % <d> | $e {f} #g ~h ^i \j *k* [l] `m` “n”"


def nasty():
    cells = [
        Cell(61.234, 0.5, (60.0, 62.0), (59.0, 63.0), 60.0, 3, 60.5, best=True),
        Cell(paper=1.0, missing=f"why: {NASTY}"),
    ]
    columns = [Column("x", NASTY, NASTY), Column("y", "y", "", NASTY)]
    return [
        Table(
            "k_1",
            NASTY,
            NASTY,
            [
                Block(
                    "p",
                    NASTY,
                    columns,
                    [Row("m", NASTY, cells), Row("o", NASTY, [Cell(paper=2.0)] * 2, others=True)],
                    NASTY,
                )
            ],
            [NASTY],
        )
    ]


def test_html_is_escaped_and_closed():
    text, found, left = as_html(nasty()), [], []

    class Reader(HTMLParser):
        def handle_starttag(self, tag, attrs):
            left.append(tag)

        def handle_endtag(self, tag):
            assert left.pop() == tag

        def handle_data(self, data):
            found.append(data)

    Reader().feed(text)
    assert not left and "<d>" not in text and any(NASTY in data for data in found)
    assert "61.23" in found and "±0.50" in found and "paper" in found and "60.50" in found
    assert (
        "95% interval over seeds: 60.00 to 62.00\n95% interval over pictures: 59.00 to "
        "63.00\nevery class counted alike: 60.00\nseeds: 3" in text
    )


def test_csv_has_a_row_per_cell_unrounded():
    rows = list(csv.DictReader(io.StringIO(as_csv(nasty()))))
    assert [(r["row"], r["column"]) for r in rows] == [
        ("m", "x"),
        ("m", "y"),
        ("o", "x"),
        ("o", "y"),
    ]
    assert (
        rows[0]["value"] == "61.234"
        and rows[0]["pictures_high"] == "63.0"
        and rows[0]["paper"] == "60.5"
        and rows[0]["others"] == ""
    )
    assert (
        rows[1]["missing"] == f"why: {NASTY}"
        and rows[1]["value"] == ""
        and (rows[2]["paper"], rows[2]["others"]) == ("", "2.0")
    )


def test_markdown_rows_have_as_many_cells_as_the_heading():
    lines = [line for line in as_markdown(nasty()).splitlines() if line.startswith("|")]
    assert {len(re.findall(r"(?<!\\)\|", line)) for line in lines} == {4} and len(lines) == 4
    assert (
        "**61.23** ± 0.50 (paper 60.50)" in lines[2]
        and "*2.00*" in lines[3]
        and "<d>" not in "".join(lines)
    )
    assert r"a &amp; b\_c % &lt;d&gt; \| $e {f} \#g \~h" in lines[2]


def test_latex_is_balanced_and_escaped():
    tables = [
        *nasty(),
        base_to_new_table(half_way(PAPER.base_to_new.benchmarks), 16, others=True),
        comparison_table(
            half_way(PAPER.base_to_new.benchmarks), [("coop", "vpt"), ("coop_gram", "coop")], 16
        ),
    ]
    text = as_latex(tables)
    bare = re.sub(r"\\[\\{}&%$#_]", "", text)  # without escaped signs and line ends
    assert (
        bare.count("{") == bare.count("}")
        and bare.count("$") % 2 == 0
        and "~" not in bare
        and "^" not in bare
        and "#" not in bare
    )
    stack = []
    for kind, name in re.findall(r"\\(begin|end)\{([a-z*]+)\}", text):
        if kind == "begin":
            stack.append(name)
        else:
            assert stack.pop() == name
    assert not stack
    for count, body in re.findall(
        r"\\begin\{tabular\}\{l\*\{(\d+)\}\{r\}\}(.*?)\\end\{tabular\}", text, re.DOTALL
    ):
        for line in re.findall(r".*\\\\$", body, re.MULTILINE):
            spans = [int(n) for n in re.findall(r"\\multicolumn\{(\d+)\}", line)]
            assert len(re.findall(r"(?<!\\)&", line)) + sum(spans) - len(spans) == int(count), line
    assert (
        r"a \& b\_c \% \textless{}d\textgreater{} \textbar{} \$e \{f\} \#g "
        r"\textasciitilde{}h \textasciicircum{}i \textbackslash{}j" in text
    )
    assert "(Table 1 of the paper)" in text and r"\scriptsize\color{gray}78.74" in text
    assert text.isascii(), sorted(set(re.findall(r"[^\x00-\x7f]", text)))


def test_the_same_input_gives_the_same_bytes():
    made = [
        [
            write(result_tables(half_way(["dtd", "animals"]), [("coop", "clip")]))
            for write in (as_html, as_csv, as_markdown, as_latex)
        ]
        for _ in range(2)
    ]
    assert made[0] == made[1]
