from __future__ import annotations

import base64
import hashlib
import json
import re
from importlib import metadata
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pandas as pd
import pytest
from pandas.testing import assert_frame_equal

from plam_eval.errors import FolderError
from plam_eval.evaluation import scan_folder
from plam_eval.evaluation.sweep.findings import read_findings
from plam_eval.harness import images
from plam_eval.report import plots
from plam_eval.report.blocks import picture
from plam_eval.report.page import write_report
from plam_eval.report.sections import changed as sections_changed
from plam_eval.report.sources import ReportError
from plam_eval.report.svg import to_svg
from plam_eval.report.text import printable
from plam_eval.rules import RULES, Rule
from tests.helpers.pages import Page
from tests.helpers.run_folders import Document, changed, documents, write_run, write_scan, write_sweep

TASKS = ["pope", "mmstar"]
MERGED, CONTROL = "layers-6-8_qkvo_0.9+0.3", "layers-6-8_qkvo_0.9+0.3_self_scale"
WHOLE = "layers-0-8_qkvo_0.9+0.3"


@pytest.fixture(scope="module")
def swept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page of `some_sweep`, in out; the sweep's folder is beside it."""
    folder = tmp_path_factory.mktemp("swept")
    some_sweep(folder / "sweep")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(images, "document_images", lambda wanted, *a, **k: ({}, dict.fromkeys(wanted, "not looked for")))
        return write_report([folder / "sweep"], folder / "out")


@pytest.fixture
def no_images(monkeypatch: pytest.MonkeyPatch) -> None:
    """Datasets are not looked for, which takes seconds."""
    monkeypatch.setattr(
        images, "document_images", lambda wanted, *a, **k: ({}, dict.fromkeys(wanted, "not looked for"))
    )


def some_sweep(folder: Path, **given: Any) -> list[Document]:
    """Plain, two merges and a scale control of each, on 20 documents of two tasks."""
    plain = documents(TASKS, 20, right=12)
    gained = {("pope", number): (["no", "yes"][number % 2], 1.0) for number in range(12, 18)}
    lost = {("mmstar", 3): ("no <b>idea</b>", 0.0)}
    cells: dict[str, Any] = {
        "plain": plain,
        MERGED: changed(plain, {**gained, **lost}),
        CONTROL: changed(plain, lost),
        WHOLE: plain,
        f"{WHOLE}_self_scale": "MergeError: <script>alert('cell')</script> no disk left",
    }
    write_sweep(folder, cells | given.pop("cells", {}), **given)
    return plain


def test_sweep(swept: Path) -> None:
    assert swept.name == "index.html"
    page, found = Page(swept), read_findings(swept.parent.parent / "sweep")
    assert page.headings == [
        *("Layer ranges and weights", "Beside the controls", "Task by task", "Stock metrics"),
        *("Answers in the form asked for", "All cells", "What was gained and lost", "Where it comes from"),
        "How to read this page",
    ]
    assert "<title>pair/mllm merged with pair/base</title>" in page.source and '<html lang="en">' in page.source
    assert re.sub(r"-(?=0\.)", "\N{MINUS SIGN}", found.verdict()) in page.text
    assert "2 merges and 2 controls beside the plain model, on 40 documents of 2 tasks (pope, mmstar)." in page.text
    assert "Of 5 cells, 1 not finished; 1 of these failed. No scan is among the folders" in page.text
    optimistic = "Figures on this page are of the 40 documents on which it was chosen: its own are optimistic."
    assert page.text.count(optimistic) == 1
    chosen = "Merged: layers 6:8, qkvo, 0.9 + 0.3 (optimistic: see the answer above)."
    assert page.text.count(chosen) == 2  # where no other cell is shown
    assert "Gained: 6" in page.text and "Lost: 1" in page.text and "Is there a cat in picture 3 of mmstar?" in page.text
    assert "rope_theta differs (every cell but plain)" in page.text
    assert len(page.drawings) == 3 and all(drawing["aria-label"] for drawing in page.drawings) and not page.images
    # provenance
    assert "cd /no/such/folder" in page.text and "plam sweep --model plam_llava --output 'a b'" in page.text
    assert (
        "lmms-eval --model plam_llava --model_args pretrained=pair/mllm,plateau=none --tasks pope,mmstar" in page.text
    )
    assert "--limit 8 --log_samples" in page.text and "sha256 " + "cd" * 32 in page.text
    assert all(digest in page.text for digest in found.cells["digest"].dropna())


def test_page_loads_nothing(swept: Path) -> None:
    page = Page(swept)
    assert not {"link", "iframe", "object", "embed", "base", "form"} & set(page.tags)
    for tag, name, value in page.references:
        if value.startswith("#"):
            assert value[1:] in page.ids, value
        elif tag == "a":
            assert name == "href" and (value.startswith("https://") or (swept.parent / value).is_file()), value
        else:
            assert value.startswith("data:image/"), (tag, value[:60])
    assert not re.search(r"url\((?!#)|@import|fetch\(|XMLHttpRequest|import\(|eval\(|innerHTML", page.source)
    assert len(page.ids) == len(set(page.ids))


