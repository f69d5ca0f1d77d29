"""Linear heads on the backbone's own features: what pictures add to a head that names gave."""

from __future__ import annotations

import numpy as np
import torch
from scipy.optimize import minimize
from scipy.special import log_softmax
from torch import Tensor

from gram.prompted import Learned, Seen, Task, matrix_logits
from gram.trust import temperature_of

# Of a head's squared distance to where it begins, in logits. From 0.001 to 0.01 accuracy hardly
# changes where names say something, at 0.1 the pictures teach little (docs/own-pictures.md).
PULL = 0.003
# The same where names say nothing: less holds the head, so it needs more to stay simple.
PULL_TO_NOTHING = 0.03


def trust_in_names(task: Task, matrix: Tensor, seen: Seen, labels: Tensor) -> float:
    """What to multiply a prompt's (K, e) class matrix by, 1 at most, so that the pictures' labels
    are likeliest under it. It saw none of the labels, so that one picture per class will do.
    """
    logits = matrix_logits(task.backbone, matrix, seen.features[:, 0])
    return min(1.0, 1 / temperature_of(logits, labels.numpy()))


def moved(first: np.ndarray, features: np.ndarray, labels: np.ndarray, pull: float) -> np.ndarray:
    """first + Δ, where Δ minimises the mean cross-entropy plus pull · |Δ|² / K.

    Args:
        first: (K, e), logits are f firstᵀ. features: (n, e). labels: (n,).
    """
    count, rows = len(first), np.arange(len(labels))
    logits, truth = features @ first.T, np.eye(count)[labels]

    def loss(flat: np.ndarray) -> tuple[float, np.ndarray]:
        delta = flat.reshape(first.shape)
        logs = log_softmax(logits + features @ delta.T, axis=1)
        fit = (np.exp(logs) - truth).T @ features / len(labels)
        value = pull * (flat @ flat) / count - logs[rows, labels].mean()
        return value, (fit + 2 * pull / count * delta).ravel()

    found = minimize(loss, np.zeros(first.size), jac=True, method="L-BFGS-B")
    return first + found.x.reshape(first.shape)


def _probed(task: Task, named: Learned, seen: Seen, labels: Tensor, names_count: bool) -> Learned:
    assert named.matrix is not None, "it is the same for all pictures"
    trust = trust_in_names(task, named.matrix, seen, labels)
    scale = float(task.backbone.logit_scale)
    first = trust * scale * named.matrix.double()
    if not names_count:  # the mean tells no class from another, and keeps names to come on a level
        first = first.mean(dim=0, keepdim=True).expand_as(first)
    features = seen.features[:, 0].double().numpy()
    pull = PULL if names_count else PULL_TO_NOTHING
    head = torch.from_numpy(moved(first.numpy(), features, labels.numpy(), pull))
    return Learned((head / scale).float(), named.tokens, named.about, trust)


def probe(task: Task, seen: Seen, labels: Tensor) -> Learned:
    """Pulled towards the hand-written prompt's head, as far as that can be trusted."""
    return _probed(task, task.zero_shot, seen, labels, names_count=True)


def start_probe(task: Task, seen: Seen, labels: Tensor) -> Learned:
    """The same towards the start's."""
    return _probed(task, task.started, seen, labels, names_count=True)


def logistic(task: Task, seen: Seen, labels: Tensor) -> Learned:
    """Whatever the names say: plain logistic regression."""
    return _probed(task, task.zero_shot, seen, labels, names_count=False)
