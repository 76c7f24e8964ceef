"""Looks inside on the report page: what is said, quoted, drawn and left out."""

from __future__ import annotations

import html
import json
import re
from pathlib import Path

import pandas as pd
import pytest
from pandas.testing import assert_frame_equal

from plam_eval.evaluation.attend import folder as layout
from plam_eval.evaluation.attend.findings import find
from plam_eval.evaluation.attend.shown import ShownDocument
from plam_eval.evaluation.attend.summary import AttendFindings
from plam_eval.report.page import write_report
from plam_eval.report.sections import attention
from plam_eval.report.sources import ReportError
from tests.helpers.attend_folders import write_attend_folder
from tests.helpers.pages import Page
from tests.helpers.run_folders import write_scan

MINUS = "\N{MINUS SIGN}"
FEW = {"gqa": 16}


def concluded(folder: Path) -> AttendFindings:
    return find(layout.load(folder))


@pytest.fixture(scope="module")
def seen(tmp_path_factory: pytest.TempPathFactory) -> tuple[Page, AttendFindings, Path]:
    """The page of a folder with boxes and depth, what is concluded of it, and where the page lies."""
    folder = tmp_path_factory.mktemp("seen")
    write_attend_folder(folder / "attend", depth=True)
    path = write_report([folder / "attend"], folder / "out")
    return Page(path), concluded(folder / "attend"), path.parent


def section(page: Page, title: str) -> str:
    """The source of a section, by its heading."""
    return page.source.partition(f"<h2>{title}</h2>")[2].partition("</section>")[0]


def text(source: str) -> str:
    return " ".join(html.unescape(re.sub("<[^>]*>", " ", source.replace("<wbr>", ""))).split())


def every_row(source: str, caption: str) -> list[list[str]]:
    """The cells of each row of the table whose caption begins so."""
    table = source.partition(f"<caption><span>{caption}")[2].partition("</table>")[0]
    body = re.findall(r"<tr.*?</tr>", table.partition("<tbody>")[2], re.DOTALL)
    return [[text(cell) for cell in re.findall(r"<t[hd].*?</t[hd]>", row, re.DOTALL)] for row in body]


def rows(source: str, caption: str) -> dict[str, list[str]]:
    """By the row's name; the last of rows of one name."""
    return {name: cells for name, *cells in every_row(source, caption)}


def with_minus_signs(words: str) -> str:
    return re.sub(r"(?<![\w.+-])-(?=\d)", MINUS, words)


def test_the_sentence_is_the_answer(seen: tuple[Page, AttendFindings, Path]) -> None:
    page, found, _ = seen
    assert page.text.count(with_minus_signs(found.sentence)) == 1  # no second time right below itself
    assert page.headings == ["Where it looks", "Layer by layer", "Where it comes from", "How to read this page"]
    assert "<title>Where pair/mllm looks</title>" in page.source
    assert (
        "60 documents of 2 tasks (gqa, pope) were answered plain and under merged, self_scale and normalized"
        in page.text
    )
    assert "Attention describes: a token that is attended to need not be used" in page.text


def test_what_is_quoted_stands_beside_its_scale(seen: tuple[Page, AttendFindings, Path]) -> None:
    page, found, _ = seen
    own = rows(
        section(page, "Where it looks"), "Sinks left out. 30 documents. Layers were chosen on 30 other documents"
    )
    quoted = found.quoted[(found.quoted["measure"] == "entropy") & (found.quoted["sinks"] == "without")]
    quoted = quoted[(quoted["place"] == "plateau") & (quoted["on"] == "reported") & (quoted["second"] == "merged")]
    by_first = quoted.set_index("first")
    layers, plain, merged, scale, _, difference, p, *against_scale = own["entropy over the image (nats)"]
    assert layers == "4:8"
    assert (
        plain == f"{by_first.loc['plain', 'first_mean']:.3f}"
        and merged == f"{by_first.loc['plain', 'second_mean']:.3f}"
    )
    assert scale == f"{by_first.loc['self_scale', 'first_mean']:.3f}"
    row = by_first.loc["plain"]
    said = f"{row['difference']:+.3f} ({row['low']:+.3f} to {row['high']:+.3f})".replace("-", MINUS)
    assert difference == said and float(p) == pytest.approx(row["p"], rel=0.1)
    assert against_scale[0].startswith(f"{by_first.loc['self_scale', 'difference']:+.3f}".replace("-", MINUS))
    assert "The same with sinks counted" in page.text and "Every layer" in page.text


