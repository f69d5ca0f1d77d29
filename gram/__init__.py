"""The public face: a folder of pictures in, a classifier out (docs/own-pictures.md).

What is heavy is imported when it is used: `import gram` loads neither torch nor any room of
`pipeline/`.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

_WHERE = {"PromptClassifier": "gram.estimator", "InputError": "pipeline.errors"}

__all__ = ["InputError", "PromptClassifier"]


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        raise AttributeError(f"module 'gram' has no attribute '{name}'")
    return getattr(import_module(_WHERE[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_WHERE])
