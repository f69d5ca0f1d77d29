"""How well filter, topics and domains found what the demo's world was drawn from.

No stage of the chain reads the truth; this comparison happens after the fact.
"""

from __future__ import annotations

import numpy as np
import polars as pl
from sklearn.metrics import normalized_mutual_info_score

from pipeline.pairs.noise import SCORED


def filter_quality(kept: pl.DataFrame, truth: pl.DataFrame) -> dict[str, float]:
    """Precision and recall of the reason "mismatch" among the pairs that this rule was applied to.

    Args:
        kept: key, reason; truth: key, mismatched. Pairs dropped by an earlier rule are not counted.
    """
    judged = kept.filter(pl.col("reason").is_in(SCORED)).join(truth, on="key")
    flagged, wrong = (judged["reason"] == "mismatch").to_numpy(), judged["mismatched"].to_numpy()
    hits = int((flagged & wrong).sum())
    return {
        "mismatch_precision": hits / max(1, int(flagged.sum())),
        "mismatch_recall": hits / max(1, int(wrong.sum())),
        "mismatched_before": float(wrong.mean()),
        "mismatched_after": float(wrong[~flagged].mean()),
    }


def topic_quality(topics: pl.DataFrame, truth: pl.DataFrame) -> dict[str, float]:
    """Purity: the share of pairs whose captions' class (or its family) is their topic's commonest.

    Wrong captions that slipped through count as wrong.
    """
    inside = topics.filter(pl.col("topic") >= 0).join(truth, on="key")
    figures = {"topics": inside["topic"].n_unique(), "coverage": len(inside) / len(topics)}
    for column in ("family", "name"):
        largest = inside.group_by("topic", column).len().group_by("topic").agg(pl.col("len").max())
        figures[f"purity_by_{column}"] = largest["len"].sum() / len(inside)
    return figures


def domain_quality(domains: pl.DataFrame, truth: pl.DataFrame) -> dict[str, float]:
    """Normalised mutual information of domain and true style within a topic, weighted by topic
    size.
    """
    rows = domains.join(truth, on="key")
    values, weights = [], []
    for _, topic in rows.group_by("topic"):
        values.append(normalized_mutual_info_score(topic["style"], topic["domain"]))
        weights.append(len(topic))
    return {"domain_style_nmi": float(np.average(values, weights=weights))}
