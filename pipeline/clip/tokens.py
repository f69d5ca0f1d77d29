"""The tokenizer of a backbone: open_clip's own, or Hugging Face's, with all that the config says of
it.
"""

from __future__ import annotations

import json
import zlib
from importlib.util import find_spec
from typing import Any

import open_clip
import torch
from open_clip.tokenizer import HFTokenizer

from pipeline.clip.config import Config, beside
from pipeline.errors import InputError
from pipeline.params import did_you_mean

VOCABULARY = "bpe.txt.gz"
CLEAN = ("lower", "whitespace", "canonicalize")
OF_OWN = ("additional_special_tokens", "clean")
# Keys that are no matter of a config, and what to do instead.
REFUSED = {
    "context_length": "it is read from 'text_cfg.context_length'",
    "bpe_path": f"the vocabulary is read from {VOCABULARY} beside the config; put it there",
    "reduction_mask": (
        "it cuts long texts at random, or by a tagger that it downloads, so that a text has other "
        "tokens each time; take it out (texts that fit keep their tokens)"
    ),
    "tokenizer_mode": "prompts for that kind are not implemented, choose another backbone",
    **dict.fromkeys(
        "cache_dir force_download local_files_only proxies revision subfolder token".split(),
        "the tokenizer is read from beside the config alone, nothing is downloaded; take it out",
    ),
    **dict.fromkeys(
        ("trust_remote_code", "code_revision"),
        "no code of a backbone is run; take it out, or choose another backbone",
    ),
}


def tokenizer(config: Config) -> Any:
    """n texts → (n, context) token ids, as `open_clip.get_tokenizer` makes them of that folder.

    Raises InputError naming the file, and the key where one asks for what is not done.
    """
    text = config.text
    if text.get("tokenizer_mode"):
        raise InputError(
            f"{config.path}: 'tokenizer_mode' is '{text['tokenizer_mode']}', which puts a token "
            "behind the padding; prompts for that kind are not implemented, choose another "
            "backbone"
        )
    options = _options(config)
    context = text.get("context_length") or open_clip.CLIPTextCfg.context_length
    key = "hf_tokenizer_name" if text.get("hf_tokenizer_name") else "hf_model_name"
    if text.get(key):
        return _hugging_face(config, key, context, options)
    return _own(config, context, options)


def require_transformers(config: Config) -> None:
    """Raises InputError where the text needs Hugging Face's library and it is not here."""
    text = config.text
    if (text.get("hf_model_name") or text.get("hf_tokenizer_name")) and not find_spec(
        "transformers"
    ):
        raise InputError(
            f"{config.path}: reads text with Hugging Face's library, which is not here: "
            "pip install transformers"
        )


def _options(config: Config) -> dict[str, Any]:
    """`tokenizer_kwargs`, without the keys that ask for nothing."""
    options = config.text.get("tokenizer_kwargs") or {}
    place = "model_cfg.text_cfg.tokenizer_kwargs"
    for key, remedy in REFUSED.items():
        if options.get(key):
            raise InputError(
                f"{config.path}: '{place}.{key}' is {json.dumps(options[key])[:60]}; {remedy}"
            )
    if options.get("clean", CLEAN[0]) not in CLEAN:
        raise InputError(
            f"{config.path}: '{place}.clean' is {json.dumps(options['clean'])[:60]}; known are "
            f"{', '.join(CLEAN)}"
        )
    return {k: v for k, v in options.items() if k not in REFUSED}


def _own(config: Config, context: int, options: dict[str, Any]) -> open_clip.SimpleTokenizer:
    for key in options:
        if key not in OF_OWN:
            raise InputError(
                f"{config.path}: unknown key 'model_cfg.text_cfg.tokenizer_kwargs.{key}' of "
                f"open_clip's own tokenizer{did_you_mean(key, OF_OWN)}"
            )
    special = options.get("additional_special_tokens") or []
    if not isinstance(special, list) or not all(isinstance(t, str) and t for t in special):
        raise InputError(
            f"{config.path}: 'model_cfg.text_cfg.tokenizer_kwargs.additional_special_tokens' is "
            f"{json.dumps(special)[:60]}; take a list of words"
        )
    vocabulary = config.path.parent / VOCABULARY
    own = {"bpe_path": str(vocabulary)} if vocabulary.exists() else {}
    try:
        made = open_clip.SimpleTokenizer(context_length=context, **own, **options)
    except (OSError, EOFError, zlib.error, UnicodeDecodeError) as error:
        raise InputError(
            f"{vocabulary}: not a complete gzip file of byte-pair merges ({error}); obtain it again"
        ) from None
    for place, merge in enumerate(made.bpe_ranks):
        if own and len(merge) != 2:
            raise InputError(
                f"{vocabulary}: line {place + 2} is '{' '.join(merge)}', where two parts that are "
                "merged must stand; obtain it again"
            )
    _check_vocabulary(config, max(made.encoder.values()) + 1, bool(own))
    return made


def _check_vocabulary(config: Config, tokens: int, own: bool) -> None:
    """Raises InputError if open_clip's own tokenizer does not have as many tokens as the tower: its
    start and end tokens, which are the last ones, would be others.
    """
    wanted = config.text.get("vocab_size") or open_clip.CLIPTextCfg.vocab_size
    vocabulary = config.path.parent / VOCABULARY
    if tokens != wanted and own:
        raise InputError(
            f"{vocabulary}: makes {tokens} tokens, but 'model_cfg.text_cfg.vocab_size' in "
            f"{config.path} is {wanted}; vocabulary and weights must belong together"
        )
    if tokens != wanted:
        raise InputError(
            f"{vocabulary}: missing; 'model_cfg.text_cfg.vocab_size' in {config.path} is {wanted}, "
            f"so the backbone has a vocabulary of its own (open_clip's has {tokens} tokens); put "
            "its merges there, or name its tokenizer under 'hf_tokenizer_name'"
        )


def _hugging_face(config: Config, key: str, context: int, options: dict[str, Any]) -> HFTokenizer:
    files = ("tokenizer_config.json", "tokenizer.json")
    place = beside(config, config.text[key], files, key)
    try:
        made = HFTokenizer(str(place), context_length=context, local_files_only=True, **options)
        empty, letter = made(["", "a"])
    except Exception as error:  # the library's kinds are many
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise InputError(
            f"{place}: its tokenizer cannot be used ({reason}); obtain it again, or change "
            f"'model_cfg.text_cfg.tokenizer_kwargs' in {config.path}"
        ) from None
    if made.tokenizer.padding_side != "right":
        raise InputError(
            f"{place}: its tokenizer pads on the {made.tokenizer.padding_side}; prompts for that "
            "kind are not implemented, choose another backbone"
        )
    if torch.equal(empty, letter):
        raise InputError(
            f"{place}: its tokenizer makes the same of an empty text and of 'a'; obtain it again"
        )
    return made
