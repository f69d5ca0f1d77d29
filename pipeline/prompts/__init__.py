"""Prompt learners: one small class each behind the interface of `base.py`; a new one is one file and one entry below."""

from pipeline.prompts.base import PromptMethod
from pipeline.prompts.coop import CoOp
from pipeline.prompts.template import Template

METHODS: dict[str, type[PromptMethod]] = {"template": Template, "coop": CoOp}

__all__ = ["METHODS", "PromptMethod"]
