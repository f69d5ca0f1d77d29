"""Text towers from token embeddings on: where context tokens enter, and no position more than it
needs.

Three kinds are known: open_clip's causal transformer (CLIP), the same without a causal mask
(SigLIP's heads), and Hugging Face encoders (`CustomTextCLIP` with a BERT-like tower).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from open_clip.hf_model import HFTextEncoder
from open_clip.transformer import TextTransformer
from torch import Tensor
from torch.nn import functional as F

from pipeline.clip.blocks import in_parts, run_blocks
from pipeline.errors import InputError

# 4 GiB of activations for ViT-B/16's text tower at 20 positions; heads of 1,000 classes take two
# parts
TEXTS_AT_ONCE = 512
LONGEST = 1024  # tokens, until which a text's length is told exactly


@dataclass(frozen=True)
class Pieces:
    """Token ids of n texts, opened where context tokens go. Embeddings are made of as many as are
    encoded together: those of 21,000 padded texts are gigabytes.

    Attributes:
        start: (n, s) what stands before the context: the start token, or nothing (s = 0).
        rest: (n, r) the text's tokens, its end token, and padding up to the longest.
        end: (n,) position of the end token within `rest`.
    """

    start: Tensor
    rest: Tensor
    end: Tensor


class TextTower:
    """What the prompt methods know of a text tower.

    Attributes:
        width: d, size of a token embedding. room: positions there are. layers: blocks.
        vocabulary: tokens that have an embedding.
        starts: tokens before the text, which the context goes behind. end_id: the token behind it.
    """

    width: int
    room: int
    layers: int
    vocabulary: int
    device: torch.device
    padded = False  # every text is padded to `room`, and the padding takes part

    def __init__(self, module, tokenize: Callable[..., Tensor]) -> None:
        self.module, self.tokenize = module, tokenize
        empty, letter = tokenize(["", "a"])
        self.starts = int((empty == letter).int().cumprod(0).sum())
        self.end_id = int(empty[self.starts])

    def ends(self, ids: Tensor) -> Tensor:
        """(n, context) ids → (n,) position of the end token."""
        raise NotImplementedError

    def embed(self, ids: Tensor) -> Tensor:
        """(n, length) ids → (n, length, d), without positions."""
        raise NotImplementedError

    def encode(self, embeddings: Tensor, end: Tensor, deep: Tensor | None, deep_at: int) -> Tensor:
        """(n, length, d) embeddings whose end token stands at `end` → (n, e), not normalised."""
        raise NotImplementedError

    def ids(self, texts: Sequence[str], **length: int) -> Tensor:
        """(n, context) token ids; InputError for a token that has no embedding."""
        found = self.tokenize(list(texts), **length)
        highest, row = found.max(dim=1).values.max(dim=0)
        if highest >= self.vocabulary:
            raise InputError(
                f"'{texts[int(row)]}' has token {int(highest)} of the backbone's tokenizer, but "
                f"its text tower knows {self.vocabulary}; they do not belong together"
            )
        return found.to(self.device)

    def split(self, texts: Sequence[str]) -> Pieces:
        ids = self.ids(texts)
        end = self.ends(ids)
        ids = ids if self.padded else ids[:, : int(end.max()) + 1]
        return Pieces(ids[:, : self.starts], ids[:, self.starts :], end - self.starts)

    def lengths(self, texts: Sequence[str], pieces: Pieces) -> list[int]:
        """Tokens of the texts that `split` made pieces of, with those around them; tokenizers cut
        without a word what does not fit, but here they count up to `LONGEST`.
        """
        return self._lengths(texts, pieces.end + self.starts)

    def counted(self, texts: Sequence[str]) -> list[int]:
        """`lengths` of any number of texts, of which `TEXTS_AT_ONCE` are looked at together."""
        return [
            length
            for first in range(0, len(texts), TEXTS_AT_ONCE)
            for part in [texts[first : first + TEXTS_AT_ONCE]]
            for length in self._lengths(part, self.ends(self.ids(part)))
        ]

    def _lengths(self, texts: Sequence[str], ends: Tensor) -> list[int]:
        if int(ends.max()) == self.room - 1:
            ends = self.ends(self.ids(texts, context_length=max(LONGEST, self.room)))
        return (ends + 1).tolist()

    def features(
        self, pieces: Pieces, context: Tensor | None = None, deep: Tensor | None = None
    ) -> Tensor:
        """(n, e) L2-normalised features of the texts, with (n, M, d) context tokens after the start
        (Eq 2).

        Args:
            deep: (n, J, M, d) tokens that replace the context after block 1, … J.

        Raises InputError if context and text do not fit the tower's positions.
        """
        count = 0 if context is None else context.shape[1]
        end = pieces.end + self.starts + count
        if int(end.max()) >= self.room:
            raise InputError(
                f"{count} context tokens and a text of {int(pieces.end.max())} tokens do not fit "
                f"the text tower's {self.room} positions; lower 'context_tokens' or shorten "
                "the class name"
            )

        def encode(start, rest, ends, tokens, deeper):
            parts = [self.embed(start), *([] if tokens is None else [tokens]), self.embed(rest)]
            embeddings = torch.cat(parts, dim=1)[:, : self.room]  # padding gives way at its end
            return self.encode(embeddings, ends, deeper, self.starts)

        together = (pieces.start, pieces.rest, end, context, deep)
        features = in_parts(encode, TEXTS_AT_ONCE, *together)
        return F.normalize(features, dim=-1)


class TransformerText(TextTower):
    """open_clip's own transformer, inside `CLIP` (its parts lie in the model itself) or as
    `CustomTextCLIP.text`.
    """

    def __init__(self, module, tokenize) -> None:
        super().__init__(module, tokenize)
        self.pool = module.text_pool_type if hasattr(module, "text_pool_type") else module.pool_type
        self.eos = module.text_eos_id if hasattr(module, "text_eos_id") else module.eos_id
        if getattr(module, "cls_emb", None) is not None or getattr(module, "use_pad_mask", False):
            raise InputError(
                "the backbone's text tower appends a class token or masks its padding (CoCa); "
                "prompts for that kind are not implemented, choose another backbone"
            )
        self.device = module.positional_embedding.device
        self.room, self.width = module.positional_embedding.shape
        self.vocabulary = module.token_embedding.num_embeddings
        self.layers = len(module.transformer.resblocks)
        # Under the causal mask nothing behind the end token reaches it, so the sequence is cut
        # there.
        self.padded = module.attn_mask is None or self.pool not in ("argmax", "eos")
        self._check_pool()

    def _check_pool(self) -> None:
        """Raises InputError if what is taken for a text's feature stands elsewhere than at its end
        token.
        """
        letter = self.tokenize(["a"])
        taken = int(self.ends(letter))
        if letter[0, taken] != self.end_id:
            what = f"'eos_id' {self.eos}" if self.pool == "eos" else "the highest token"
            raise InputError(
                f"'text_cfg.pool_type' is '{self.pool}', which takes {what} for a text's end, but "
                f"the tokenizer ends a text with token {self.end_id}; config and tokenizer must "
                "belong together"
            )

    def ends(self, ids: Tensor) -> Tensor:
        if self.pool == "argmax":
            return ids.argmax(dim=-1)
        if self.pool == "eos":
            return (ids == self.eos).int().argmax(dim=-1)
        # The first of them: some tokenizers pad with the end token itself.
        return self.starts + (ids[:, self.starts :] == self.end_id).int().argmax(dim=-1)

    def embed(self, ids: Tensor) -> Tensor:
        return self.module.token_embedding(ids)

    def encode(self, embeddings, end, deep, deep_at):
        length = embeddings.shape[1]
        x = embeddings + self.module.positional_embedding[:length]
        mask = None if self.module.attn_mask is None else self.module.attn_mask[:length, :length]
        if self.pool == "first":
            end = torch.zeros_like(end)
        elif self.pool == "last":
            end = torch.full_like(end, length - 1)
        x = self.module.ln_final(
            run_blocks(self.module.transformer.resblocks, x, mask, end, deep, deep_at)[:, 0]
        )
        projection = self.module.text_projection
        if isinstance(projection, torch.nn.Linear):
            return projection(x)
        return x if projection is None else x @ projection


class HuggingFaceText(TextTower):
    """A Hugging Face encoder; bidirectional, so the padding is cut off through the attention
    mask.
    """

    def __init__(self, module: HFTextEncoder, tokenize) -> None:
        super().__init__(module, tokenize)
        config = module.transformer.config
        self.width, self.layers = config.hidden_size, config.num_hidden_layers
        # T5 has no limit of its own
        self.room = min(
            getattr(config, "max_position_embeddings", tokenize.context_length),
            tokenize.context_length,
        )
        embedding = module.transformer.get_input_embeddings()
        self.device, self.vocabulary = embedding.weight.device, embedding.num_embeddings
        if config.pad_token_id != tokenize.tokenizer.pad_token_id:
            raise InputError(
                f"its tokenizer pads with token {tokenize.tokenizer.pad_token_id}, but the Hugging "
                f"Face model's config.json has 'pad_token_id' {config.pad_token_id}; they must "
                "belong together"
            )

    def ends(self, ids: Tensor) -> Tensor:
        return (ids != self.module.config.pad_token_id).sum(dim=-1) - 1

    def embed(self, ids: Tensor) -> Tensor:
        return self.module.transformer.get_input_embeddings()(ids)

    def encode(self, embeddings, end, deep, deep_at):
        if deep is not None:
            raise InputError(
                "the backbone's text tower is a Hugging Face encoder, which takes tokens at its "
                "input only; use a method of depth 1"
            )
        mask = (torch.arange(embeddings.shape[1], device=end.device) <= end.unsqueeze(1)).long()
        out = self.module.transformer(inputs_embeds=embeddings, attention_mask=mask)
        return self.module.proj(self.module.pooler(out, mask))


def text_tower(model, tokenize) -> TextTower:
    """The tower of an `open_clip.CLIP` or `CustomTextCLIP`; InputError for a kind that is not
    known.
    """
    module = getattr(model, "text", model)
    if isinstance(module, HFTextEncoder):
        return HuggingFaceText(module, tokenize)
    if module is model or isinstance(module, TextTransformer):
        return TransformerText(module, tokenize)
    raise InputError(
        f"the backbone's text tower is a {type(module).__name__}; known are open_clip's "
        "transformers and Hugging Face encoders"
    )
