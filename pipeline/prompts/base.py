"""The interface that meta-training, tuning and evaluation know prompts by."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pipeline.clip.backbone import Backbone
from pipeline.clip.text import TEXTS_AT_ONCE, Pieces, TextTower
from pipeline.clip.vision import require_tokens
from pipeline.errors import InputError

# What a method learns, by name: {"text": (T, rows, d), "image": (T, rows, d')}, with one set for
# each of T tasks. Rows are tokens, or the rows of a weight matrix; R^φ treats each row like a
# column of the paper's g.
Tokens = dict[str, Tensor]


class PromptMethod(ABC):
    """One way of putting learned tokens into a frozen CLIP.

    Everything is batched over T tasks: the same call serves a batch of meta-training tasks (each
    with its own adapted tokens) and one dataset (T = 1).

    Attributes:
        sees_pixels: the method needs pictures; others work on cached image features.
        depth: blocks that get learned tokens; 1: at the tower's input only.
    """

    sees_pixels = False

    def __init__(
        self, backbone: Backbone, template: str = "a photo of a {}.", depth: int = 1
    ) -> None:
        """`template` is the benchmark's hand-written prompt, where the text side is fixed."""
        self.backbone, self.template, self.depth = backbone, template, depth

    @abstractmethod
    def initial(self, count: int, generator: torch.Generator, words: str | None = None) -> Tokens:
        """The start without the task dimension: {name: (rows, d)}; {} if nothing is learned.

        Args:
            count: M, context tokens in all. words: text whose tokens the context starts from, or
            None.
        """

    @abstractmethod
    def prepare(self, tasks: Sequence[Sequence[str]]) -> Any:
        """What can be computed once from the class names of T tasks with K classes each."""

    def look(self, images: Tensor) -> Tensor:
        """What can be computed once from (T, n, e) features or (T, n, 3, h, w) pixels."""
        return images

    @abstractmethod
    def text_features(self, tokens: Tokens, classes: Any) -> Tensor:
        """(T, K, e) L2-normalised features of the prompted classes."""

    def image_features(self, tokens: Tokens, seen: Tensor) -> Tensor:
        """(T, n, e) L2-normalised features of the pictures that `look` saw."""
        return seen

    def head(self, tokens: Tokens, classes: Any) -> Any:
        """What of the logits depends on no picture; many pictures are then scored against it."""
        return self.text_features(tokens, classes)

    def scores(self, tokens: Tokens, head: Any, seen: Tensor) -> Tensor:
        """Eq 1 with the backbone's own logit scale: pictures that `look` saw → (T, n, K) logits."""
        return (
            self.backbone.logit_scale * self.image_features(tokens, seen) @ head.transpose(-1, -2)
        )

    def logits(self, tokens: Tokens, classes: Any, seen: Tensor) -> Tensor:
        """(T, n, K) logits of pictures that `look` saw, for classes from `prepare`."""
        return self.scores(tokens, self.head(tokens, classes), seen)


def random_rows(rows: int, width: int, generator: torch.Generator, device: torch.device) -> Tensor:
    """N(0, 0.02²), drawn on the CPU so that every device starts the same."""
    return (torch.randn(rows, width, generator=generator) * 0.02).to(device)


def placed(tokens: Tokens, device: torch.device) -> Tokens:
    """{name: (rows, d)} as it is stored → {name: (1, rows, d)} on the device, as of one task."""
    return {name: rows.unsqueeze(0).to(device) for name, rows in tokens.items()}


def linear_rows(
    outputs: int, inputs: int, generator: torch.Generator, device: torch.device
) -> Tensor:
    """(outputs, inputs + 1): weights and, as the last column, bias, each uniform within
    ±1/√inputs (torch's Linear).
    """
    return ((torch.rand(outputs, inputs + 1, generator=generator) * 2 - 1) * inputs**-0.5).to(
        device
    )


def linear(x: Tensor, rows: Tensor) -> Tensor:
    """(…, n, i) through the weights and bias of (…, o, i + 1) `linear_rows` → (…, n, o)."""
    return x @ rows[..., :-1].transpose(-1, -2) + rows[..., -1].unsqueeze(-2)