def test_only_the_pages_own_script_and_style_may_run(swept: Path) -> None:
    page = Page(swept)
    (policy,) = re.findall(r'<meta http-equiv="Content-Security-Policy" content="([^"]*)">', page.source)
    rules = dict(rule.strip().split(" ", 1) for rule in policy.split(";"))
    assert rules["default-src"] == rules["base-uri"] == rules["form-action"] == "'none'"
    for rule, tag in (("script-src", "script"), ("style-src", "style")):
        (content,) = re.findall(f"<{tag}>(.*?)</{tag}>", page.source, re.DOTALL)
        digest = base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()
        assert rules[rule] == f"'sha256-{digest}'"
    assert page.styled == []  # no attribute that such a policy would forbid
    assert page.source.index("Content-Security-Policy") < page.source.index("<style>")


def test_when_with_what_and_where_to_read_on(swept: Path) -> None:
    page = Page(swept)
    own = metadata.version("plam-eval")
    assert f"Evaluated 2026-01-01 · plam-eval 0.1.0 · lmms-eval 0.7.3 · page by plam-eval {own}" in page.text
    assert ("a", "href", "https://arxiv.org/abs/2601.07645") in page.references


def answer_boxes(page: Page) -> list[str]:
    return re.findall(r'<div class="answer">(.*?)</div>', page.source, re.DOTALL)


def test_warnings_stand_with_the_answer_that_they_qualify(tmp_path: Path, no_images: None) -> None:
    write_scan(tmp_path / "all" / "scan")
    stages = json.loads((tmp_path / "all" / "scan" / scan_folder.STAGES).read_text())
    stages["stages"]["warnings"] = ["at cut 4 single tasks are worse: pope (-0.075)"]
    (tmp_path / "all" / "scan" / scan_folder.STAGES).write_text(json.dumps(stages))
    plain = some_sweep(tmp_path / "all" / "sweep")
    lost = {("mmstar", number): ("x", 0.0) for number in range(9)}
    gained = {("pope", number): (["no", "yes"][number % 2], 1.0) for number in range(12, 20)}
    some_sweep(tmp_path / "all" / "sweep", cells={MERGED: changed(plain, gained | lost), WHOLE: changed(plain, lost)})
    file = tmp_path / "all" / "sweep" / "cells" / WHOLE / "run" / "20260101_000000_results.json"
    results = json.loads(file.read_text())
    results["plam_eval"]["altered_answers"] = ["pope 3"]
    file.write_text(json.dumps(results))
    page = Page(write_report([tmp_path / "all"], tmp_path / "out"))
    of_scan, of_sweep = answer_boxes(page)
    assert "at cut 4 single tasks are worse: pope (−0.075)" in of_scan
    assert "worse than plain in single tasks: mmstar −0.450 (95% " in of_sweep
    assert "rope_theta differs" in of_sweep and "could not be written" not in of_sweep  # which is of another cell
    assert '<a href="#warnings">1 more below</a>' in of_sweep
    assert "Further warnings" in page.headings and "were altered (layers 0:8, qkvo, 0.9 + 0.3)" in page.text
    assert page.text.count("rope_theta differs") == 1


def test_a_scan_closed_to_some_of_the_text_is_called_no_plateau(tmp_path: Path, no_images: None) -> None:
    write_scan(tmp_path / "all" / "last", closed_to="last")
    write_scan(tmp_path / "all" / "text")
    page = Page(write_report([tmp_path / "all" / "last"], tmp_path / "out"))
    assert "Layer by layer: last" in page.headings
    assert "From which decoder layer on does the last token no longer need to see the image in pair/mllm?" in page.text
    (box,) = answer_boxes(page)
    assert "From cut 4 on, the last token no longer needs to see the image" in box
    assert "image open in" in page.text and "layers from here" not in page.text
    prose = page.text[: page.text.index("Where it comes from")].replace("this is no plateau, and no spec follows", "")
    assert "plateau" not in prose.lower() and "modal" not in page.text and "blind" not in page.text
    both = Page(write_report([tmp_path / "all"], tmp_path / "both"))
    assert {"Where the image is used", "Layer by layer: last"} <= set(both.headings)


def test_a_range_has_one_spelling(tmp_path: Path, no_images: None) -> None:
    write_scan(tmp_path / "all" / "scan")
    some_sweep(tmp_path / "all" / "sweep")
    page = Page(write_report([tmp_path / "all"], tmp_path / "out"))
    assert "The plateau is layers 4:8 of 8" in page.text and "layers 6:8, qkvo" in page.text
    assert page.text.count("from a up to, but not including, b") == 1
    prose = page.source[: page.source.index("Where it comes from</h2>")]  # below are files' and folders' own names
    assert not re.search(r"layers? \d+ to|\[\d+, ?\d+\)|layers below|layers-\d", prose)


