"""Prompt learners: one small class each behind the interface of `base.py`; a new one is one file
and one entry below.

Its name goes into `Prompt` of gram/params.py too, where params.yaml is checked without loading
torch.
"""

from pipeline.prompts.base import PromptMethod
from pipeline.prompts.cocoop import CoCoOp
from pipeline.prompts.coop import CoOp
from pipeline.prompts.coupled import Coupled
from pipeline.prompts.joint import Joint
from pipeline.prompts.vpt import VPT

METHODS: dict[str, type[PromptMethod]] = {
    "coop": CoOp,
    "cocoop": CoCoOp,
    "vpt": VPT,
    "joint": Joint,
    "coupled": Coupled,
}

__all__ = ["METHODS", "PromptMethod"]