def test_boxes_of_other_documents_are_the_control(seen: tuple[Page, AttendFindings, Path]) -> None:
    page, found, _ = seen
    own = rows(section(page, "Where it looks"), f"Attention in boxes in layer {found.chosen_layer('over_chance')}, ")
    assert list(own) == ["plain", "merged", "self_scale", "normalized"]
    assert (
        float(own["merged"][0]) > 1.4 > float(own["plain"][0]) > 1.1
    )  # 0.4 and 0.3 of the image, where 0.25 is chance
    assert all(float(cells[2]) == pytest.approx(1, abs=0.05) and cells[-1] == "60" for cells in own.values())


def test_answers_and_drawings(seen: tuple[Page, AttendFindings, Path]) -> None:
    page, found, _ = seen
    own = rows(section(page, "Where it looks"), "Answers by setting")
    for row in found.answers.to_dict("records"):
        assert own[row["setting"]][0] == f"{row['score']:.3f}" and own[row["setting"]][-1] == "60"
    assert len(page.images) == 2 and all(image.startswith("data:image/") for image in page.images)
    alt = re.findall(r'alt="([^"]*)"', page.source)
    assert "Attention over the image of gqa, document 0. What color is the star? Answer with one word. " in alt[0]
    assert "Right is blue. plain: red; merged: red" in alt[0] and len(page.drawings) == 2


def test_the_page_stays_one_file(seen: tuple[Page, AttendFindings, Path]) -> None:
    page, _, folder = seen
    assert len(page.source) < 900_000 and page.styled == []
    for tag, _, value in page.references:
        own = value.startswith(("#", "data:image/")) or (tag == "a" and value.startswith(("https://", "tables/")))
        assert own, (tag, value[:60])
    assert not re.search(r"url\((?!#)|@import", page.source)
    tables = {path.stem for path in (folder / "tables").iterdir()}
    assert tables == {"attention", "differences", "quoted", "settings", "depth"}


def test_tables_are_those_of_the_findings(seen: tuple[Page, AttendFindings, Path]) -> None:
    _, found, folder = seen
    for name, frame in (("attention", found.levels), ("differences", found.differences), ("quoted", found.quoted)):
        assert_frame_equal(pd.read_parquet(folder / "tables" / f"{name}.parquet"), frame, check_dtype=False)


def test_without_boxes(tmp_path: Path) -> None:
    write_attend_folder(tmp_path / "attend", tasks=FEW, boxes=False, shown=0)
    page = Page(write_report([tmp_path / "attend"], tmp_path / "out"))
    assert "no document has boxes: where in the image the model looks is not compared" in page.text
    own = section(page, "Where it looks")
    assert "Attention in boxes" not in own and "in boxes" not in rows(own, "Sinks left out")
    assert "Layer by layer" not in page.headings and not page.images and "nan" not in text(own)


def test_layers_chosen_on_the_same_documents_are_adjusted_for(tmp_path: Path) -> None:
    folder = write_attend_folder(tmp_path / "attend", tasks=FEW, shown=0, shift={"merged": 0.004, "self_scale": 0.0})
    find(layout.load(folder), select=0).write()
    page, found = Page(write_report([folder], tmp_path / "out")), find(layout.load(folder), select=0)
    assert (
        "Layers were chosen on these documents, where merged differs most from plain; p is adjusted for all"
        in page.text
    )
    layer = found.chosen_layer("entropy")
    table = found.differences.set_index(["measure", "sinks", "first", "second", "layer"])
    row = table.loc[("entropy", "without", "plain", "merged", layer)]
    (cells,) = [
        cells
        for name, *cells in every_row(section(page, "Where it looks"), "Sinks left out.")
        if name.startswith("entropy over") and cells[0] == str(layer)
    ]
    assert row["p"] < row["p_holm"] and float(cells[5]) == pytest.approx(row["p_holm"], rel=0.1)