def test_stock_metrics_side_by_side(tmp_path: Path, no_images: None) -> None:
    some_sweep(tmp_path / "sweep")
    page = Page(write_report([tmp_path / "sweep"], tmp_path / "out", select=14))
    table = page.text.partition("Stock metrics, by task")[2].partition("Answers in the form")[0]
    assert table.replace("_ ", "_").split() == [
        *("task", "metric", "better", "plain", "merged", "self_scale"),
        *("pope", "other", "–", "0.5", "0.5", "0.5"),
        *("pope", "pope_accuracy", "higher", "0.6", "0.9", "0.6"),
        *("mmstar", "other", "–", "0.5", "0.5", "0.5"),
    ]
    assert (
        "over all documents that were evaluated, those chosen on among them. They have no intervals here." in page.text
    )


def test_every_changed_document_is_on_the_page_or_in_the_table(
    tmp_path: Path, no_images: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = documents(["pope"], 40, right=20)
    gained = {("pope", number): (["no", "yes"][number % 2], 1.0) for number in range(20, 37)}
    lost = {("pope", 3): ("no", 0.0)}
    other = {("pope", 38): ("maybe", 0.0)}
    cells = {"plain": plain, MERGED: changed(plain, gained | lost | other), CONTROL: changed(plain, lost)}
    write_sweep(tmp_path / "sweep", cells, layers="6:8")
    path = write_report([tmp_path / "sweep"], tmp_path / "out")
    page = Page(path)
    assert "Gained: 6 of 17" in page.text and "11 more gained documents" in page.text
    assert [f"pope, document {n}" in page.text for n in (20, 36, 37)] == [True, True, False]
    assert page.source.count('<article class="example">') == 18
    assert "1 more answer changed without a change of score; all are listed in the table changed" in page.text
    (card,) = re.findall(r"<h4>pope, document 3</h4>.*?</article>", page.source, re.DOTALL)
    words = " ".join(re.sub("<[^>]*>", " ", card).split())
    assert words.endswith("target yes plain right yes merged wrong no self_scale wrong no")
    table = pd.read_csv(path.parent / "tables" / "changed.csv")
    assert table["change"].value_counts().to_dict() == {"gained": 17, "lost": 1, "other answer": 1}
    assert list(table.columns) == [
        *("task", "doc_id", "change", "prompt", "target", "plain_answer", "plain_score"),
        *("merged_answer", "merged_score", "self_scale_answer", "self_scale_score"),
    ]
    monkeypatch.setattr(sections_changed, "_MOST", 10)
    page = Page(write_report([tmp_path / "sweep"], tmp_path / "out", examples=2))
    assert "Gained: 2 of 17" in page.text and "8 more gained documents" in page.text
    assert "On this page are 10 of the 17 gained; all are listed in the table changed" in page.text


def test_tables_can_be_sorted_by_what_they_hold(swept: Path) -> None:
    """The script reads its keys from cells; rows say of which kind they are."""
    page = Page(swept)
    assert page.source.count('data-kind="merge"') == 2 and page.source.count('data-kind="control"') == 2
    assert not {"button", "input", "select"} & set(page.tags)  # without the script there is nothing to press in vain


def test_tables_are_those_of_the_findings(swept: Path) -> None:
    tables, found = swept.parent / "tables", read_findings(swept.parent.parent / "sweep")
    assert {path.stem for path in tables.iterdir()} == {
        *("cells", "tasks", "controls", "changed", "runs", "accuracy", "metrics", "samples")
    }
    for name in ("cells", "tasks", "controls"):
        assert_frame_equal(pd.read_parquet(tables / f"{name}.parquet"), getattr(found, name), check_dtype=False)
    for path in tables.glob("*.parquet"):
        stored = pd.read_parquet(path)
        text = pd.read_csv(path.with_suffix(".csv"), keep_default_na=False, na_values=[""])
        assert list(text.columns) == list(stored.columns) and len(text) == len(stored)
        for column in stored.select_dtypes("number"):
            assert text[column].to_numpy(dtype=float) == pytest.approx(
                stored[column].to_numpy(dtype=float), nan_ok=True
            )
    samples = pd.read_parquet(tables / "samples.parquet")
    assert len(samples) == 4 * 40 and set(samples["run"]) == set(found.runs)


def test_chosen_on_other_documents(tmp_path: Path, no_images: None) -> None:
    some_sweep(tmp_path / "sweep")
    page = Page(write_report([tmp_path / "sweep"], tmp_path / "out", select=14, title="A <title>"))
    note = "It was chosen on 28 other documents (+0.036 there); figures on this page are of the 12 documents held out."
    assert page.text.count(note) == 1 and "optimistic" not in page.text
    assert "on 40 documents of 2 tasks" in page.text and "A &lt;title&gt;" in page.source


def test_a_rule_and_a_control_of_ones_own(tmp_path: Path, no_images: None, monkeypatch: pytest.MonkeyPatch) -> None:
    for rule in (
        Rule("agreeing", "the sum where both have one sign", colour="#117733", mark="v"),
        Rule("turned", "the base with its sign turned", role="control", colour="#AA4499", mark="P"),
    ):
        monkeypatch.setitem(RULES, rule.name, rule)
    plain, merged = documents(TASKS, 20, right=12), "layers-6-8_qkvo_0.9+0.3_agreeing"
    cells = {"plain": plain, merged: plain, "layers-6-8_qkvo_0.9+0.3_turned": plain}
    arguments = "pretrained=pair/mllm,plateau=demo,rule=agreeing"
    write_sweep(tmp_path / "own", cells, layers="6:8", controls="turned", model_args=arguments)
    page = Page(write_report([tmp_path / "own"], tmp_path / "out"))
    assert "Merged is by agreeing, the sum where both have one sign. Beside each merge stand turned, the" in page.text
    assert {"#117733", "#aa4499"} <= {*re.findall("#[0-9a-f]{6}", page.source.lower())}


def test_one_merge_without_controls(tmp_path: Path, no_images: None) -> None:
    plain = documents(["pope"], 4, right=3)
    cells = {"plain": plain, MERGED: changed(plain, {("pope", 3): ("yes", 1.0)})}
    write_sweep(tmp_path / "tiny", cells, layers="6:8", controls="none")
    page = Page(write_report([tmp_path / "tiny"], tmp_path / "out"))
    assert not {"Layer ranges and weights", "Beside the controls"} & set(page.headings)
    assert "Task by task" in page.headings and "No controls were run" in page.text
    assert "It is the only merge there is, so nothing was chosen" in page.text and "Lost: none." in page.text
    assert "1 merge beside the plain model, on 4 documents of pope." in page.text


def test_nothing_finished(tmp_path: Path) -> None:
    write_sweep(tmp_path / "new", {})
    page = Page(write_report([tmp_path / "new"], tmp_path / "out"))
    assert page.headings == ["All cells", "Where it comes from", "How to read this page"] and not page.drawings
    assert "Nothing to say yet" in page.text and "Of 5 cells, 5 not finished." in page.text
    assert (tmp_path / "out" / "tables" / "cells.csv").is_file()


def test_text_of_others_stays_text(tmp_path: Path, no_images: None) -> None:
    plain = some_sweep(tmp_path / "sweep")
    odd = [
        {**document, "prompt": f"\x1b[31m\x00 & <img src=x onerror=alert(1)> {document['doc_id']}"}
        for document in plain
    ]
    lost = {("mmstar", 3): ("<script>alert('answer')</script>" + "long " * 9000, 0.0)}
    gained = {("pope", number): (["no", "yes"][number % 2], 1.0) for number in (12, 13)}
    merged = changed(odd, lost | gained)
    some_sweep(tmp_path / "odd", cells=dict.fromkeys(("plain", CONTROL, WHOLE), odd) | {MERGED: merged})
    page = Page(write_report([tmp_path / "odd"], tmp_path / "out", title="<script>"))
    assert page.tags.count("script") == 1 and page.source.count("<script") == 1  # the page's own
    assert "alert('answer')" in page.text and "<script>alert('cell')</script> no disk left" in page.text
    assert "\u241b[31m\u2400 & <img src=x onerror=alert(1)> 3" in page.text
    assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f]", page.source)
    assert "39,032 more letters are left out here." in page.text and page.source.count("long ") < 1300


