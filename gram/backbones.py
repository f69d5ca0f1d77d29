"""Where a backbone lies."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from pipeline.errors import InputError


def _repository(name: str) -> str:
    """The Hugging Face repository of an open_clip name: MODEL/PRETRAINED, or hf-hub:OWNER/NAME."""
    import open_clip

    if name.startswith("hf-hub:"):
        return name.removeprefix("hf-hub:")
    model, _, tag = name.partition("/")
    config = open_clip.get_pretrained_cfg(model, tag) if tag else {}
    if not config or not config.get("hf_hub"):
        raise InputError(
            f"backbone '{name}' is neither a folder nor an open_clip name that can be obtained; "
            "give a folder in open_clip's layout, MODEL/PRETRAINED (ViT-B-16/openai), or "
            "hf-hub:OWNER/NAME"
        )
    return config["hf_hub"].strip("/")


def resolve(name: str, say: Callable[[str], object] = lambda words: None) -> Path:
    """The folder of a backbone. An open_clip name is obtained over the network, once, and that is
    said.

    Raises InputError for a name that open_clip does not know, or weights that cannot be obtained.
    """
    if Path(name).is_dir():
        return Path(name)
    repository = _repository(name)
    from huggingface_hub import snapshot_download

    say(f"backbone {name}: obtained from the Hugging Face repository {repository}, unless cached")
    try:
        return Path(
            snapshot_download(
                repository, allow_patterns=["*.json", "open_clip_model.safetensors", "*.txt"]
            )
        )
    except Exception as error:  # huggingface_hub raises its own, requests' and OS errors
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise InputError(
            f"backbone '{name}' could not be obtained from {repository} ({reason}); give a "
            "folder in open_clip's layout instead"
        ) from None
