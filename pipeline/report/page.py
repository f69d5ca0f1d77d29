"""Puts the page together: one HTML file that needs nothing beside it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jinja2
import plotly.graph_objects as go
from plotly.offline import get_plotlyjs


def figure_html(figure: go.Figure, name: str) -> str:
    """The figure as a <div> that uses the page's own copy of plotly.js; `name` keeps its id the
    same in every run.
    """
    return figure.to_html(
        full_html=False,
        include_plotlyjs=False,
        div_id=name,
        config={"displayModeBar": False, "responsive": True},
    )


def render(context: dict[str, Any], page: str = "page") -> str:
    """The page `<page>.html.j2` beside this file, filled in, with plotly.js inside."""
    environment = jinja2.Environment(
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
    )
    return environment.get_template(f"{page}.html.j2").render(plotly=get_plotlyjs(), **context)