def repeated(per_task: Tensor, times: int) -> Tensor:
    """(T, …) → (T · times, …): one copy of each task's tokens for each of its classes or
    pictures.
    """
    return per_task.unsqueeze(1).expand(-1, times, *per_task.shape[1:]).flatten(0, 1)


FOUR_WORDS = "a photo of a"
RANDOM = "random"


def words_or_random(
    backbone: Backbone, count: int, generator: torch.Generator, words: str | None
) -> Tensor:
    """(M, d) context tokens: the embeddings of `words`, or the first M of "a photo of a"; of more
    tokens, N(0, 0.02²).

    The words "random" ask for N(0, 0.02²). Raises InputError if `words` are given and are not M
    tokens.
    """
    tower = backbone.text
    if words == RANDOM:
        return random_rows(count, tower.width, generator, backbone.device)
    pieces = tower.split([words or FOUR_WORDS])
    found = tower.embed(pieces.rest[0, : int(pieces.end)])
    if words and len(found) != count:
        raise InputError(
            f"the initial words '{words}' are {len(found)} tokens of this backbone, but the "
            f"method has {count} context tokens in its text; change 'init' or "
            "'context_tokens'"
        )
    return (
        found[:count].clone()
        if count <= len(found)
        else random_rows(count, tower.width, generator, backbone.device)
    )


def in_words(name: str, template: str = "{}.") -> str:
    """A class name in a template, with a space for each `_`; by itself as a context is put before
    it (Eq 2).
    """
    return template.replace("{}", name.replace("_", " "))


def require_room(tower: TextTower, names: Sequence[str], lengths: Sequence[int], more: int) -> None:
    """Raises InputError naming the class whose text is longer than the tower: cut, it would be
    another class's prompt too.

    Args:
        lengths: tokens of the names' texts (`TextTower.lengths`). more: context tokens beside them.
    """
    longest = max(range(len(names)), key=lengths.__getitem__)
    if lengths[longest] + more > tower.room:
        context = f" and {more} context tokens" if more else ""
        raise InputError(
            f"class '{names[longest]}': its prompt has {lengths[longest]} tokens{context}, which "
            f"do not fit the text tower's {tower.room} positions; shorten the class's name, its "
            "template, or lower 'context_tokens'"
        )


def check_prompts(
    backbone: Backbone, names: Sequence[str], template: str, where: Path | str
) -> None:
    """Raises InputError naming `where` if the prompt of a class does not fit the text tower, or if
    two classes of different names have one.
    """
    tower, known = backbone.text, {}
    texts = [in_words(name, template) for name in names]
    try:
        require_room(tower, names, tower.counted(texts), 0)
    except InputError as error:
        raise InputError(f"{where}: {error}") from None
    alone = [in_words(name) for name in names]
    parts = (alone[i : i + TEXTS_AT_ONCE] for i in range(0, len(names), TEXTS_AT_ONCE))
    tokens = (row.tobytes() for part in parts for row in tower.tokenize(part).numpy())
    for name, ids in zip(names, tokens, strict=True):
        first = known.setdefault(ids, name)
        if first != name:
            raise InputError(
                f"{where}: the classes '{first}' and '{name}' are one prompt to this backbone's "
                "tokenizer, which cannot tell them apart; rename or merge them"
            )


class NamedClasses:
    """The class names' tokens, opened for a context (Eq 2), and the number of tasks
    and classes.
    """

    def __init__(self, backbone: Backbone, tasks: Sequence[Sequence[str]]) -> None:
        self.names = [name for task in tasks for name in task]
        texts = [in_words(name) for name in self.names]
        self.tower = backbone.text
        self.pieces: Pieces = self.tower.split(texts)
        self.lengths = self.tower.lengths(texts, self.pieces)
        self.require_room(0)
        self.shape = (len(tasks), len(tasks[0]))

    def require_room(self, context: int) -> None:
        """Raises InputError naming a class that does not fit beside so many context tokens."""
        require_room(self.tower, self.names, self.lengths, context)


