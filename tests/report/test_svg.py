"""Figures as files and as a part of the page."""

from __future__ import annotations

import re
from importlib import resources
from pathlib import Path
from xml.etree import ElementTree

from plam_eval.probing.plateau import find_plateau
from plam_eval.probing.plot import curve_figure
from plam_eval.report import plots
from plam_eval.report.plots import Estimate
from plam_eval.report.svg import to_markup, to_svg
from tests.helpers.curves import NINE
from tests.helpers.curves import curve_of as scan


def cell(value: float, reach: float = 0.01) -> Estimate:
    return Estimate("", value, value - reach, value + reach)


def test_figures_made_alike_give_equal_bytes() -> None:
    made = [plots.forest([Estimate("a", 0.1, 0.0, 0.2)]) for _ in range(2)]
    assert to_svg(made[0]) == to_svg(made[1])


def test_a_figure_takes_its_colours_from_the_page() -> None:
    made = plots.heat_map([[cell(0.02), cell(0.001)]], ["a & <b>"], ["0:8", "4:8"], marked=[[False] * 2], chosen=(0, 0))
    markup = to_markup(made, 'what it "shows" <i>')
    root = ElementTree.fromstring(markup)
    assert root.tag == "svg" and root.get("aria-label") == 'what it "shows" <i>' and root.get("role") == "img"
    elements = [*root.iter()]
    assert not any("style" in element.attrib or element.tag in ("style", "script", "metadata") for element in elements)
    colours = {element.get(name) for element in elements for name in ("fill", "stroke")} - {None}
    assert {"var(--better, #2166ac)", "var(--ink, #000000)", "var(--hatch, #8a8f96)"} <= colours
    assert not [c for c in colours if c and c.startswith("#")], "a colour that would not change with the page's"
    ids = {element.get("id") for element in elements if element.get("id")}
    referred = set(re.findall(r'(?:href="|url\()#([^")]+)', markup))
    assert referred and referred == ids
    assert not re.search(r'(?:href="|url\()(?!#)|<!--|xmlns', markup)


def test_every_colour_of_figures_is_one_of_the_page(tmp_path: Path) -> None:
    curve = scan(8, NINE)
    rules = ("weighted_sum", "noise", "self_scale", "normalized", "my_rule")
    figures = [
        curve_figure(curve, find_plateau(curve)),
        plots.forest([cell(0.1)], overall=cell(0.2)),
        plots.controls({"": {"6:8": [Estimate(rule, 0.01, 0.0, 0.02) for rule in rules]}}),
    ]
    style = resources.files("plam_eval.report").joinpath("page.css").read_text(encoding="utf-8")
    for figure in figures:
        markup = to_markup(figure, "what it shows")
        assert not re.search(r'(?:fill|stroke)="#', markup)
        for name in re.findall(r"var\(--([\w-]+),", markup):
            assert len(re.findall(rf"--{name}: ", style)) == 3, f"{name}: light, dark and print"
