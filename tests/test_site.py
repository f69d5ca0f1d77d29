"""The documentation site: what is generated for it. `make docs` builds it, in CI too."""

import importlib
import re
import sys

import pytest
from conftest import ROOT
from ruamel.yaml import YAML

from pipeline.schema import Params


@pytest.fixture(scope="module")
def site():
    """The modules beside its configuration."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(ROOT / "docs" / "site")
        yield {name: importlib.import_module(name) for name in ("docstrings", "generated")}
        for name in ("docstrings", "generated"):
            del sys.modules[name]


def test_every_stage_is_there_with_what_it_reads_and_writes(site):
    page = site["generated"].stages()
    listed = YAML(typ="safe").load((ROOT / "dvc.yaml").read_text())["stages"]
    assert re.findall(r"^## (\w+)$", page, re.M) == list(listed)
    of = dict(re.findall(r"^## (\w+)\n(.*?)(?=^## |\Z)", page, re.M | re.S))
    assert "`data/topics.parquet`" in of["topics"] and "`topics.min_cluster_size`" in of["topics"]
    assert "[TOPICS](artifacts.md#clustering-topics)" in of["topics"]
    assert "VERDICTS" in of["evaluate"] and "VERDICTS" not in of["topics"]
    for name in ("topics", "draw_benchmark"):  # in the middle of what its script says; at the end
        assert f"```sh\npython stages/{name}.py" in of[name]


def test_every_schema_that_is_linked_has_its_table(site):
    page = site["generated"].artifacts()
    targets = set(re.findall(r"^\((\S+)\)=$", page, re.M))
    assert set(re.findall(r"artifacts\.md#([\w-]+)", site["generated"].stages())) <= targets
    assert "| `strength` | `float` |" in page and "topic −1: outlier." in page
    schemas = sum(
        len(re.findall(r"^(?:[A-Z]+ = pa\.schema|def \w+_schema)", p.read_text(), re.M))
        for p in (ROOT / "pipeline").glob("*/schemas.py")
    )
    assert len(targets) == schemas


def test_every_parameter_is_there_with_its_kind_and_words(site):
    page = site["generated"].parameters()
    for name in Params.model_fields:
        assert re.search(rf"^\| `{name}[`.]", page, re.M), name
    rows = dict(re.findall(r"^\| `([\w.]+)` \| (.*) \|$", page, re.M))
    assert rows["inner_lr"] == "number, > 0, ≤ 1e+38 |  | α, the rate of the inner step (Eq 7)"
    assert rows["outer.optimiser"].startswith("`adamw` or `sgd` |")
    assert rows["methods.meta.NAME.order"].startswith('`second` or `first` | `"second"` |')
    assert rows["filter.neighbours"].startswith("integer, ≥ 1")


def test_no_word_of_the_code_is_a_tag(site):
    """`<script>` in a docstring took the rest of the page."""
    for page in (
        site["generated"].stages,
        site["generated"].artifacts,
        site["generated"].parameters,
    ):
        words = re.sub(r"```.*?```|`[^`\n]*`", "", page(), flags=re.S)
        assert not re.search(r"(?<!\\)<\w", words)


def test_every_module_is_documented_once(site):
    pages = site["generated"].api()
    listed = re.findall(r"automodule:: (\S+)", "".join(pages.values()))
    files = [p for room in ("gram", "pipeline") for p in (ROOT / room).rglob("*.py")]
    assert len(listed) == len(set(listed)) == len(files) - len(site["generated"].NO_API)
    assert {"gram.estimator", "pipeline.prompts.base", "pipeline.clustering"} <= set(listed)


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("A `code` and 2 * 3 | 4.", r"A ``code`` and 2 \* 3 \| 4."),
        ("It ends in tokens_ here.", r"It ends in tokens\_ here."),
        ("Code `over\nthe line` ends.", "Code ``over the line`` ends."),
        (
            "Args:\n    a: one. b, c: two\n    lines.",
            "**Args:**\n\n* **a**: one.\n* **b, c**: two lines.",
        ),
        ("Raises:\n    InputError if not.", "**Raises:** InputError if not."),
        ("Run:\n\n    make `x`\n      y\n\nDone.", "Run:\n\n::\n\n    make `x`\n      y\n\nDone."),
    ],
)
def test_docstrings_are_plain_text(site, text, wanted):
    lines = text.split("\n")
    site["docstrings"].as_restructured(None, "function", "f", None, None, lines)
    assert re.sub(r"\n{3,}", "\n\n", "\n".join(lines)).strip() == wanted


def test_links_of_the_readme_lead_where_they_led(site):
    page = site["generated"].at_root("README.md")
    folder = ROOT / "docs" / "_generated"
    pages = {"start.md", "CHANGELOG.md", "CONTRIBUTING.md"}
    links = [m[1].partition("#")[0] for m in site["generated"].LINK.finditer(page)]
    assert len(links) > 20
    for link in links:
        assert link in pages or (folder / link).resolve().exists(), link
