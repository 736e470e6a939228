"""The shared page of all reports: one HTML file that opens offline and prints.

A template of ``templates/`` extends ``base.html.j2`` and fills its block ``content``; from
``parts.html.j2`` it imports ``table(table)``, ``plot(plots, name)`` and ``legend(colors)``::

    plots = embed({"sizes": figure})
    html = render("run.html.j2", title="…", subtitle="…", plots=plots, table=Table(…))
    write_page(folder / "report.html", html)

Whatever a template prints is escaped. Scripts carry the page's nonce, so that none runs that a name
might bring in, and the page asks the network for nothing.
"""

import base64
import dataclasses
import functools
import io
import json
import math
import numbers
import os
import secrets
from collections.abc import Mapping, Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
from bokeh.embed import components
from bokeh.models import HoverTool, LogAxis, LogTicker, NumeralTickFormatter, Plot
from bokeh.plotting import figure
from bokeh.resources import Resources
from markupsafe import Markup
from PIL import Image

import microplastics
from microplastics.utils.io import atomic_write

PLOT_WIDTH = 680
"""Width of a plot in px: that of a printed A4 page within its margins."""
_PLOT_HEIGHT = 300
_TEXT_LIMIT = 600
_INK = "#1a1a1a"
_UNKNOWN = "–"


@dataclasses.dataclass(frozen=True)
class Column:
    """A column of a :class:`Table`.

    Attributes:
        title: of the column.
        digits: significant digits of its numbers; None for texts and whole numbers.
        about: what it means, shown under the pointer.
    """

    title: str
    digits: int | None = None
    about: str = ""


@dataclasses.dataclass(frozen=True)
class Table:
    """A table that is sorted by a click on a column, and filtered by words.

    Attributes:
        caption: what it shows; read out before it.
        columns: C of them.
        rows: of C cells each: texts, numbers, None for what is not known, or :class:`Cell`.
        note: below it.
        limit: rows that the page shows; the note says how many more there are, and ``file`` where.
        file: that has all rows.
    """

    caption: str
    columns: Sequence[Column]
    rows: Sequence[Sequence[Any]]
    note: str = ""
    limit: int = 1000
    file: str = ""

    @property
    def shown(self) -> Sequence[Sequence[Any]]:
        """The rows of the page."""
        return self.rows[: self.limit]

    @functools.cached_property
    def is_number(self) -> list[bool]:
        """Whether each column has numbers, and stands to the right."""
        cells = list(zip(*self.rows, strict=True)) or [()] * len(self.columns)
        values = ([_value(cell) for cell in column] for column in cells)
        return [
            any(isinstance(each, numbers.Real) for each in column)
            and not any(isinstance(each, str) for each in column)
            for column in values
        ]


@dataclasses.dataclass(frozen=True)
class Cell:
    """A cell that is sorted by one thing and shows another.

    Attributes:
        text: shown.
        value: by which it is sorted; the text if None.
        color: RGB of a chip in front.
        href: place in the page, such as ``#image-3``.
        outlined: the chip is a ring, as the outlines in pictures; else it is filled.
    """

    text: str
    value: float | None = None
    color: Sequence[int] | None = None
    href: str = ""
    outlined: bool = False


@dataclasses.dataclass(frozen=True)
class Plots:
    """Plots that are embedded in a page.

    Attributes:
        library: the code that draws them, once a page.
        script: their data.
        divs: the element of each by name.
    """

    library: Markup
    script: Markup
    divs: dict[str, Markup]


def new_figure(x: str, y: str, *, log_x: bool = False, log_y: bool = False, **settings: Any) -> Any:
    """Make an empty Bokeh figure in the page's style, to be drawn on and given to :func:`embed`.

    It is drawn as SVG, which prints sharply.

    Args:
        x, y: labels of the axes, with their units.
        log_x, log_y: whether an axis is logarithmic.
        settings: of ``bokeh.plotting.figure``, such as ``height``.
    """
    made = figure(
        **{
            "width": PLOT_WIDTH,
            "height": _PLOT_HEIGHT,
            "x_axis_label": x,
            "y_axis_label": y,
            "x_axis_type": "log" if log_x else "linear",
            "y_axis_type": "log" if log_y else "linear",
            "output_backend": "svg",
            "tools": "pan,box_zoom,xwheel_zoom,reset,save",
            "active_scroll": None,
            **settings,
        }
    )
    made.toolbar.logo = None
    made.toolbar.autohide = True
    made.xgrid.grid_line_color = None
    made.outline_line_color = None
    for axis in made.axis:
        axis.axis_label_text_font_style = "normal"
        axis.axis_label_text_color = axis.major_label_text_color = _INK
        axis.minor_tick_line_color = None
        if isinstance(axis, LogAxis):
            axis.ticker = LogTicker(mantissas=[1, 2, 5])
            axis.formatter = NumeralTickFormatter(format="0,0[.]0000")
    return made


