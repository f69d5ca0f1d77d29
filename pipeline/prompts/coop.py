"""CoOp: learned context tokens before the class name (Eq 2)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Sequence

import torch
from torch import Tensor

from pipeline.clip.text import encode_embeddings
from pipeline.errors import InputError
from pipeline.prompts.base import PromptMethod, Tokens

FOUR_WORDS = "a photo of a"


@dataclass(frozen=True)
class NamedClasses:
    """Token embeddings around the context, cut at the longest name.

    Attributes:
        start: (T·K, 1, d) embedding of the start token.
        rest: (T·K, L, d) embeddings of name, full stop and end token.
        end: (T·K,) position of the end token within `rest`.
        shape: (T, K).
    """

    start: Tensor
    rest: Tensor
    end: Tensor
    shape: tuple[int, int]


class CoOp(PromptMethod):
    def initial(self, count: int, generator: torch.Generator) -> Tokens:
        """The embeddings of "a photo of a" for four tokens that it splits into, otherwise N(0, 0.02²)."""
        table = self.backbone.model.token_embedding.weight
        if count == 4:
            ids = self.backbone.tokenize([FOUR_WORDS])[0]
            words = ids[1 : int(ids.argmax())]
            if len(words) == 4:
                return {"text": table[words.to(table.device)].clone()}
        random = torch.randn(count, table.shape[1], generator=generator) * 0.02
        return {"text": random.to(table.device)}

    def prepare(self, tasks: Sequence[Sequence[str]]) -> NamedClasses:
        names = [name.replace("_", " ") + "." for task in tasks for name in task]
        ids = self.backbone.tokenize(names).to(self.backbone.device)
        end = ids.argmax(dim=-1)
        embeddings = self.backbone.model.token_embedding(ids[:, : int(end.max()) + 1])
        return NamedClasses(embeddings[:, :1], embeddings[:, 1:], end - 1, (len(tasks), len(names) // len(tasks)))

    def text_features(self, tokens: Tokens, classes: NamedClasses) -> Tensor:
        context = tokens["text"]
        count, width = context.shape[-2:]
        T, K = classes.shape
        room = len(self.backbone.model.positional_embedding)
        if 1 + count + classes.rest.shape[1] > room:
            raise InputError(f"{count} context tokens and a class name of {classes.rest.shape[1] - 1} tokens do not fit the text tower's {room} positions; lower 'context_tokens' or shorten the name")
        context = context.unsqueeze(1).expand(T, K, count, width).reshape(T * K, count, width)
        embeddings = torch.cat([classes.start, context, classes.rest], dim=1)
        features = encode_embeddings(self.backbone.model, embeddings, classes.end + 1 + count)
        return features.reshape(T, K, -1)
