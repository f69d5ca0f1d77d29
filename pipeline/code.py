"""Which of the project's code a stage script runs, and a digest of it, read from the source text.

A stage depends on its script's digest, not on some forty files one by one: DVC reads and writes
`dvc.lock` as a whole for every stage that it runs, and those entries were two thirds of it.
"""

from __future__ import annotations

import ast
import hashlib
import sys
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]

# What only watches: records and MLflow are told of results, this file and `owner` decide whether
# work goes on. None of them can change a result, so that an edit there leaves three million
# embeddings alone.
WATCHING = ("pipeline/tracking/", "pipeline/code.py", "pipeline/owner.py")


@cache
def _imports(path: Path) -> frozenset[str]:
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            names |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return frozenset(names)


@cache
def _files(module: str) -> frozenset[Path]:
    """The module's own file and the __init__ of every package above it, as far as they are the
    project's.
    """
    parts, found = module.split("."), set()
    for depth in range(1, len(parts) + 1):
        base = ROOT.joinpath(*parts[:depth])
        found |= {
            path for path in (base / "__init__.py", base.with_suffix(".py")) if path.is_file()
        }
    return frozenset(found)


def closure(script: Path) -> list[str]:
    """The files that a script imports, directly or not, in functions too: relative to the
    repository, sorted, without the script itself.
    """
    waiting, seen = [script], set()
    while waiting:
        for module in _imports(waiting.pop()):
            if module.split(".")[0] in ("pipeline", "_repository"):
                new = _files("stages._repository" if module == "_repository" else module) - seen
                seen |= new
                waiting += new
    names = sorted(path.relative_to(ROOT).as_posix() for path in seen if path.stat().st_size > 0)
    return [name for name in names if not name.startswith(WATCHING)]


@cache
def _digest(path: Path) -> str:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        if (
            isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef))
            and ast.get_docstring(node) is not None
        ):
            node.body = node.body[1:] or [ast.Pass()]
    return hashlib.sha256(ast.unparse(tree).encode()).hexdigest()


def digests(script: Path) -> dict[str, str]:
    """SHA-256 of the script and of every file of its closure, as they act: comments, docstrings
    and layout do not count.
    """
    return {
        name: _digest(ROOT / name)
        for name in [script.relative_to(ROOT).as_posix(), *closure(script)]
    }


def running() -> str:
    """A digest of the code that this process runs: of its stage script, or, elsewhere (a test, a
    notebook), of what is loaded of the project.
    """
    script = Path(getattr(sys.modules["__main__"], "__file__", None) or "-").resolve()
    if script.parent == ROOT / "stages":
        found = digests(script)
    else:
        files = {getattr(module, "__file__", None) for module in list(sys.modules.values())}
        names = {
            path.relative_to(ROOT).as_posix(): path
            for path in (Path(file).resolve() for file in files if file)
            if path.is_relative_to(ROOT / "pipeline")
        }
        found = {n: _digest(p) for n, p in names.items() if not n.startswith(WATCHING)}
    return hashlib.sha256(repr(sorted(found.items())).encode()).hexdigest()
