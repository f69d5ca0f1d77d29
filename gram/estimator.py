"""The classifier, in scikit-learn's habit."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace as changed_in
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.exceptions import NotFittedError

from gram import methods as known
from gram.choice import choose
from gram.collection import Collection, most_folds, twins
from gram.inputs import (
    Prepared,
    Say,
    checked_template,
    collected,
    loaded,
    loaded_again,
    readable,
    silent,
)
from gram.looking import all_opened, features_of_views, test_features
from gram.prompted import (
    Learned,
    Seen,
    Task,
    context_of,
    features_of,
    learned_by,
    logits_of,
    sight_of,
)
from gram.published import read_start
from gram.trust import chances, nonconformity, set_threshold, sets, temperature_of
from pipeline.clip.backbone import Backbone
from pipeline.clip.digest import backbone_digest
from pipeline.errors import InputError
from pipeline.pictures import same_words

AUTO = "auto"
TOWERS = ("backbone_", "task_", "sight_")  # no part of a pickle


class PromptClassifier(ClassifierMixin, BaseEstimator):
    """Pictures to class names, from a few pictures of each class (paper §3.3, "Testing").

    Args:
        backbone: a folder in open_clip's layout, or an open_clip name (which is fetched).
        start: folder of a meta-learned start for that backbone, or None.
        method: one of `gram.methods.TITLES`, or "auto": the simplest of them that is not
            measurably worse than the best on held-out pictures.
        template: hand-written prompt, `{}` is the class name's place.
        folds: parts that are held out in turn; fewer where a class has fewer pictures; 0: nothing
            is measured, and "auto" takes a probe, from the start where there is one.
        seed: of folds, augmented views and tuning.

    Attributes (after `fit`):
        classes_: (K,) the labels that occur, sorted, in the type that was given: text, whole
            numbers or truth values (after `with_classes`, text). names_: the same as text.
        method_: what was taken. sentence_: why.
        matrix_: (K, e) float32; logits are scale · f matrix_ᵀ (None with a CoCoOp prompt, which
            has another matrix for every picture). tokens_, prompt_: the learned tokens, and the
            kind and depth of the prompt they are of. title_: the method's, in words.
        trust_: what rows of the prompt alone are multiplied by, as `with_classes` adds them.
        temperature_: what logits are divided by. comparison_: one row per method that was tried.
        held_out_: (n, K) probabilities of the training pictures under what was learned without
            their fold; None with `folds=0`.
    """

    def __init__(
        self,
        backbone: str | Path | None = None,
        start: str | Path | None = None,
        method: str = AUTO,
        template: str = "a photo of a {}.",
        folds: int = 5,
        seed: int = 1,
    ) -> None:
        self.backbone = backbone
        self.start = start
        self.method = method
        self.template = template
        self.folds = folds
        self.seed = seed

    # --- learning ---

    def fit(self, pictures: Any, labels: Sequence[Any] | None = None) -> PromptClassifier:
        """Learns from pictures and their labels, which are the class names.

        Args:
            pictures: paths, PIL pictures or encoded bytes, with `labels`; or, without, one folder
                or zip of class/picture, or a CSV of path,label.

        Raises InputError naming the picture, class or argument, and the remedy.
        """
        return self.learn(self.prepared(collected(pictures, labels)))

    def prepared(self, collection: Collection, say: Say = silent) -> Prepared:
        """All that is checked before anything is computed; raises as `fit` does."""
        checked_template(self.template)
        if self.folds < 0 or self.folds == 1:
            raise InputError(f"'folds' is {self.folds}; take 0, or 2 and more")
        if not 0 <= self.seed < 2**32:
            raise InputError(f"'seed' is {self.seed}; take a number from 0 to {2**32 - 1}")
        folds = most_folds(collection.labels, self.folds, collection.source)
        backbone, place = loaded(self.backbone, say)
        made_by = backbone_digest(place)
        start = read_start(Path(self.start), backbone, made_by) if self.start else None
        names = tuple(collection.names)
        task = Task(backbone, names, self.template, start, self.seed)
        known.check_names(task, names, context_of(start.about, start.theta) if start else 0)
        if self.method != AUTO:
            known.known(self.method, start)
            tried = [self.method]
        else:
            tried = known.candidates(start)
        if self.method == AUTO and not folds:
            tried = [known.unmeasured(start)]
        return Prepared(task, collection, folds, tried, place, made_by)

    def learn(
        self, ready: Prepared, pictures: Callable = iter, tick: Callable[[], Any] = lambda: None
    ) -> PromptClassifier:
        """Learns what was prepared; `pictures` may wrap the pictures in a progress bar."""
        task, collection = ready.task, ready.collection
        labels, found = collection.targets, all_opened(collection.read, collection.files)
        views = known.views_for(ready.methods, task.start)
        features = features_of_views(task.backbone, pictures(found), views, task.seed)
        seen = Seen(features, collection.picture)
        self._measure(ready, seen, labels, tick)
        learned = known.METHODS[self.method_](task, seen, torch.from_numpy(labels))
        tick()
        self.title_ = known.titled(self.method_, task.start)
        self.matrix_, self.tokens_, self.prompt_ = learned.matrix, learned.tokens, learned.about
        self.trust_ = learned.trust
        self.classes_, self.names_ = collection.classes, list(task.names)
        self.template_ = task.template
        self.features_ = features_of(task, learned, seen).half()
        self.collection_, self.targets_ = collection, labels
        self.backbone_, self.place_, self.digest_ = task.backbone, ready.place, ready.digest
        self.sight_ = sight_of(task, learned.about, learned.tokens)
        self.task_ = task
        self.origin_: Path | None = None
        self.scores_: np.ndarray | None = None
        if self.held_out_ is not None:
            self.scores_ = nonconformity(self.held_out_, labels)
        return self

    def _measure(
        self, ready: Prepared, seen: Seen, labels: np.ndarray, tick: Callable[[], Any]
    ) -> None:
        """Takes a method, on held-out pictures where there are folds."""
        self.held_out_: np.ndarray | None = None
        self.held_out_logits_: np.ndarray | None = None
        self.comparison_: list[dict[str, Any]] = []
        self.temperature_, self.folds_ = 1.0, ready.folds
        if not ready.folds:
            self.method_ = ready.methods[0]
            title = known.titled(self.method_, ready.task.start)
            self.sentence_ = f"{title} was taken; nothing was measured."
            return
        choice = choose(ready.task, ready.methods, seen, labels, ready.folds, tick)
        self.method_, self.sentence_ = choice.method, choice.sentence
        self.comparison_ = choice.rows
        self.temperature_ = temperature_of(choice.logits, labels)
        self.held_out_logits_ = choice.logits
        self.held_out_ = chances(choice.logits, self.temperature_)

    # --- judging ---

    def _fitted(self) -> None:
        if not hasattr(self, "matrix_"):
            raise NotFittedError("this PromptClassifier has learned nothing yet; call `fit` first")

    def features(self, pictures: Any) -> torch.Tensor:
        """(n, e) L2-normalised image features, a few pictures at a time."""
        self._fitted()
        read, files = readable(pictures)
        return self.looked(all_opened(read, files))

    def looked(self, pictures: Iterable[Image.Image]) -> torch.Tensor:
        """The same of pictures that are open."""
        return test_features(self.sight_, pictures)

    def probabilities(self, features: torch.Tensor) -> np.ndarray:
        """(n, K) probabilities of (n, e) image features."""
        learned = Learned(self.matrix_, self.tokens_, self.prompt_)
        found = chances(logits_of(self.task_, learned, features), self.temperature_)
        if not np.isfinite(found).all():
            row = int(np.flatnonzero(~np.isfinite(found).all(axis=1))[0])
            raise InputError(
                f"the probabilities of picture {row} are not numbers, so the backbone or the "
                "classifier is damaged; take them anew from where they came"
            )
        return found

    def predict_proba(self, pictures: Any) -> np.ndarray:
        """(n, K) probabilities, in the order of `classes_`; pictures as in `fit`."""
        return self.probabilities(self.features(pictures))

    def predict(self, pictures: Any) -> np.ndarray:
        """(n,) the likeliest of `classes_`."""
        found = self.predict_proba(pictures)
        return self.classes_[found.argmax(axis=1)]

    def score(self, pictures: Any, labels: Sequence[Any] | None = None) -> float:
        """Accuracy; pictures and labels as in `fit`, of one class or more. Every row counts, and
        one of a class that was not learned is wrong.
        """
        self._fitted()
        collection = collected(pictures, labels, to_learn=False)
        guessed = self.predict_proba(collection).argmax(axis=1)
        return float((guessed == self.places(collection)).mean())

    def places(self, collection: Collection) -> np.ndarray:
        """(n,) the labels' places among `classes_`, by what prompts make of their names (case,
        white space and the way an accent is written do not count); -1 for other classes.
        """
        known = {same_words(name): place for place, name in enumerate(self.names_)}
        found = np.array([known.get(same_words(name), -1) for name in collection.names], dtype=int)
        return found[collection.targets]

    def predict_sets(self, pictures: Any, coverage: float = 0.9) -> list[list[Any]]:
        """For each picture the classes that may be meant: `coverage` of such lists hold the truth,
        for pictures like those that were learned from. An empty one says "none of these".

        Raises InputError if nothing was measured, or after `with_classes`.
        """
        marks = sets(self.predict_proba(pictures), self.threshold(coverage))
        return [self.classes_[row].tolist() for row in marks]

    def threshold(self, coverage: float) -> float:
        """The largest nonconformity that is still in a prediction set."""
        self._fitted()
        if not 0 < coverage < 1:
            raise InputError(f"the coverage is {coverage}; take a share between 0 and 1, as 0.9")
        if self.scores_ is None:
            raise InputError(
                "this classifier has no held-out pictures of its classes, so it cannot say when it "
                "is unsure; adapt with --folds 2 or more, and without other names"
            )
        return set_threshold(self.scores_, coverage)

    @property
    def judged(self) -> np.ndarray:
        """`held_out_`; InputError if there is none."""
        if self.held_out_ is not None:
            return self.held_out_
        if not self.folds_:
            raise InputError("nothing was held out; adapt with --folds 2 or more")
        raise InputError(
            "the answers for held-out pictures are not here: an earlier version kept none with a "
            "classifier, and they say nothing about other names; adapt again"
        )

    def with_classes(self, names: Sequence[str], replace: bool = False) -> PromptClassifier:
        """A copy that also knows `names`, of which it has no pictures; with `replace`, it knows
        these alone. Classes that were learned keep what was learned.

        A linear head cannot do this: the new rows are the learned prompt's, or the hand-written
        one's, with the new names. What was measured on held-out pictures says nothing about the
        new classes, so the copy gives no prediction sets.
        """
        self._fitted()
        asked = [name.strip() for name in names]
        kept = [] if replace else self.names_
        wanted = list(dict.fromkeys([*kept, *asked]))
        if len(wanted) < 2 or not asked:
            raise InputError("give at least one class name, and two in all")
        if alike := twins("other names", wanted):
            raise InputError(alike[0])
        task = changed_in(self.task_, names=tuple(wanted))
        known.check_names(task, task.names, context_of(self.prompt_, self.tokens_))
        changed = PromptClassifier.__new__(type(self))
        changed.__dict__ |= self.__dict__
        changed.task_, changed.classes_ = task, np.array(wanted, dtype=str)
        changed.names_ = wanted
        changed.matrix_ = self._rows(task, wanted)
        changed.scores_ = changed.held_out_ = changed.held_out_logits_ = None
        return changed

    def _rows(self, task: Task, wanted: list[str]) -> torch.Tensor | None:
        """(K, e) of `wanted`: what was learned, and for others the prompt with their names."""
        if self.matrix_ is None:
            return None
        rows = dict(zip(self.names_, self.matrix_, strict=True))
        new = tuple(name for name in wanted if name not in rows)
        if new:
            made = learned_by(changed_in(task, names=new), self.prompt_, self.tokens_).matrix
            assert made is not None, "a prompt that has a matrix has one for all names"
            rows |= dict(zip(new, self.trust_ * made, strict=True))
        return torch.stack([rows[name] for name in wanted])

    # --- keeping ---

    def __getstate__(self) -> dict[str, Any]:
        """All but the towers: a pickle or a deep copy reads them again when they are needed."""
        state = {k: v for k, v in super().__getstate__().items() if k not in TOWERS}
        return state | ({"place_": self.place_.resolve()} if "place_" in state else {})

    @cached_property
    def backbone_(self) -> Backbone:
        """The towers."""
        self._fitted()
        return loaded_again(self.place_, self.backbone, self.digest_)

    @cached_property
    def task_(self) -> Task:
        """What prompts are made of."""
        return Task(self.backbone_, tuple(self.names_), self.template_, None, self.seed)

    @cached_property
    def sight_(self) -> Backbone:
        """The towers as pictures pass through them."""
        return sight_of(self.task_, self.prompt_, self.tokens_)

    def save(self, folder: str | Path) -> None:
        """Writes the model folder (docs/own-pictures.md) at once, or nothing."""
        from gram.model_folder import save_model

        self._fitted()
        save_model(self, Path(folder))

    @classmethod
    def load(cls, folder: str | Path, backbone: str | Path | None = None) -> PromptClassifier:
        """The classifier of a model folder; `backbone` where it does not lie where it lay.

        Raises InputError for another backbone, a missing or truncated file, another version.
        """
        from gram.model_folder import load_model

        return load_model(cls, Path(folder), backbone)
