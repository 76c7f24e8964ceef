"""The figure of layers: interventions above, descriptions below, over one axis."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from loguru import logger
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle

from plam_eval.evaluation import scan_folder
from plam_eval.evaluation.attend import folder as layout
from plam_eval.evaluation.attend.depth_plot import depth_figure
from plam_eval.evaluation.attend.folder import Attended, AttendError
from plam_eval.evaluation.scan_folder import Scan
from plam_eval.figures import save_figure
from tests.helpers.attend_folders import write_attend_folder
from tests.helpers.run_folders import write_scan

ALL = ("image share", "drift", "clouds", "layer contribution", "logit lens", "decided", "cosine with", "CKA with")


def attended(folder: Path, **how: Any) -> Attended:
    write_attend_folder(folder, **{"depth": True, "tasks": {"gqa": 12, "pope": 8}, **how})
    deep = folder / layout.DEPTH_FILE
    return Attended(
        folder=folder,
        made_with=json.loads((folder / layout.SETTINGS_FILE).read_text()),
        measures=pd.read_parquet(folder / layout.MEASURES_FILE),
        answers=pd.read_parquet(folder / layout.ANSWERS_FILE),
        depth=pd.read_parquet(deep) if deep.exists() else None,
        shown=(),
    )


@pytest.fixture(scope="module")
def scans(tmp_path_factory: pytest.TempPathFactory) -> list[Scan]:
    folder = tmp_path_factory.mktemp("scans")
    for closed_to in ("last", "text", "question"):
        write_scan(folder / closed_to, closed_to=closed_to)
    return [scan_folder.load(folder / closed_to) for closed_to in ("last", "text", "question")]


def panels(figure: Figure) -> dict[str, Axes]:
    """By what is on the y axis, from top to bottom; headings have nothing there."""
    return {axes.get_ylabel().replace("\n", " "): axes for axes in figure.axes if axes.get_ylabel()}


def panel(figure: Figure, start: str) -> Axes:
    (found,) = [axes for name, axes in panels(figure).items() if name.startswith(start)]
    return found


def lines(axes: Axes) -> dict[str, Line2D]:
    return {str(line.get_label()): line for line in axes.lines}


def drawn(line: Line2D) -> tuple[list[float], np.ndarray]:
    return np.asarray(line.get_xdata()).tolist(), np.asarray(line.get_ydata(), dtype=float)


def band(axes: Axes, number: int) -> np.ndarray:
    return np.asarray(axes.collections[number].get_paths()[0].vertices)[:, 1]


def mean(frame: pd.DataFrame, at: str, column: str, **where: str) -> np.ndarray:
    """Over tasks, each counting the same."""
    for name, value in where.items():
        frame = frame[frame[name] == value]
    by_task: pd.DataFrame = frame.groupby(["task", at])[column].mean().unstack("task")
    return by_task.mean(axis=1).dropna().to_numpy()


def test_every_measure_has_its_line_where_it_belongs(tmp_path):
    look = attended(tmp_path)
    figure = depth_figure(look, [])
    assert len(panels(figure)) == len(ALL) and all(panel(figure, name) for name in ALL)
    edges, between = list(range(9)), [layer + 0.5 for layer in range(8)]
    assert look.depth is not None
    for setting in ("plain", "merged", "self_scale"):
        x, y = drawn(lines(panel(figure, "image share (the last token of the prompt)"))[setting])
        assert x == between
        assert y == pytest.approx(mean(look.measures, "layer", "image_share", setting=setting, sinks="with"))
        x, y = drawn(lines(panel(figure, "logit lens"))[setting])
        assert x == edges and y == pytest.approx(mean(look.depth, "depth", "lens_log_prob", setting=setting))
    for kind in ("image", "text"):
        x, y = drawn(lines(panel(figure, "drift"))[f"{kind}, merged"])
        assert x == between and y == pytest.approx(mean(look.depth, "depth", f"{kind}_drift", setting="merged"))
        x, y = drawn(lines(panel(figure, "cosine with"))[f"{kind}, self_scale"])
        assert x == edges and y == pytest.approx(mean(look.depth, "depth", f"{kind}_cosine", setting="self_scale"))
        assert f"{kind}, merged" in lines(panel(figure, "CKA with"))
    clouds = lines(panel(figure, "clouds"))
    assert list(clouds) == ["image, plain", "text, plain", "image to text, plain"]
    assert drawn(clouds["image to text, plain"])[1] == pytest.approx(
        mean(look.depth, "depth", "image_text", setting="plain")
    )
    contribution = panel(figure, "layer contribution")
    assert contribution.get_yscale() == "log" and list(lines(contribution)) == ["plain"]
    x, y = drawn(lines(contribution)["plain"])
    assert x == between and y == pytest.approx(0.5 / np.arange(1, 9))


def test_the_share_decided_counts_a_depth_only_where_all_later_ones_agree(tmp_path):
    look = attended(tmp_path, tasks={"gqa": 12}, shift={})
    assert look.depth is not None
    ranks = {0: [0, 0, 0, 0, 0, 0, 0, 0, 0], 1: [0, 0, 3, 0, 0, 0, 0, 0, 0], 2: [0, 0, 0, 0, 0, 0, 0, 0, 1]}
    depth = look.depth
    for document in range(12):
        depth.loc[depth["doc_id"] == document, "lens_rank"] = ranks[document % 3]
    x, y = drawn(lines(panel(depth_figure(look, []), "decided"))["plain"])
    assert x == list(range(9)) and y == pytest.approx([1 / 3] * 3 + [2 / 3] * 6)


def test_bands_are_of_clusters_and_there_are_none_of_a_few(tmp_path):
    look = attended(tmp_path, tasks={"gqa": 40}, shift={})
    assert look.depth is not None
    noise = np.random.default_rng(0).normal(0, 1, 20)
    depth = look.depth.assign(lens_log_prob=noise[look.depth["doc_id"] // 2])  # of pairs that share an image
    width = np.ptp(band(panel(depth_figure(replace(look, depth=depth), []), "logit lens"), 0))
    alone = depth.assign(cluster=depth["doc_id"].astype(str))
    narrow = np.ptp(band(panel(depth_figure(replace(look, depth=alone), []), "logit lens"), 0))
    assert width == pytest.approx(2 * 1.96 * noise.std() / 20**0.5, rel=0.15)
    assert width / narrow == pytest.approx(2**0.5, rel=0.1)
    few = depth[depth["doc_id"] < 10]
    assert not panel(depth_figure(replace(look, depth=few), []), "logit lens").collections


def test_every_task_counts_the_same_and_documents_without_an_image_in_what_they_have(tmp_path):
    look = attended(tmp_path, tasks={"gqa": 30, "pope": 6}, shift={})
    assert look.depth is not None
    depth = look.depth.assign(text_drift=(look.depth["task"] == "pope").astype(float))
    depth.loc[depth["depth"] == 8, "text_drift"] = np.nan
    depth.loc[depth["doc_id"] < 3, "image_drift"] = np.nan
    depth.loc[depth["doc_id"] >= 3, "image_drift"] = 0.25
    drift = lines(panel(depth_figure(replace(look, depth=depth), []), "drift"))
    assert drawn(drift["text, plain"])[1] == pytest.approx([0.5] * 8)
    assert drawn(drift["image, plain"])[1][:8] == pytest.approx([0.25] * 8)


def test_what_was_not_measured_is_left_out(tmp_path, scans):
    assert list(panels(depth_figure(attended(tmp_path / "a", depth=False), []))) == [
        "image share (the last token of the prompt)"
    ]
    alone = panels(depth_figure(attended(tmp_path / "b", shift={}), []))
    assert not any(name.startswith(("cosine with", "CKA")) for name in alone) and len(alone) == len(ALL) - 2
    blind = attended(tmp_path / "c", depth=False)
    blind = replace(blind, measures=blind.measures.assign(image_share=np.nan))
    assert list(panels(depth_figure(blind, scans[:1]))) == ["accuracy"]
    with pytest.raises(AttendError, match="nothing to draw by layer; no document with an image was measured"):
        depth_figure(blind, [])


def headings(figure: Figure) -> list[str]:
    return [text.get_text().strip() for axes in figure.axes for text in axes.texts]


def test_interventions_stand_above_descriptions_under_headings_of_their_own(tmp_path, scans):
    look = attended(tmp_path)
    figure = depth_figure(look, scans)
    assert headings(figure) == [
        "Intervention: what the answers need",
        "Description: what layers are seen to do, needed or not",
    ]
    assert headings(depth_figure(look, [])) == headings(figure)[1:]
    figure.canvas.draw()
    titles = [axes.get_position().y0 for axes in figure.axes if axes.texts]
    tops = {name: axes.get_position().y0 for name, axes in panels(figure).items()}
    assert titles[0] > tops["accuracy"] > titles[1] > max(y for name, y in tops.items() if name != "accuracy")
    assert len({axes.get_xlim() for axes in panels(figure).values()}) == 1
    accuracy = panel(figure, "accuracy")
    assert [name.partition("\n")[0] for name in lines(accuracy)] == [
        "image closed to all text",
        "image closed to the question alone",
        "image closed to the last token alone",
    ]
    table = scans[1].curve.table()
    overall = table[table["task"] == "overall"]
    x, y = drawn(accuracy.lines[0])
    assert x == list(range(9)) and y == pytest.approx(overall["accuracy"].to_numpy())
    assert band(accuracy, 0).min() == pytest.approx(overall["low"].min())
    for axes in panels(figure).values():
        (shade,) = [patch for patch in axes.patches if isinstance(patch, Rectangle)]
        assert (shade.get_x(), shade.get_width()) == (4, 4)
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["merged layers: 4:8"]


def test_without_a_merge_the_plateau_of_a_scan_is_shaded(tmp_path, scans):
    look = attended(tmp_path, shift={})
    assert depth_figure(look, scans).legends[0].get_texts()[0].get_text() == "plateau, layers 4:8"
    assert not depth_figure(look, [scan for scan in scans if scan.stages.closed_to != "text"]).legends


def test_scans_of_another_number_of_layers_are_refused_by_name_and_another_model_is_told(tmp_path, scans):
    look = attended(tmp_path, layers=6)
    with pytest.raises(AttendError) as caught:
        depth_figure(look, scans[:2])
    for scan in scans[:2]:
        assert f"{scan.folder}: a scan of 8 layers; expected 6, as in {tmp_path}" in str(caught.value)
    said: list[str] = []
    sink = logger.add(said.append, level="WARNING", format="{message}")
    try:
        look = attended(tmp_path / "same")
        depth_figure(look, scans)
        assert not said
        depth_figure(replace(look, made_with={**look.made_with, "pretrained": "other/mllm"}), scans[:1])
    finally:
        logger.remove(sink)
    assert said == [f"{scans[0].folder}: a scan of pair/mllm, drawn above what layers of other/mllm do\n"]


def test_two_scans_of_one_kind_are_told_by_their_folders(tmp_path, scans):
    write_scan(tmp_path / "again")
    accuracy = panel(depth_figure(attended(tmp_path / "look"), [scans[1], scan_folder.load(tmp_path / "again")]), "acc")
    first, second = accuracy.lines
    assert "documents, text)" in str(first.get_label()) and "documents, again)" in str(second.get_label())
    assert first.get_linestyle() != second.get_linestyle()


def test_equal_figures_give_equal_files_whatever_settings_are_called(tmp_path):
    look = attended(tmp_path / "look", layers=36, shift={"merged": 0.1, "_a$b$": 0.0})
    figures = [depth_figure(look, []) for _ in range(2)]
    first, second = (save_figure(each, tmp_path / f"{number}.svg") for number, each in enumerate(figures))
    assert first.read_bytes() == second.read_bytes()
    assert "_a$b$" in names(figures[0])


def names(figure: Figure) -> Sequence[str]:
    legends = [legend for axes in figure.axes if (legend := axes.get_legend())]
    return [text.get_text() for legend in legends for text in legend.get_texts()]


def test_each_run_of_merged_layers_is_shaded(tmp_path):
    figure = depth_figure(attended(tmp_path, merged=(1, 4, 6, 7)), [])
    for axes in panels(figure).values():
        shades = [patch for patch in axes.patches if isinstance(patch, Rectangle)]
        assert [(shade.get_x(), shade.get_width()) for shade in shades] == [(1, 1), (4, 1), (6, 2)]
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["merged layers: 1+4+6:8"]