class TextContext(PromptMethod):
    """Methods that learn a context before the class name; `text` holds M rows, or M for each of
    `depth` blocks.
    """

    def __init__(
        self, backbone: Backbone, template: str = "a photo of a {}.", depth: int = 1
    ) -> None:
        super().__init__(backbone, template, depth)
        if depth > backbone.text.layers:
            raise InputError(
                f"'depth' is {depth}, but the backbone's text tower has {backbone.text.layers} "
                "blocks; lower it"
            )

    def prepare(self, tasks: Sequence[Sequence[str]]) -> NamedClasses:
        return NamedClasses(self.backbone, tasks)

    def initial_text(self, count: int, generator: torch.Generator, words: str | None) -> Tensor:
        """(depth · M, d): words or random at the input, random in the blocks behind it."""
        first = words_or_random(self.backbone, count, generator, words)
        return torch.cat(
            [first, random_rows((self.depth - 1) * count, first.shape[1], generator, first.device)]
        )

    def text_features(self, tokens: Tokens, classes: NamedClasses) -> Tensor:
        T, K = classes.shape
        first, deep = by_depth(repeated(tokens["text"], K), self.depth)
        classes.require_room(first.shape[1])
        return self.backbone.text.features(classes.pieces, first, deep).view(T, K, -1)


class FixedText(PromptMethod):
    """Methods whose text side is the hand-written template."""

    def prepare(self, tasks: Sequence[Sequence[str]]) -> Tensor:
        return self.filled(self.template, tasks)

    def filled(self, template: str, tasks: Sequence[Sequence[str]]) -> Tensor:
        """(T, K, e) L2-normalised features of a template with the classes' names in it."""
        tower = self.backbone.text
        named = [name for names in tasks for name in names]
        parts = []
        with torch.no_grad():
            for first in range(0, len(named), TEXTS_AT_ONCE):
                of_part = named[first : first + TEXTS_AT_ONCE]
                texts = [in_words(name, template) for name in of_part]
                pieces = tower.split(texts)
                require_room(tower, of_part, tower.lengths(texts, pieces), 0)
                parts.append(tower.features(pieces))
        features = torch.cat(parts)
        return features.view(len(tasks), -1, features.shape[-1])

    def text_features(self, tokens: Tokens, classes: Tensor) -> Tensor:
        return classes


def by_depth(rows: Tensor, depth: int) -> tuple[Tensor, Tensor | None]:
    """(n, depth · M, d) → tokens at the input (n, M, d), and those of the following blocks (n,
    depth − 1, M, d) or None.
    """
    layers = rows.unflatten(1, (depth, -1))
    return layers[:, 0], layers[:, 1:] if depth > 1 else None


class VisualTokens(PromptMethod):
    """Mixin for methods that learn tokens beside the patches; `image` holds M rows, or M for
    each of `depth` blocks.
    """

    sees_pixels = True

    def __init__(
        self, backbone: Backbone, template: str = "a photo of a {}.", depth: int = 1
    ) -> None:
        super().__init__(backbone, template, depth)
        self.tower = require_tokens(backbone.vision, backbone.model)
        if depth > self.tower.layers:
            raise InputError(
                f"'depth' is {depth}, but the backbone's vision tower has {self.tower.layers} "
                "blocks; lower it"
            )

    def look(self, images: Tensor) -> Tensor:
        """(T, n, 3, h, w) pixels → (T, n, P, d) embedded patches, which no token changes."""
        with torch.no_grad():
            return self.tower.embed(images.flatten(0, 1)).unflatten(0, images.shape[:2])

    def image_features(self, tokens: Tokens, seen: Tensor) -> Tensor:
        return self.seen_with(tokens["image"], seen)

    def seen_with(self, rows: Tensor, seen: Tensor) -> Tensor:
        """(T, depth · M, d) tokens beside (T, n, P, d) patches → (T, n, e)."""
        T, n = seen.shape[:2]
        first, deep = by_depth(repeated(rows, n), self.depth)
        return self.tower.features(seen.flatten(0, 1), first, deep).view(T, n, -1)
