"""What the pages of runs and of evaluations have in common: one file that loads nothing.

Owns the frame (`page.html.j2`: looks, and a policy that lets nothing run or load), the escaping of
untrusted text, and how a plot is drawn and put into the page.
"""

from __future__ import annotations

import io
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from judging.display import printable

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Colours that stay apart for colour-blind eyes (Okabe and Ito).
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
INK, SOFT = "#1f2933", "#616e7c"


@dataclass(frozen=True, slots=True)
class Chart:
    title: str
    caption: str
    svg: str  # of our own making, put in as it is


def render_page(template: Path, **values: Any) -> str:
    """The template's page; it may extend `page.html.j2`."""
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader([template.parent, Path(__file__).parent]),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        finalize=_printable,
    )
    return environment.get_template(template.name).render(**values)


def _printable(part: Any) -> Any:
    return printable(part) if type(part) is str else part  # not the markup of our own pictures


def label(text: str, chars: int = 34) -> str:
    """Untrusted text as matplotlib shows it: no mathematics, no control characters."""
    shown = printable(text).replace("$", r"\$")
    return shown if len(shown) <= chars else f"{shown[: chars - 3]}..."


def new_figure(width: float = 5.2, height: float = 3.0) -> tuple[Figure, Axes]:
    """A figure of that many inches, with one pair of axes."""
    from matplotlib.figure import Figure  # without pyplot, which would keep global state

    figure = Figure(figsize=(width, height), layout="constrained")
    axes = figure.add_subplot()
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", color="#e4e7eb", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(labelsize=8)
    return figure, axes


def svg(figure: Figure, salt: str) -> str:
    """The picture alone, with text as text and ids that no other salt gives."""
    import matplotlib

    buffer = io.StringIO()
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": salt}):
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    text = buffer.getvalue()
    return text[text.index("<svg") :]