def test_equal_input_gives_an_equal_page(tmp_path: Path, no_images: None) -> None:
    some_sweep(tmp_path / "sweep")
    pages = [write_report([tmp_path / "sweep"], tmp_path / name).read_bytes() for name in ("one", "two")]
    assert pages[0] == pages[1]
    assert write_report([tmp_path / "sweep"], tmp_path / "one", examples=0).read_bytes() != pages[0]  # and is replaced
    assert "What was gained and lost" not in Page(tmp_path / "one" / "index.html").headings


def test_many_cells(tmp_path: Path, no_images: None) -> None:
    plain = documents(["pope"], 30, right=20)
    given: dict[str, Any] = {"layers": "starts", "weights": "0.9+0.3,0.8+0.4", "controls": "none", "num_layers": 30}
    grid = write_sweep(tmp_path / "wide", {}, **given)
    cells: dict[str, Any] = {}
    for number, cell in enumerate(grid.cells):
        cells[cell.name] = changed(plain, {("pope", 20 + k): ("x", 1.0) for k in range(number % 10)})
    cells[grid.cells[7].name] = "MergeError: " + "this tensor has no partner; " * 500
    write_sweep(tmp_path / "wide", cells, **given)
    path = write_report([tmp_path / "wide"], tmp_path / "out")
    page = Page(path)
    assert path.stat().st_size < 1_000_000
    assert '<div class="scroll long"' in page.source and "60 merges beside the plain model" in page.text
    assert page.source.count("this tensor has no partner") < 30 and "more letters)" in page.text


# --- images -----------------------------------------------------------------------------------------------------------