def add_hover(made: Any, tooltips: Sequence[tuple[str, str]], **settings: Any) -> None:
    """Show fields of a figure's data under the pointer, as (label, ``@field``) pairs."""
    made.add_tools(HoverTool(tooltips=list(tooltips), **settings))


def add_legend(made: Any, location: str = "top_right", orientation: str = "horizontal") -> None:
    """Style a figure's legend; a click on an entry hides its glyphs.

    It stands inside of the axes, where the figure has to leave room: Bokeh 3.9 draws nothing but
    the legend if an SVG figure has one beside them.
    """
    legend = made.legend
    legend.location, legend.orientation, legend.click_policy = location, orientation, "hide"
    legend.border_line_color, legend.padding, legend.margin = None, 4, 4
    legend.background_fill_alpha, legend.label_text_color = 0.8, _INK


def embed(figures: Mapping[str, Plot]) -> Plots | None:
    """Put Bokeh figures into a page, None without one.

    Args:
        figures: by the name under which the template's ``plot(plots, name)`` finds them.
    """
    if not figures:
        return None
    library = "\n".join(Resources(mode="inline", components=["bokeh"]).js_raw)
    script, divs = components(dict(figures), wrap_script=False)
    # Names are in the JSON of the script: </script> in one of them must not end it.
    safe = script.replace("</", "<\\/").replace("<!--", "<\\!--")
    return Plots(Markup(library), Markup(safe), {name: Markup(div) for name, div in divs.items()})


def render(template: str, *, title: str, subtitle: str = "", **values: Any) -> str:
    """Render a template that extends ``base.html.j2``.

    Args:
        template: name of the file in ``templates/``.
        title: of the page.
        subtitle: what command made it.
        values: what else the template prints; ``plots`` are of :func:`embed`.
    """
    values = {"plots": None, **values}
    return (
        _environment()
        .get_template(template)
        .render(
            title=title,
            subtitle=subtitle,
            version=microplastics.__version__,
            date=datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M UTC"),
            nonce=secrets.token_urlsafe(16),
            **values,
        )
    )


def write_page(path: str | os.PathLike, html: str) -> Path:
    """Write a page, whole or not at all.

    Raises:
        UserError: the file cannot be written.
    """
    with atomic_write(path, "wb") as file:
        # Names may contain half a surrogate pair, which UTF-8 cannot.
        file.write(html.encode("utf-8", "replace"))
    return Path(path)


def data_uri(data: bytes) -> str:
    """Give a PNG or JPEG file as the address of a picture within the page."""
    kind = "png" if data.startswith(b"\x89PNG") else "jpeg"
    return f"data:image/{kind};base64,{base64.b64encode(data).decode('ascii')}"


def jpeg(picture: np.ndarray, quality: int = 80) -> bytes:
    """Encode (h, w, 3) uint8 RGB as a JPEG file."""
    file = io.BytesIO()
    Image.fromarray(picture).save(file, "JPEG", quality=quality, optimize=True)
    return file.getvalue()


def short(text: Any, limit: int = _TEXT_LIMIT) -> str:
    """Leave out the middle of a long text."""
    text = str(text)
    return text if len(text) <= limit else f"{text[: limit // 2]} … {text[-limit // 2 :]}"


def number(value: Any, digits: int | None = None) -> str:
    """Write a number for people: 12,345 or 0.0123, and a dash for what is not known."""
    if value is None or (isinstance(value, numbers.Real) and not math.isfinite(value)):
        return _UNKNOWN
    if not isinstance(value, numbers.Real) or isinstance(value, bool):
        return str(value)
    if digits is None or value == 0 or isinstance(value, numbers.Integral):
        return f"{value:,.0f}" if float(value).is_integer() else f"{value:g}"
    decimals = digits - 1 - math.floor(math.log10(abs(value)))
    return f"{round(value, decimals):,.{max(decimals, 0)}f}"


def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(
        short=short,
        data_uri=data_uri,
        rgb=_rgb,
        percent=_percent,
        number=number,
        cell=_as_cell,
        sort_key=_sort_key,
    )
    return environment


def _as_cell(value: Any, column: Column) -> Cell:
    return value if isinstance(value, Cell) else Cell(number(value, column.digits))


def _value(cell: Any) -> Any:
    value = (cell.text if cell.value is None else cell.value) if isinstance(cell, Cell) else cell
    return None if isinstance(value, float) and math.isnan(value) else value


def _sort_key(cell: Any) -> str:
    """What the page sorts a cell by: JSON, in which a number is no text and null stands last."""
    value = _value(cell)
    if isinstance(value, numbers.Real):
        return json.dumps(float(value) if math.isfinite(value) else None)
    return json.dumps(value if value is None else str(value)[:_TEXT_LIMIT])


def _percent(fraction: float | None) -> str:
    return (
        _UNKNOWN if fraction is None or not math.isfinite(fraction) else f"{100 * fraction:.1f} %"
    )


def _rgb(color: Sequence[int]) -> str:
    return "rgb({}, {}, {})".format(*(int(channel) for channel in color))
