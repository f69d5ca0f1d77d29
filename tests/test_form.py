"""What ruff has no rule for."""

import ast

from conftest import ROOT

LINES = 40


def lines_of(node):
    """A function's lines without its docstring, which may be as long as it must."""
    first = node.body[0]
    told = ast.get_docstring(node, clean=False) is not None
    return node.end_lineno - node.lineno + 1 - told * (first.end_lineno - first.lineno + 1)


def functions(text):
    kinds = ast.FunctionDef | ast.AsyncFunctionDef
    return [node for node in ast.walk(ast.parse(text)) if isinstance(node, kinds)]


def test_no_function_is_longer_than_a_person_reads_at_once():
    paths = [p for top in ("pipeline", "stages", "gram") for p in (ROOT / top).rglob("*.py")]
    found = {
        f"{path.relative_to(ROOT)}: {node.name}": lines_of(node)
        for path in paths
        for node in functions(path.read_text(encoding="utf-8"))
    }
    assert len(found) > 500
    assert {name: lines for name, lines in found.items() if lines > LINES} == {}


def test_a_docstring_does_not_count():
    text = (
        'def f():\n    """One.\n\n    Two.\n    """\n    return 1\n\ndef g(\n    x,\n):\n    pass\n'
    )
    assert [lines_of(node) for node in functions(text)] == [2, 4]
