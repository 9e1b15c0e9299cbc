# SPDX-License-Identifier: MIT
"""A report as one page of HTML: plotly is inside, nothing is fetched. Needs plotly (extra `report`).

It is black on white: lines differ by dashes and symbols, bars by patterns, the map by grey. Text from a
recording (names of tasks) is a stranger's, so it is escaped.
"""

from __future__ import annotations

import html
from collections.abc import Sequence
from typing import Any

from plotly.graph_objects import Bar, Figure, Heatmap, Scatter  # pyright: ignore[reportMissingImports]
from plotly.io import to_html  # pyright: ignore[reportMissingImports]
from plotly.offline import get_plotlyjs  # pyright: ignore[reportMissingImports]

from vmalloc.cli.manners import safe
from vmalloc.lab.report import Bars, Line, Map, Report

GREYS = ("#000000", "#707070", "#404040", "#a0a0a0")
DASHES = ("solid", "dash", "dot", "dashdot")
SYMBOLS = ("circle", "square-open", "diamond", "x")
PATTERNS = ("", "/", "x", ".")
SYMBOLS_SHOWN = 12  # on a line
CONFIG = {
    "displaylogo": False,
    "responsive": True,
    "showSendToCloud": False,  # plotly's button for it: what is in a page stays with its owner
    "plotlyServerURL": "",
    "modeBarButtonsToRemove": ["select2d", "lasso2d"],
}
TICKS = 9  # on the axis of addresses

PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; script-src 'unsafe-inline' \
'unsafe-eval'; style-src 'unsafe-inline'; img-src data: blob:; form-action 'none'">
<title>{title}</title>
<style>
body {{ font: 16px/1.4 sans-serif; color: #000; background: #fff; }}
body {{ max-width: 70em; margin: 1em auto; padding: 0 1em; }}
th {{ text-align: left; padding-right: 2em; font-weight: normal; }}
</style>
<script>{plotly}</script>
</head>
<body>
<h1>{title}</h1>
<table>{facts}</table>
{sections}
<h2>What is not in it</h2>
<ul>{notes}</ul>
</body>
</html>
"""


def page_of(report: Report) -> str:
    """The whole page."""
    sections = [
        _section(
            "map",
            "Addresses over time",
            "Grey to black: taken at some time in a column. Long parts that were never taken are left out.",
            _map(report.map),
        ),
        _section("sizes", "Sizes, in pages", "", _bars(report.sizes)),
        _section("callers", "Who asked", "Pages, over the whole time.", _bars(report.callers)),
        _section("lifetimes", "Life times", "", _bars(report.lifetimes)),
        _section("pages", "Taken and free, in pages", "", _lines(report.pages)),
        _section("pools", "Pools, in pages", "", _lines(report.pools)),
        _section("served", "Who served the requests of the replay", "", _bars(report.served)),
        _section("lazy", "Lazy: freed and not purged", "", _lines(report.lazy)),
        _section("purged", "Purges", "", _lines(report.purged)),
        _section("fragmentation", "Fragmentation", "", _lines(report.fragmentation)),
    ]
    return PAGE.format(
        title=_text(report.title),
        plotly=get_plotlyjs(),
        facts="".join(f"<tr><th>{_text(k)}</th><td>{_text(v)}</td></tr>" for k, v in report.facts.items()),
        sections="\n".join(filter(None, sections)),
        notes="".join(f"<li>{_text(note)}</li>" for note in report.notes),
    )


def _text(text: str) -> str:
    return html.escape(safe(text))


def _section(name: str, title: str, says: str, figure: Figure | None) -> str:
    if figure is None:
        return ""
    drawn: str = to_html(
        figure,
        CONFIG,
        include_plotlyjs=False,
        full_html=False,
        default_height="26em",
        div_id=f"figure-{name}",
    )
    return f"<h2>{title}</h2>\n" + (f"<p>{says}</p>\n" if says else "") + drawn


def _figure(traces: Sequence[Any], x: str, **layout: Any) -> Figure | None:
    if not traces:
        return None
    figure = Figure(traces)
    figure.update_layout(template="simple_white", showlegend=len(traces) > 1, margin={"t": 40}, **layout)
    figure.update_layout(legend={"orientation": "h", "y": 1.15})
    figure.update_xaxes(title=x)
    return figure


def _lines(lines: list[Line]) -> Figure | None:
    traces = [
        Scatter(
            x=line.times,
            y=line.values,
            name=_text(line.name),
            mode="lines+markers",
            line={"color": GREYS[n % 4], "dash": DASHES[n % 4]},
            marker={"symbol": SYMBOLS[n % 4], "size": 8, "maxdisplayed": SYMBOLS_SHOWN},
        )
        for n, line in enumerate(lines)
    ]
    title = _text(lines[0].name) if len(lines) == 1 else ""
    return _figure(traces, "seconds", yaxis={"title": title, "rangemode": "tozero"})


def _bars(bars: Bars) -> Figure | None:
    labels = [_text(label) for label in bars.labels]
    traces = [
        Bar(
            x=labels,
            y=values,
            name=name,
            marker={
                "color": "#ffffff" if PATTERNS[n] else "#606060",
                "line": {"color": "#000000", "width": 1},
                "pattern": {"shape": PATTERNS[n], "fgcolor": "#000000"},
            },
        )
        for n, (name, values) in enumerate(bars.values.items())
    ]
    title = next(iter(bars.values), "") if len(bars.values) == 1 else ""
    return _figure(traces, "", yaxis={"title": title}, xaxis={"type": "category"})


def _map(drawn: Map | None) -> Figure | None:
    if drawn is None:
        return None
    rows = [f"{start:#x}" for start in drawn.starts]
    scale = [[0, "#ffffff"], [0.001, "#c8c8c8"], [1, "#000000"]]  # the least is to be seen
    trace = Heatmap(
        x=drawn.times,
        y=rows,
        z=drawn.percent,
        zmin=0,
        zmax=100,
        colorscale=scale,
        colorbar={"title": "taken, %"},
    )
    ticks = rows[:: max(len(rows) // TICKS, 1)]
    axis = {"type": "category", "tickvals": ticks, "automargin": True, "title": "address"}
    return _figure([trace], "seconds", yaxis=axis)