def test_images_come_from_the_dataset_that_was_evaluated(suite: Path, tmp_path: Path) -> None:
    (table,) = (suite / "lmms-lab-encoder" / "POPE").rglob("*.parquet")
    asked = pd.read_parquet(table, columns=["question"])["question"]
    plain = documents(TASKS, 6)
    for document in plain:
        if document["task"] == "pope":
            document["prompt"] = f"{asked[document['doc_id']]}\nAnswer the question using a single word or phrase."
    lost = {("pope", 1): ("no", 0.0), ("pope", 4): ("yes", 0.0), ("mmstar", 2): ("yes", 0.0)}
    write_run(tmp_path / "plain", plain)
    write_run(tmp_path / "merged", changed(plain, lost), plain=False)
    here = Path.cwd()
    folders = [tmp_path / "plain", tmp_path / "merged"]
    page = Page(write_report(folders, tmp_path / "out", data=suite))
    assert Path.cwd() == here
    assert len(page.images) == 2 and page.images[0] != page.images[1]
    assert all(image.startswith(("data:image/png", "data:image/jpeg")) for image in page.images)
    assert page.source.count('class="small"') == 2 and "image-rendering: pixelated" in page.source
    assert "Images are missing. mmstar: the dataset that was found holds other questions." in page.text
    assert "Lost: 3" in page.text and "Gained: none." in page.text

    page = Page(write_report(folders, tmp_path / "out", data=tmp_path, examples=1))
    assert not page.images and "Lost: 1 of 3" in page.text
    assert "its dataset is not on this machine. Sample logs hold no images" in page.text


# --- folders of somebody else -----------------------------------------------------------------------------------------


