"""Plots, as plotly figures in one quiet style."""

from __future__ import annotations

import numpy as np
import plotly.graph_objects as go
import polars as pl

INK, MUTED, GRID = "#1d2733", "#66727f", "#e6e9ed"
COLOURS = ["#8a94a0", "#d1662b", "#1f6fb4", "#3c8d53", "#8a56ac", "#b8860b"]


DASHES = ["solid", "dot", "dash"]
MANY = 6  # names in a legend


def _line(number: int) -> dict:
    """Colour and dash of the line with this number: further lines than colours come again
    dotted.
    """
    return dict(
        color=COLOURS[number % len(COLOURS)],
        dash=DASHES[number // len(COLOURS) % len(DASHES)],
        width=2,
    )


def _styled(figure: go.Figure, height: int, **layout) -> go.Figure:
    figure.update_layout(
        template="none",
        height=height,
        margin=dict(l=56, r=16, t=36, b=44),
        font=dict(family="system-ui, sans-serif", size=13, color=INK),
        legend=dict(orientation="h", y=1.02, yanchor="bottom", x=0),
        hoverlabel=dict(font_size=12),
        **layout,
    )
    figure.update_xaxes(gridcolor=GRID, zeroline=False, linecolor=GRID)
    figure.update_yaxes(gridcolor=GRID, zeroline=False, linecolor=GRID)
    named = sum(trace.showlegend is not False for trace in figure.data)
    if named > MANY:  # names above the plot would leave it no room
        figure.update_layout(
            legend=dict(orientation="v", x=1.02, xanchor="left", y=1, yanchor="top"),
            height=max(height, 90 + 20 * named),
        )
    return figure


def funnel(counts: dict[str, int]) -> go.Figure:
    """Bars from captions to pairs in topics."""
    first = next(iter(counts.values()))
    text = [f"{n:,} ({n / first:.0%})" for n in counts.values()]
    bars = go.Bar(
        y=list(counts),
        x=list(counts.values()),
        orientation="h",
        text=text,
        textposition="inside",
        insidetextanchor="start",
        marker_color=COLOURS[2],
    )
    figure = _styled(go.Figure(bars), 60 + 40 * len(counts), xaxis_title="pairs")
    figure.update_layout(margin_l=170, margin_t=10, yaxis_autorange="reversed")
    return figure


def failures(counts: dict[str, int]) -> go.Figure:
    """Bars of the reasons why captions have no picture."""
    names = [name if len(name) <= 60 else f"{name[:59]}…" for name in counts]
    bars = go.Bar(
        y=list(range(len(counts))),
        x=list(counts.values()),
        orientation="h",
        text=[f"{n:,}" for n in counts.values()],
        textposition="auto",
        hovertext=list(counts),
        hoverinfo="text",
        marker_color=COLOURS[1],
    )
    figure = _styled(
        go.Figure(bars), 60 + 30 * len(counts), xaxis_title="captions without a picture"
    )
    figure.update_yaxes(
        automargin=True, autorange="reversed", tickvals=list(range(len(counts))), ticktext=names
    )
    figure.update_layout(margin_t=10)
    return figure


def _kept_from(heights: np.ndarray, edges: np.ndarray) -> go.Scatter:
    """What share of the scores lies above each edge of a histogram."""
    return go.Scatter(
        x=edges,
        y=np.r_[1.0, 1 - heights.cumsum() / heights.sum()],
        yaxis="y2",
        mode="lines",
        name="kept from here on",
        line=dict(color=MUTED, width=1.5),
        hovertemplate="%{y:.1%}",
    )


def score_histogram(scores: np.ndarray, judged: np.ndarray, floor: float) -> go.Figure:
    """Match scores of the pairs that the mismatch rule judged, where it cuts, and what share any
    other threshold would keep.
    """
    heights, edges = np.histogram(scores[judged], bins=60)
    bars = go.Bar(
        x=(edges[:-1] + edges[1:]) / 2,
        y=heights,
        width=np.diff(edges),
        marker_color=[COLOURS[1] if e < floor else COLOURS[2] for e in edges[1:]],
    )
    figure = _styled(
        go.Figure([bars, _kept_from(heights, edges)]),
        280,
        xaxis_title="match score of picture and caption",
        yaxis_title="pairs",
        bargap=0.05,
        showlegend=False,
    )
    figure.update_layout(
        margin_r=64,
        yaxis2=dict(
            title="share kept",
            overlaying="y",
            side="right",
            tickformat=".0%",
            dtick=0.25,
            range=[0, 1.05],
            showgrid=False,
        ),
    )
    figure.add_vline(
        x=floor,
        line_color=INK,
        line_dash="dot",
        annotation_text=f"threshold {floor:.3f}",
        annotation_position="top left",
    )
    return figure


def _dots(points: pl.DataFrame, names: dict[int, str]) -> list[go.Scatter]:
    """A dot per caption: in grey those outside of topics, the others in their topic's colour."""
    outside = points.filter(pl.col("topic") < 0)
    inside = points.filter(pl.col("topic") >= 0)
    # neighbouring numbers get unlike colours
    hue = (inside["topic"].to_numpy() * 0.61803398875) % 1.0
    colours = [f"hsl({360 * h:.0f},55%,{45 + 12 * ((i % 3) - 1)}%)" for i, h in enumerate(hue)]
    texts = [f"{names[t]}: {c}" for t, c in inside.select("topic", "caption").iter_rows()]
    return [
        go.Scatter(
            x=outside["x"],
            y=outside["y"],
            mode="markers",
            name="outliers",
            hovertext=outside["caption"],
            hoverinfo="text",
            marker=dict(size=3, color="#c9ced4"),
        ),
        go.Scatter(
            x=inside["x"],
            y=inside["y"],
            mode="markers",
            name="captions in topics",
            hoverinfo="text",
            hovertext=texts,
            marker=dict(size=5, opacity=0.75, color=colours),
        ),
    ]


def _places_of_names(points: pl.DataFrame, most: int) -> dict[int, tuple[float, float]]:
    """Topic → the middle of its captions: of the largest, as long as none lies over another."""
    centres = (
        points.filter(pl.col("topic") >= 0)
        .group_by("topic")
        .agg(pl.len(), pl.col("x").median(), pl.col("y").median())
        .sort("len", "topic", descending=[True, False])
    )
    placed: dict[int, tuple[float, float]] = {}
    span = [max(float(points[a].max() - points[a].min()), 1e-9) for a in ("x", "y")]
    for topic, _, x, y in centres.iter_rows():
        if len(placed) < most and all(
            abs(x - a) > 0.075 * span[0] or abs(y - b) > 0.03 * span[1] for a, b in placed.values()
        ):
            placed[topic] = (x, y)
    return placed


def topic_map(points: pl.DataFrame, names: dict[int, str], labelled: int = 45) -> go.Figure:
    """The 2-D map: one dot per caption, coloured by topic, the largest topics named.

    Args:
        points: topic, x, y, caption.
    """
    figure = _styled(go.Figure(_dots(points, names)), 720)
    for topic, (x, y) in _places_of_names(points, labelled).items():
        figure.add_annotation(
            x=x,
            y=y,
            text=names[topic],
            showarrow=False,
            font=dict(size=11, color=INK),
            bgcolor="rgba(255,255,255,0.72)",
            borderpad=1,
            yshift=11,
        )
    figure.update_xaxes(visible=False)
    figure.update_yaxes(visible=False)
    figure.update_layout(margin=dict(l=8, r=8, t=30, b=8))
    return figure


def meta_curve(curve: pl.DataFrame) -> go.Figure:
    """Query loss of Algorithm 1 before and after the inner step, smoothed over meta-steps."""
    window, figure = max(1, len(curve) // 25), go.Figure()
    for column, name, colour in (
        ("start_loss", "at θ, before the inner step", COLOURS[0]),
        ("query_loss", "at θ′, after it", COLOURS[2]),
    ):
        measured = curve.drop_nulls(column)  # the loss at θ is looked at now and then only
        smooth = measured[column].rolling_mean(
            max(1, window * len(measured) // len(curve)), min_samples=1
        )
        figure.add_scatter(
            x=measured["step"], y=smooth, mode="lines", name=name, line=dict(color=colour, width=2)
        )
    return _styled(
        figure,
        300,
        xaxis_title=f"meta-step (mean over {window} steps)",
        yaxis_title="query loss (nats)",
    )


def epoch_curves(epochs: pl.DataFrame, titles: dict[str, str], half: str) -> go.Figure:
    """Accuracy on one half after each epoch of tuning, a line per method."""
    figure, last = go.Figure(), int(epochs["epoch"].max())
    for number, (method, title) in enumerate(titles.items()):
        rows = epochs.filter((pl.col("method") == method) & (pl.col("head") == half))
        x, y = rows["epoch"].to_list(), rows["top1"].to_list()
        if len(x) == 1:  # nothing is learned: the same after every epoch
            x, y = [1, last], y * 2
        figure.add_scatter(
            x=x, y=y, mode="lines+markers", name=title, line=_line(number), marker_size=5
        )
    return _styled(figure, 300, xaxis_title="epoch of tuning", yaxis_title=f"{half} accuracy (%)")


def agreement_curve(curves: dict[str, list[pl.DataFrame]], normalised: bool = True) -> go.Figure:
    """Inner product of support and query gradient at θ over meta-training, raw and regulated (Fig
    3b).

    Args:
        curves: title → curves of the same length, one per seed; their mean is drawn.
        normalised: the cosine, as the paper's figure; else the product itself, in units of a
        title's mean raw one, as those of words and of pictures differ by orders of magnitude.
    """
    what = "agreement" if normalised else "inner"
    names = [f"raw_{what}", f"regulated_{what}"]
    figure = go.Figure()
    for number, (title, of_seeds) in enumerate(curves.items(), 1):
        joined = (
            pl.concat([c.drop_nulls(names[0]).select("step", *names) for c in of_seeds])
            .group_by("step")
            .agg(pl.col(names).mean())
            .sort("step")
        )
        window, unit = max(1, len(joined) // 10), 1.0 if normalised else joined[names[0]].mean()
        for column, name, dash in zip(names, ("raw", "regulated"), ("dot", "solid"), strict=True):
            y = joined[column].rolling_mean(window, min_samples=1) / unit
            figure.add_scatter(
                x=joined["step"],
                y=y,
                mode="lines",
                name=f"{title}, {name}",
                line=_line(number) | dict(dash=dash),
            )
    return _styled(
        figure,
        320,
        xaxis_title="meta-step (running mean)",
        yaxis_title=f"{'cosine' if normalised else 'inner product'} with the query gradient",
    )


def runs_by_method(runs: pl.DataFrame, titles: dict[str, str], figure_of: str) -> go.Figure:
    """One dot per run and one bar for the mean of each method."""
    figure = go.Figure()
    for method, title in titles.items():
        y = runs.filter(pl.col("method") == method)[figure_of]
        figure.add_scatter(
            x=y,
            y=[title] * len(y),
            mode="markers",
            marker=dict(color=COLOURS[2], size=8, opacity=0.6),
            showlegend=False,
            hovertemplate="%{x:.2f}<extra></extra>",
        )
        figure.add_scatter(
            x=[y.mean()],
            y=[title],
            mode="markers",
            marker=dict(symbol="line-ns", size=18, line=dict(width=3, color=COLOURS[1])),
            showlegend=False,
            hovertemplate="mean %{x:.2f}<extra></extra>",
        )
    figure = _styled(figure, 80 + 28 * len(titles), xaxis_title=f"{figure_of} (%)")
    figure.update_yaxes(automargin=True, autorange="reversed")
    figure.update_layout(margin_t=10)
    return figure
