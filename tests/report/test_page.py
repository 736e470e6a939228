"""The shared page: tables, escaping, plots, and what a browser makes of it."""

import re

import jinja2
import numpy as np
import pytest

from microplastics.report import page
from microplastics.report.page import Cell, Column, Table, embed, new_figure, number, render

EVIL = "</script><img src=x onerror=alert(1)>"
# An odd name may stand wherever names stand.
TEMPLATE = """{% extends "base.html.j2" %}{% from "parts.html.j2" import table, plot %}
{% block content %}{{ table(rows) }}{% if plots %}{{ plot(plots, "one", "Sizes") }}{% endif %}
{% endblock %}"""
COLUMNS = [Column("Name"), Column("Length, µm", digits=3)]


@pytest.fixture
def rendered_page(monkeypatch):
    """Renders a table and plots: ``rendered_page(table, figures)``."""
    loader = jinja2.ChoiceLoader(
        [jinja2.DictLoader({"test.html.j2": TEMPLATE}), page._environment().loader]
    )
    made = page._environment()
    made.loader = loader
    monkeypatch.setattr(page, "_environment", lambda: made)
    return lambda rows, figures=None: render(
        "test.html.j2", title="A page", rows=rows, plots=embed(figures or {})
    )


def test_names_are_shown_as_text_and_scripts_need_the_nonce(rendered_page):
    figure = new_figure("size", "particles")
    figure.scatter([1], [2], name=EVIL, legend_label=EVIL)
    html = rendered_page(Table(EVIL, COLUMNS, [[EVIL, 1.5]], note=EVIL), {"one": figure})
    assert "<img" not in html and html.count("&lt;img") >= 3
    nonces = set(re.findall(r'<script nonce="([\w-]+)">', html))
    assert len(nonces) == 1 and f"script-src 'nonce-{nonces.pop()}'" in html
    assert html.count("<script") == html.count("</script>") == 3
    assert "default-src 'none'" in html and "<h1>A page</h1>" in html


def test_a_long_table_says_what_it_leaves_out(rendered_page):
    html = rendered_page(Table("All", COLUMNS, [["x", n] for n in range(9)], limit=4, file="a.csv"))
    assert html.count("<tr>") == 5 and "4 of 9 rows; all are in a.csv." in html


@pytest.mark.parametrize(
    ("value", "digits", "text"),
    [(1234, None, "1,234"), (0.012345, 3, "0.0123"), (123456.7, 3, "123,000"), (0.0, 3, "0")]
    + [(float("nan"), 3, "–"), (None, None, "–"), ("text", 3, "text"), (99.96, 3, "100")],
)
def test_numbers_are_written_for_people(value, digits, text):
    assert number(value, digits).removesuffix(".0") == text


def test_a_table_sorts_and_filters_in_the_browser(rendered_page, browser):
    rows = [[Cell("b", color=(1, 2, 3)), 10.0], ["a", 9.5], ["c", None], ["d", 100.0], ["e", 1.0]]
    html = rendered_page(Table("Sizes", COLUMNS, [*rows, ["needle", 2.0]]))
    nonce = re.search(r'nonce="([\w-]+)"', html)[1]
    click = """const button = document.querySelectorAll("th button")[1];
    const order = () => [...document.querySelectorAll("tbody tr")].filter((r) => !r.hidden)
      .map((r) => r.cells[0].textContent).join(" ");
    const seen = [];
    button.click(); seen.push(order()); button.click(); seen.push(order());
    const input = document.querySelector("input");
    input.value = "NEED"; input.dispatchEvent(new Event("input")); seen.push(order());
    seen.push(document.querySelector("output").textContent);
    document.title = seen.join("|");"""
    dom = browser(
        html.replace("</body>", f'<script nonce="{nonce}">{click}</script></body>'), "--dump-dom"
    )
    title = re.search("<title>(.*)</title>", dom)[1]
    assert title == "e needle a b d c|d b a needle e c|needle|1 of 6"


@pytest.mark.slow
def test_a_plot_is_drawn_as_vectors_and_printed(rendered_page, browser, tmp_path):
    figure = new_figure("size, µm", "particles", log_x=True)
    edges = np.geomspace(1, 1000, 20)
    figure.quad(top=np.arange(19), bottom=0, left=edges[:-1], right=edges[1:], legend_label="Film")
    page.add_legend(figure)
    page.add_hover(figure, [("particles", "@top")])
    html = rendered_page(Table("Sizes", COLUMNS, []), {"one": figure})
    assert len(html) < 1_500_000
    nonce = re.search(r'nonce="([\w-]+)"', html)[1]
    look = """setTimeout(() => {
      const find = (root) => [...root.querySelectorAll("*")].flatMap(
      (e) => e.shadowRoot ? find(e.shadowRoot) : e.tagName === "svg" ? [e] : []);
      const paths = find(document).map((svg) => svg.querySelectorAll("path").length);
      document.title = paths.join(" "); }, 3000);"""
    dom = browser(
        html.replace("</body>", f'<script nonce="{nonce}">{look}</script></body>'), "--dump-dom"
    )
    paths = re.search("<title>(.*)</title>", dom)[1].split()
    assert max(map(int, paths)) >= 19
    browser(html, f"--print-to-pdf={tmp_path / 'page.pdf'}", "--no-pdf-header-footer")
    assert (tmp_path / "page.pdf").stat().st_size > 10_000