@pytest.fixture
def looked_up(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """How example images were asked for."""
    calls: list[dict[str, Any]] = []

    def document_images(wanted: Any, folder: Any = None, **given: Any) -> Any:
        calls.append({"folder": folder, **given})
        return {}, dict.fromkeys(wanted, "not looked for")

    monkeypatch.setattr(images, "document_images", document_images)
    return calls


def test_code_and_data_come_from_the_command_line_only(tmp_path: Path, looked_up: list[dict[str, Any]]) -> None:
    foreign = tmp_path / "sweep"
    some_sweep(foreign)
    plan = json.loads((foreign / "sweep.json").read_text())
    plan["config"]["include_path"] = plan["working_directory"] = str(tmp_path)
    (foreign / "sweep.json").write_text(json.dumps(plan))
    plain = documents(TASKS, 4)
    for name in ("plain", "merged"):
        file = write_run(tmp_path / "runs" / name, plain if name == "plain" else documents(TASKS, 4, right=2))
        results = json.loads(file.read_text())
        results["config"]["resolved_cli_args"]["include_path"] = str(tmp_path)
        results["plam_eval"] |= {"wrapper": ["odd"], "plain": name == "plain"}
        file.write_text(json.dumps(results))
    page = Page(write_report([foreign, tmp_path / "runs"], tmp_path / "out"))
    assert looked_up[0] == {"folder": None, "model": "plam_llava", "include_path": None}
    assert looked_up[1] == {"folder": None, "model": None, "include_path": None}
    assert page.text.count(f"It had further tasks from {tmp_path}: images of those are not looked up") == 2
    assert f"(it was started in {tmp_path})" in page.text

    code, data = tmp_path / "code", tmp_path / "data"
    page = Page(write_report([foreign], tmp_path / "out", data=data, include_path=code))
    assert looked_up[2] == {"folder": data, "model": "plam_llava", "include_path": code}
    assert "images of those are not looked up" not in page.text


def test_a_planted_task_does_not_run(tmp_path: Path) -> None:
    tasks = tmp_path / "tasks"
    tasks.mkdir()
    (tasks / "utils.py").write_text(f"open({str(tmp_path / 'mark')!r}, 'w').write('it ran')\ntext = str\n")
    lines = ["task: planted", "dataset_path: nowhere", "test_split: test", "output_type: generate_until"]
    lines += ["doc_to_text: !function utils.text", "doc_to_visual: !function utils.text", "doc_to_target: a"]
    (tasks / "planted.yaml").write_text("\n".join(lines) + "\n")
    for name, right in (("plain", 4), ("merged", 2)):
        file = write_run(tmp_path / "runs" / name, documents(["planted"], 4, right=right), plain=name == "plain")
        results = json.loads(file.read_text())
        results["config"]["resolved_cli_args"]["include_path"] = str(tasks)
        file.write_text(json.dumps(results))
    page = Page(write_report([tmp_path / "runs"], tmp_path / "out"))
    assert not (tmp_path / "mark").exists() and "Images are missing. planted: " in page.text
    write_report([tmp_path / "runs"], tmp_path / "out", include_path=tasks)
    assert (tmp_path / "mark").exists()  # the reader's own word


def test_what_is_damaged_does_not_hide_the_others(tmp_path: Path, no_images: None) -> None:
    some_sweep(tmp_path / "all" / "fine")
    for number, content in enumerate(("{", '{"grid": {}}', '{"config": 3}', "[]")):
        some_sweep(tmp_path / "all" / f"plan{number}")
        (tmp_path / "all" / f"plan{number}" / "sweep.json").write_text(content)
    for name, content in (
        (scan_folder.STAGES, "{"),
        (scan_folder.STAGES, "{}"),
        (scan_folder.SETTINGS, '{"versions": 3}'),
        (scan_folder.SAMPLES, "x"),
    ):
        folder = tmp_path / "all" / f"scan{len(list((tmp_path / 'all').iterdir()))}"
        write_scan(folder)
        (folder / name).write_text(content)
    file = write_run(tmp_path / "all" / "run", documents(["pope"], 2))
    file.write_text("{")
    some_sweep(tmp_path / "all" / "cell")
    (tmp_path / "all" / "cell" / "cells" / CONTROL / "cell.json").write_text("{")
    page = Page(write_report([tmp_path / "all"], tmp_path / "out"))
    assert [h for h in page.headings if h.startswith("All")] == ["All cells: cell", "All cells: fine"]
    notes = re.findall(r"A (sweep|scan|run) was left out: (?:accuracy curve )?(\S+)", page.text)
    assert [what for what, _ in notes] == ["sweep"] * 4 + ["scan"] * 4 + ["run"]
    assert all(str(tmp_path / "all") in where for _, where in notes)
    assert "Of 5 cells in cell, 2 not finished; 1 of these failed; 1 of these are damaged and left out." in page.text
    assert "What is damaged, and was left out (1)" in page.text and f"{CONTROL}/cell.json: cannot be read" in page.text


def test_links_that_lead_out_are_left_out(tmp_path: Path, no_images: None) -> None:
    secret = tmp_path / "secret"
    file = write_run(secret, documents(["pope"], 3))
    some_sweep(tmp_path / "mine" / "sweep")
    write_scan(secret / "scan")
    given = tmp_path / "given"
    some_sweep(given / "fine")
    (given / "run").mkdir()
    (given / "run" / file.name).symlink_to(file)
    logs = write_run(given / "logs", documents(["pope"], 2)).with_name("20260101_000000_samples_pope.jsonl")
    logs.unlink()
    logs.symlink_to(secret / logs.name)
    write_scan(given / "scan")
    (given / "scan" / scan_folder.SPEC).unlink()
    (given / "scan" / scan_folder.SPEC).symlink_to(secret / "scan" / scan_folder.SPEC)
    some_sweep(given / "sweep")
    (given / "sweep" / "sweep.json").unlink()
    (given / "sweep" / "sweep.json").symlink_to(tmp_path / "mine" / "sweep" / "sweep.json")
    page = Page(write_report([given], tmp_path / "out"))
    assert page.text.count("leads to") == 4 and page.headings.count("All cells") == 1
    assert not {"All runs", "Where the image is used"} & set(page.headings)


def test_a_page_of_something_else_is_not_overwritten(tmp_path: Path, no_images: None) -> None:
    some_sweep(tmp_path / "sweep")
    out = tmp_path / "out"
    out.mkdir()
    (out / "index.html").write_text("<h1>mine</h1>")
    with pytest.raises(FolderError, match="is no page of `plam report`"):
        write_report([tmp_path / "sweep"], out)
    assert (out / "index.html").read_text() == "<h1>mine</h1>" and len(list(out.iterdir())) == 1
    (out / "index.html").unlink()
    (out / "tables").mkdir()
    (out / "tables" / "cells.csv").write_text("mine")
    with pytest.raises(FolderError, match=r"holds tables/cells\.csv and no index\.html"):
        write_report([tmp_path / "sweep"], out)
    assert (out / "tables" / "cells.csv").read_text() == "mine"
    with pytest.raises(FolderError, match="is a file"):
        write_report([tmp_path / "sweep"], out / "tables" / "cells.csv")


def test_names_of_folders_are_text(tmp_path: Path) -> None:
    """In the page, in figures (where dollar signs make formulas) and in names of tables."""
    odd = ["a$\\frac{$ <i>&amp;\x1b[31m", "a$\\frac{$ <i>&amp;\x1b[32m", "x\u202ey" + "long" * 50]
    for name in odd:
        write_run(tmp_path / "all" / name, documents(["pope", "$\\bad{$"], 4, right=len(name) % 4))
    for name in ("a b", "a-b"):
        some_sweep(tmp_path / "all" / name)
    page = Page(write_report([tmp_path / "all"], tmp_path / "out", examples=0))
    assert "a$\\frac{$ <i>&amp;\u241b[31m" in page.text and "i" not in page.tags
    assert not re.search("[\x00-\x08\x0b-\x1f\x7f\u202e]", page.source)
    tables = {path.name for path in (tmp_path / "out" / "tables").glob("*-cells.csv")}
    assert len(tables) == 2 and all(re.fullmatch(r"[\w.+-]+", name) for name in tables)


def test_figures_hold_no_control_characters() -> None:
    estimates = [plots.Estimate("a\x00\x1b[31m$x", 0.5, 0.4, 0.6)]
    groups = {
        "layers\x1b\n0.9": [plots.Estimate("noise", 0.1, 0.0, 0.2), plots.Estimate("my\x1brule$_$", 0.1, 0.0, 0.2)]
    }
    heat = plots.heat_map([[plots.Estimate("", 0.1, 0.0, 0.2)]], ["a\x1b$_$"], ["b\x1b"], marked=[[False]])
    for figure in (plots.forest(estimates, label="b\x1b$_$"), plots.controls({"": groups}), heat):
        assert r"\x1b" in to_svg(figure).decode()
        svg = picture(figure, "alt <b>\x1b", "caption").drawing
        ElementTree.fromstring(svg)
        assert "\x1b" not in svg and "alt &lt;b&gt;\u241b" in svg


@pytest.mark.parametrize("letter", ["\x00", "\x1b", "\x7f", "\x9b", "\u202e", "\u2066", "\ufffe"])
def test_control_characters_are_shown(letter: str) -> None:
    assert letter not in printable(f"a{letter}b") and len(printable(f"a{letter}b")) == 3


# --- runs and scans ---------------------------------------------------------------------------------------------------


def test_runs_are_compared_with_the_plain_one(tmp_path: Path, no_images: None) -> None:
    plain = documents(TASKS, 20)
    lost = {(task, number): ("x", 0.0) for task in TASKS for number in range(10)}
    write_run(tmp_path / "merged", changed(plain, lost), plain=False, dtype="bfloat16")
    write_run(tmp_path / "same", plain, plain=False)
    write_run(tmp_path / "plain", plain)
    write_run(tmp_path / "other", documents(TASKS, 19), plain=False)
    write_run(tmp_path / "fewer", documents(["pope"], 20), plain=False)
    names = ("merged", "same", "plain", "other", "fewer")
    page = Page(write_report([tmp_path / name for name in names], tmp_path / "out"))
    assert "merged scores \N{MINUS SIGN}0.500 against plain (0 gained, 20 lost, p = 0.0001, adjusted for 2" in page.text
    assert "same scores +0.000 against plain (0 gained, 0 lost, p = 1.00" in page.text
    assert "other is not compared with plain: they were not asked alike." in page.text
    assert "pope: 1 documents in plain only, such as 19" in page.text
    assert "tasks: mmstar in plain only" in page.text
    assert "dtype differs: float32 and bfloat16 (merged)" in page.text
    assert {"Runs against plain", "merged against plain", "same against plain", "All runs"} <= set(page.headings)
    assert not {"other against plain", "fewer against plain"} & set(page.headings)
    tasks = pd.read_parquet(tmp_path / "out" / "tables" / "tasks.parquet")
    assert set(tasks["run"]) == {"merged", "same"} and len(tasks) == 6


def test_a_run_without_scores_is_named(tmp_path: Path, no_images: None) -> None:
    plain = documents(["pope"], 4)
    write_run(tmp_path / "plain", plain)
    write_run(tmp_path / "unscored", [{**document, "score": None} for document in plain], plain=False)
    page = Page(write_report([tmp_path / "plain", tmp_path / "unscored"], tmp_path / "out"))
    assert "unscored is not compared with plain" in page.text
    assert "pope: left out, no score per document is known (unscored: pope_accuracy is not logged" in page.text


def lowered(file: Path, task: str) -> None:
    """A run's results in which a lower score of a task is better."""
    results = json.loads(file.read_text())
    results["higher_is_better"][task]["score"] = False
    results["configs"][task]["metric_list"] = [{"metric": "score", "aggregation": "mean", "higher_is_better": False}]
    file.write_text(json.dumps(results))


def test_errors_are_not_called_right_and_their_mean_with_others_is_warned_of(tmp_path: Path, no_images: None) -> None:
    for name, right in (("plain", 20), ("merged", 12)):
        given = documents(["errors", "pope"], 20, right=right)
        given = [{**d, "score": 1 - d["score"]} if d["task"] == "errors" else d for d in given]
        lowered(write_run(tmp_path / name, given, plain=name == "plain"), "errors")
    page = Page(write_report([tmp_path / "plain", tmp_path / "merged"], tmp_path / "page")).text
    assert "lower is better in errors, higher in the others: their mean says nothing" in page
    assert "errors, document 12" in page and "plain score 0" in page and "merged score 1" in page


def test_runs_that_have_no_document_in_common_are_left_out_by_name(tmp_path: Path, no_images: None) -> None:
    given = documents(["one", "two"], 20)
    write_run(tmp_path / "plain", given)
    for name, task in (("first", "one"), ("second", "two")):
        write_run(tmp_path / name, [{**d, "score": None} if d["task"] == task else d for d in given], plain=False)
    page = Page(write_report([tmp_path / n for n in ("plain", "first", "second")], tmp_path / "page")).text
    assert "second is not compared with plain: no document has a score in all." in page
    assert "no document has a score in second and in all of plain, first; report on fewer of them" in page


def test_a_run_of_tasks_without_scores(tmp_path: Path, no_images: None) -> None:
    write_run(tmp_path / "run", [{**d, "score": None} for d in documents(["one", "two"], 4)])
    page = Page(write_report([tmp_path / "run"], tmp_path / "page")).text
    assert "No score per document is known; the table metrics has what its tasks report." in page
    assert "nan" not in page and "which documents share" not in page


def test_one_run(tmp_path: Path) -> None:
    write_run(tmp_path / "plain" / "model", documents(TASKS, 20, right=15))
    page = Page(write_report([tmp_path / "plain"], tmp_path / "out"))
    assert page.headings == ["Task by task", "Stock metrics", "Where it comes from", "How to read this page"]
    assert "How does pair/mllm (plain) answer 40 documents of 2 tasks (pope, mmstar)?" in page.text
    assert "It scores 0.750, the mean over 2 tasks." in page.text and "There is no other run" in page.text
    assert "0.531 to 0.888" in page.text  # Wilson, of 15 in 20


def test_scan(tmp_path: Path) -> None:
    write_scan(tmp_path / "scan")
    page = Page(write_report([tmp_path / "scan"], tmp_path / "out"))
    found = scan_folder.load(tmp_path / "scan")
    assert page.headings == ["Where the image is used", "Where it comes from", "How to read this page"]
    assert f"The plateau is layers 4:8 of 8: {found.stages.reason}" in page.text.replace("\N{MINUS SIGN}", "-")
    assert "so what merging does is not shown" in page.text and "base_model: pair/base" in page.text
    assert len(page.drawings) == 1
    assert_frame_equal(
        pd.read_parquet(tmp_path / "out" / "tables" / "curve.parquet"), found.curve.table(), check_dtype=False
    )


def test_a_folder_of_everything(tmp_path: Path, no_images: None) -> None:
    write_scan(tmp_path / "all" / "scan")
    some_sweep(tmp_path / "all" / "one")
    some_sweep(tmp_path / "all" / "two")
    some_sweep(tmp_path / "all" / "one" / "cells" / ".being-written")
    write_run(tmp_path / "all" / "runs" / "plain", documents(TASKS, 4))
    write_run(tmp_path / "all" / "runs" / "merged", documents(TASKS, 4), plain=False)
    (tmp_path / "all" / "unfinished").mkdir()
    (tmp_path / "all" / "unfinished" / scan_folder.SETTINGS).write_text("{}")
    given = [tmp_path / "all", tmp_path / "all" / "one", tmp_path / "all" / "scan" / ".." / "scan"]
    page = Page(write_report(given, tmp_path / "out", examples=1))
    assert [h for h in page.headings if h.startswith("All")] == ["All cells: one", "All cells: two", "All runs"]
    assert page.headings.count("Where the image is used") == 1
    assert "runs/merged against runs/plain" in page.headings and "unfinished: a scan that has not finished" in page.text
    tables = {path.name for path in (tmp_path / "out" / "tables").glob("*.csv")}
    assert {"one-cells.csv", "two-cells.csv", "runs-samples.csv", "curve.csv"} <= tables
    assert set(pd.read_csv(tmp_path / "out" / "tables" / "runs-runs.csv")["run"]) == {"runs/plain", "runs/merged"}


def test_nothing_to_report_on(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(
        ReportError,
        match=r"empty: nothing of a sweep, a scan, a look inside, a run or an export in it\.\n"
        "Expected folders of `plam sweep`",
    ):
        write_report([tmp_path / "empty"], tmp_path / "out")
    with pytest.raises(ReportError, match="absent: no such folder"):
        write_report([tmp_path / "absent"], tmp_path / "out")
    (tmp_path / "scan").mkdir()
    (tmp_path / "scan" / scan_folder.SETTINGS).write_text("{}")
    with pytest.raises(ReportError, match="a scan that has not finished"):
        write_report([tmp_path / "scan"], tmp_path / "out")
    file = write_run(tmp_path / "run", documents(["pope"], 2))
    file.with_name(file.name.replace("results.json", "samples_pope.jsonl")).unlink()
    with pytest.raises(ReportError, match="run again with --log_samples"):
        write_report([tmp_path / "run"], tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_ramps_and_pairs_have_rows_of_their_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn, stock = list[str](), plots.heat_map

    def heat_map(*given: Any, **how: Any) -> Any:
        drawn.append(str((given, how)))
        return stock(*given, **how)

    monkeypatch.setattr(plots, "heat_map", heat_map)
    given = documents(("pope", "mmstar"), 8)
    names = [f"layers-{layers}_qkvo_{weights}" for layers in ("6-8", "0-8") for weights in ("0.9to0.5+0.3", "0.9+0.3")]
    write_sweep(tmp_path / "sweep", {"plain": given, **dict.fromkeys(names, given)}, weights="0.9:0.5+0.3,0.9+0.3")
    page = Page(write_report([tmp_path / "sweep"], tmp_path / "out"))
    assert "layers 6:8, qkvo, 0.9:0.5 + 0.3" in page.text and "layers 6:8, qkvo, 0.9 + 0.3" in page.text
    assert "'0.9:0.5 + 0.3', '0.9 + 0.3'" in drawn[0]


def test_a_scan_that_does_not_say_what_its_answers_depend_on_is_shown(tmp_path: Path) -> None:
    write_scan(tmp_path / "scan")
    file = tmp_path / "scan" / "scan.json"
    settings = json.loads(file.read_text())
    del settings["weights and arguments"]
    file.write_text(json.dumps(settings))
    page = write_report([tmp_path / "scan"], tmp_path / "page").read_text()
    assert "not recorded" in page and settings["pretrained"] in page