def test_two_looks_and_scans_of_their_model(tmp_path: Path) -> None:
    write_scan(tmp_path / "all" / "scan")
    write_scan(tmp_path / "all" / "question", closed_to="question")
    write_attend_folder(tmp_path / "all" / "deep", tasks=FEW, depth=True, shown=1)
    write_attend_folder(tmp_path / "all" / "flat", tasks=FEW, shift={"merged": 0.1, "self_scale": 0.0}, shown=0, seed=1)
    page = Page(write_report([tmp_path / "all"], tmp_path / "out"))
    assert page.headings[:4] == [
        *("Where the image is used", "Where it looks: deep", "Where it looks: flat", "Layer by layer")
    ]
    for name in ("deep", "flat"):  # the answers of four sources stand far above
        said = with_minus_signs(concluded(tmp_path / "all" / name).sentence)
        assert page.text.count(said) == 2 and text(section(page, f"Where it looks: {name}")).startswith(said)
    layers = text(section(page, "Layer by layer"))
    assert "The scan question: image closed to the question alone" in layers and "only descriptions" not in layers
    assert "so what merging does to scores is not shown" in page.text
    names = {path.stem for path in (tmp_path / "out" / "tables").iterdir()}
    assert {"deep-differences", "flat-differences", "deep-depth", "scan-curve", "question-curve"} <= names


def test_a_scan_of_part_of_the_text_is_no_use_of_the_image(tmp_path: Path) -> None:
    write_scan(tmp_path / "last", closed_to="last")
    page = Page(write_report([tmp_path / "last"], tmp_path / "out"))
    assert page.headings == ["Layer by layer: last", "Where it comes from", "How to read this page"]


def test_a_scan_of_another_model_stands_by_itself(tmp_path: Path) -> None:
    write_attend_folder(tmp_path / "all" / "deep", tasks=FEW, depth=True, shown=0)
    write_scan(tmp_path / "all" / "question", closed_to="question")
    settings = json.loads((tmp_path / "all" / "question" / "scan.json").read_text())
    (tmp_path / "all" / "question" / "scan.json").write_text(json.dumps(settings | {"pretrained": "another"}))
    page = Page(write_report([tmp_path / "all"], tmp_path / "out"))
    assert page.headings[1:3] == ["Layer by layer", "Layer by layer: question"]
    assert "only descriptions are shown" in text(section(page, "Layer by layer"))


def test_text_of_others_stays_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write_attend_folder(tmp_path / "a<i>b", tasks=FEW, shown=1, depth=True)
    made_with = json.loads((folder / layout.SETTINGS_FILE).read_text())
    odd = "$\\frac{$<b>\x1b[31m"
    made_with["pretrained"] = odd
    made_with["settings"] = {odd if name == "normalized" else name: s for name, s in made_with["settings"].items()}
    (folder / layout.SETTINGS_FILE).write_text(json.dumps(made_with))
    for name in (layout.MEASURES_FILE, layout.ANSWERS_FILE, layout.DEPTH_FILE):
        table = pd.read_parquet(folder / name)
        table["setting"] = table["setting"].replace("normalized", odd)
        table["task"] = table["task"].replace("gqa", "<script>alert(1)</script>")
        table.to_parquet(folder / name)
    shown = ShownDocument.read(folder / layout.SHOWN / "0.npz")
    changed = {odd if name == "normalized" else name: own for name, own in shown.maps.items()}
    answers = dict.fromkeys(changed, "<img src=x onerror=alert(2)>" + "long " * 9000)
    words = {**vars(shown), "maps": changed, "answers": answers, "question": "\x00 & <u>" + "why " * 9000}
    ShownDocument(**words).write(folder / layout.SHOWN / "0.npz")
    page = Page(write_report([folder], tmp_path / "out"))
    assert page.source.count("<script") == 1 and not {"i", "b", "u"} & set(page.tags)
    assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f]", page.source)
    assert len(page.images) == 1 and page.source.count("why ") < 200
    assert len(page.source) < 1_500_000


def test_only_so_many_documents_are_drawn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_attend_folder(tmp_path / "attend", tasks=FEW, shown=4)
    monkeypatch.setattr(attention, "_SHOWN", 2)
    page = Page(write_report([tmp_path / "attend"], tmp_path / "out"))
    assert len(page.images) == 2 and "2 more documents of the folder are not on this page" in page.text


