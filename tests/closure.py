"""Which files of the project a script imports, directly or not, read from the source text."""

from __future__ import annotations

import ast
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def _imports(path: Path) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            names |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def _files(module: str) -> set[Path]:
    """The module's own file and the __init__ of every package above it, as far as they are the project's."""
    parts, found = module.split("."), set()
    for depth in range(1, len(parts) + 1):
        base = ROOT.joinpath(*parts[:depth])
        for path in (base / "__init__.py", base.with_suffix(".py")):
            if path.is_file():
                found.add(path)
    return found


def closure(script: Path) -> list[str]:
    """Paths relative to the repository, sorted, without the script itself."""
    waiting, seen = [script], set()
    while waiting:
        for module in _imports(waiting.pop()):
            if module.split(".")[0] in ("pipeline", "_repository"):
                new = _files("stages._repository" if module == "_repository" else module) - seen
                seen |= new
                waiting += new
    return sorted(str(p.relative_to(ROOT)) for p in seen if p.stat().st_size > 0)