def test_a_damaged_drawing_is_said_and_no_more(tmp_path: Path) -> None:
    folder = write_attend_folder(tmp_path / "attend", tasks=FEW)
    (folder / layout.SHOWN / "0.npz").write_bytes(b"PK")
    page = Page(write_report([folder], tmp_path / "out"))
    assert "A document is not drawn: " in page.text and len(page.images) == 1 and "Where it looks" in page.headings


@pytest.mark.parametrize(
    ("name", "content"),
    [
        (layout.SETTINGS_FILE, b"{"),
        (layout.SETTINGS_FILE, b'{"settings": 3}'),
        (layout.MEASURES_FILE, b"x"),
        (layout.ANSWERS_FILE, b""),
    ],
)
def test_a_damaged_folder_hides_no_other(tmp_path: Path, name: str, content: bytes) -> None:
    write_scan(tmp_path / "all" / "scan")
    (write_attend_folder(tmp_path / "all" / "attend", tasks=FEW) / name).write_bytes(content)
    page = Page(write_report([tmp_path / "all"], tmp_path / "out"))
    assert "A look inside was left out: " in page.text and str(tmp_path / "all" / "attend") in page.text
    assert "Where the image is used" in page.headings and "Where it looks" not in page.headings


def test_what_has_not_finished_is_noted(tmp_path: Path) -> None:
    folder = write_attend_folder(tmp_path / "attend", tasks=FEW)
    (folder / layout.MEASURES_FILE).unlink()
    with pytest.raises(ReportError, match=r"attend: a look inside that has not finished(.|\n)*or `plam attend`"):
        write_report([tmp_path], tmp_path / "out")


def test_links_that_lead_out_are_left_out(tmp_path: Path) -> None:
    secret = write_attend_folder(tmp_path / "secret", tasks=FEW)
    write_scan(tmp_path / "given" / "scan")
    folder = write_attend_folder(tmp_path / "given" / "attend", tasks=FEW)
    (folder / layout.MEASURES_FILE).unlink()
    (folder / layout.MEASURES_FILE).symlink_to(secret / layout.MEASURES_FILE)
    page = Page(write_report([tmp_path / "given"], tmp_path / "out"))
    assert "leads to" in page.text and "Where it looks" not in page.headings


def test_layers_are_chosen_as_the_command_was_told(tmp_path: Path) -> None:
    folder = write_attend_folder(tmp_path / "attend", tasks={"gqa": 24}, shown=0)
    find(layout.load(folder), select=8).write()
    page = Page(write_report([folder], tmp_path / "out"))
    assert "16 documents. Layers were chosen on 8 other documents" in page.text
    (folder / layout.FINDINGS_FILE).write_text('{"select": "many"}')
    assert "Layers were chosen on 12 other documents" in Page(write_report([folder], tmp_path / "out")).text


def test_a_merge_of_layers_with_gaps_is_told_by_its_layers(tmp_path: Path) -> None:
    write_attend_folder(tmp_path / "attend", depth=True, shown=0, merged=(1, 4, 6, 7), shift={"merged": 0.1})
    page = Page(write_report([tmp_path / "attend"], tmp_path / "out"))
    looks, by_layer = section(page, "Where it looks"), section(page, "Layer by layer")
    assert "Means of layers 1+4+6:8 are over all that are merged" in text(looks)
    assert rows(looks, "Sinks left out.")["entropy over the image (nats)"][0] == "1+4+6:8"
    assert quiet_rows(looks, "entropy over the image (nats), sinks left out") == ["0", "2", "3", "5"]
    assert quiet_rows(by_layer, "By depth") == ["0", "3"]  # edges of no merged layer


def quiet_rows(source: str, caption: str) -> list[str]:
    """Names of the rows of a table that are told apart as being of lesser interest."""
    table = source.partition(f"<caption><span>{caption}")[2].partition("</table>")[0].partition("<tbody>")[2]
    found = re.findall(r"<tr([^>]*)>\s*<t[hd][^>]*>(.*?)</t[hd]>", table, re.DOTALL)
    return [text(name) for attributes, name in found if "quiet" in attributes]
