"""`make bench`: sections are kept, replaced and gone on with; the page says what was measured, and what was not."""

from __future__ import annotations

import json
import mmap
import os
import subprocess
import time
from fractions import Fraction
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import measured
from benchmarks.bench import __main__ as bench
from benchmarks.bench.page import page
from benchmarks.bench.sections import ROUNDS, SECTIONS, Section, chosen
from plam_eval.errors import InputError
from tests.helpers.paths import ROOT


@pytest.fixture(autouse=True)
def scripts(monkeypatch: pytest.MonkeyPatch) -> None:
    """They find each other as where one is started by its path."""
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))


def record(section: str = "merge", **other: Any) -> dict[str, Any]:
    rows = [
        measured.row(
            "merge at load",
            ("at load", [0.2, 0.4, 0.9, 0.3, 0.4]),
            ("a copy", [0.1, 0.1, 0.3, 0.1, 0.1]),
            ideal=1.0,
            ideal_is="a copy | alone",
            written_MB=1234,
        )
    ]
    return {
        "section": section,
        "form": bench.FORM,
        "quick": False,
        "at": "2026-11-26T20:00:00+00:00",
        "took": 61.2,
        "others": 0.0,
        "commit": "abc",
        "code": "abc",
        "command": "python benchmarks/merge.py",
        "machine": {"processor": "a CPU", "cores": 2},
        "versions": {"torch": "2"},
        "setting": "302 MB",
        "rows": rows,
        "raw": {},
        **other,
    }


def test_ratios_are_those_of_rounds() -> None:
    row = record()["rows"][0]
    assert row["ratio"] == pytest.approx({"median": 3, "least": 2, "most": 4})  # not 0.4 / 0.1 of the medians
    assert row["more"] == {"written MB": 1234}
    with pytest.raises(ValueError, match="2 rounds of x and 1 of y"):
        measured.row("this", ("x", [1, 2]), ("y", [1]), ideal=None, ideal_is="")
    with pytest.raises(ValueError, match="expected figures above zero"):
        measured.row("this", ("x", [1.0]), ("y", [0.0]), ideal=None, ideal_is="")


def test_ways_take_turns() -> None:
    order: list[str] = []

    def way(name: str) -> float:
        order.append(name)
        return 1.0

    assert measured.in_turn({name: partial(way, name) for name in "AB"}, 3) == {"A": [1.0] * 3, "B": [1.0] * 3}
    assert "".join(order) == "ABBAAB"


def test_a_process_is_measured_whole(tmp_path: Path) -> None:
    code = "import json; x = b'x' * (300 << 20); open('out', 'wb').write(x[: 50 << 20]); print(json.dumps({'a': 1}))"
    script = tmp_path / "work.py"
    script.write_text(f"import os; os.chdir({str(tmp_path)!r}); {code}", encoding="utf-8")
    held = b"x" * (500 << 20)  # by this process, and so not by that one
    spent = measured.run_process(measured.python(script))
    del held
    assert spent.result() == {"a": 1}
    assert 300 << 20 < spent.peak < 400 << 20 and 50 << 20 <= spent.written < 60 << 20
    script.write_text("import sys; print('why', file=sys.stderr); sys.exit(3)", encoding="utf-8")
    with pytest.raises(RuntimeError, match="exit status 3\nwhy"):
        measured.run_process(measured.python(script))


def test_the_exact_sum_is_that_of_fractions() -> None:
    from benchmarks.load import exact
    from benchmarks.merge import nearest

    generator = torch.Generator().manual_seed(1)
    mllm, base = ((torch.randn(4000, generator=generator) * 0.02).bfloat16() for _ in range(2))
    mllm[:100] = base[:100] * -1 / 3  # nearly nothing is left
    mllm[100:110] *= 2.0**60  # no float64 holds the sum
    mllm[110], base[110], mllm[111] = 2.0**-120, 2.0**-121, 0.0
    weights = Fraction(9, 10), Fraction(3, 10)
    pairs = zip(mllm.tolist(), base.tolist(), strict=True)
    expected = [nearest(weights[0] * Fraction(one) + weights[1] * Fraction(other)) for one, other in pairs]
    assert exact(mllm, base).tolist() == expected
    assert exact(mllm, base).bfloat16().tolist() == expected


def test_the_page_has_every_figure_and_says_what_is_missing() -> None:
    text = page({"merge": record(), "scan": record("scan", others=0.9)}, "results")
    assert "302 MB; 5 rounds. `python benchmarks/merge.py`" in text
    assert "| merge at load | at load: 0.400 s | a copy: 0.100 s | **3.00** (2.00 to 4.00) | 1.00 | 1,234 |" in text
    assert "a copy \\| alone |" in text
    assert "1:01 | 0:30 | abc | 0.0 |" in text and "0.9 **busy** |" in text
    assert "Not measured: a merge at load; joint answering" in text and "A quick run" not in text
    assert text.count("a CPU") == 1


def series(name: str, seconds: dict[int, list[float]], why: str = "") -> dict[str, Any]:
    """A series of `growth` as a section's JSON holds it, whose memory does not grow."""
    from benchmarks import growth

    memory = {size: [10**7] * len(rounds) for size, rounds in seconds.items()}
    slopes = {"slope of time": growth.slopes(seconds), "slope of memory": growth.slopes(memory)}
    made = {"name": name, "axis": f"{name} of it", "why": why, "seconds": seconds, "memory": memory, **slopes}
    found: dict[str, Any] = json.loads(json.dumps({**made, **growth.judged(made)}))
    return found


LINE = {size: [size * each for each in (1.0, 0.5, 3.0, 2.0, 2.0)] for size in (1, 2, 4)}
SQUARE = {size: [size**2 * each for each in (1.0, 0.5, 3.0, 2.0, 2.0)] for size in (1, 2, 4)}


def test_growth_has_every_spread() -> None:
    uneven = {**LINE, 4: [4.0, 2.0, 12.0, 8.0, 64.0]}
    text = page({"growth": record("growth", rows=[], raw={"series": [series("cells", uneven)]})}, "results")
    assert "302 MB; 5 rounds." in text
    assert (
        "| 1: 2.00 (0.500 to 3.00); 2: 4.00 (1.00 to 6.00); 4: 8.00 (2.00 to 64.0) | **1.00** (1.00 to 2.50) |" in text
    )
    assert (
        "| 1: 10.0 (10.0 to 10.0); 2: 10.0 (10.0 to 10.0); 4: 10.0 (10.0 to 10.0) | **0.00** (0.00 to 0.00) |" in text
    )
    assert "no more than linear" in text


def test_what_a_full_run_must_not_find_is_its_exit_status(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found: list[dict[str, Any]] = []
    results, file = tmp_path / "results", tmp_path / "RESULTS.md"
    monkeypatch.setattr(
        bench, "measure", lambda *_, quick: record("growth", quick=quick, rows=[], raw={"series": found})
    )
    run = partial(bench.run, only("growth"), results, file, again=True)
    found[:] = [series("cuts", LINE), series("tokens", SQUARE, "pairs of tokens")]
    assert run(quick=False) == 0
    found[:] = [series("cuts", SQUARE)]
    assert run(quick=False) == 1
    assert "growth: cuts: time above linear: NO REASON IS KNOWN" in capsys.readouterr().out
    assert "time above linear: NO REASON IS KNOWN" in file.read_text(encoding="utf-8")
    assert bench.run(only("growth"), results, file, quick=False, again=False) == 1  # kept or not
    assert run(quick=True) == 0
    found[:] = [series("cuts", {size: rounds[:4] for size, rounds in LINE.items()})]
    assert run(quick=False) == 1
    assert "growth: found 4 round(s) of something, expected 5 or more" in capsys.readouterr().out


def test_a_full_run_asks_for_enough_rounds() -> None:
    for section in SECTIONS:
        words = dict(zip(section.full, section.full[1:], strict=False))
        asked = [int(words[word]) for word in ("--repeats", "--rounds") if word in words]
        assert asked and min(asked) >= ROUNDS, section.name


def test_a_slow_rule_has_as_many_rounds(monkeypatch: pytest.MonkeyPatch) -> None:
    from benchmarks import rules

    ticks = count(step=100)
    monkeypatch.setattr(time, "process_time", lambda: next(ticks))
    assert rules.seconds(["weighted_sum", "slerp"], 8, torch.float32, 5) == {
        "weighted_sum": [100] * 5,
        "slerp": [100] * 5,
    }


def test_the_first_merge_is_not_counted(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from benchmarks import merge

    numbers = count(1)
    names = ("seconds", "CPU seconds", "page faults", "written")
    monkeypatch.setattr(merge, "spent", lambda _: dict.fromkeys(names, next(numbers)))
    monkeypatch.setattr(merge, "write", lambda folder, *_: folder)
    monkeypatch.setattr(merge, "_load", lambda _: merge.Decoder(1).state_dict())
    monkeypatch.setattr(merge, "WIDTH", 8)
    merge.costs(1, 2, tmp_path / "rows.json")
    raw = json.loads((tmp_path / "rows.json").read_text(encoding="utf-8"))["raw"]
    found = {name: [each["seconds"] for each in rounds] for name, rounds in raw.items()}
    # 1 to 3 are not counted; in the second round the addition comes first.
    assert found == {"at load": [4, 8], "to another spec": [5, 9], "memory limit": [6, 7]}


def test_a_model_that_was_mapped_is_touched_whole(tmp_path: Path) -> None:
    from benchmarks.load import touch

    size = 32 << 20
    (tmp_path / "weights").write_bytes(bytes(size))
    module = torch.nn.Module()
    mapped = torch.from_file(str(tmp_path / "weights"), shared=True, size=size, dtype=torch.uint8)
    module.weight = torch.nn.Parameter(mapped[:-100].view(torch.bfloat16), requires_grad=False)
    kinds = ("RssFile", "RssShmem")  # the latter where TMPDIR is in memory
    before = sum(map(measured.memory_of, kinds))
    assert touch(module) == -(-(size - 100) // mmap.PAGESIZE) + 1
    assert sum(map(measured.memory_of, kinds)) - before > 0.9 * size


def only(name: str) -> list[Section]:
    return [section for section in SECTIONS if section.name == name]


def test_sections_are_kept_and_gone_on_with(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    results, file = tmp_path / "results", tmp_path / "RESULTS.md"
    asked: list[str] = []

    def measure(section: Section, *_: Path, quick: bool) -> dict[str, Any]:
        asked.append(section.name)
        if section.name == "scan":
            raise InputError("scan.py: exit status 1")
        if section.name == "export":
            raise KeyboardInterrupt
        return record(section.name, quick=quick)

    monkeypatch.setattr(bench, "measure", measure)
    monkeypatch.setattr(bench, "code", lambda: "abc")
    sections = chosen("merge,scan,report,export")
    with pytest.raises(KeyboardInterrupt):
        bench.run(sections, results, file, quick=False, again=False)
    assert asked == ["merge", "scan", "export"]
    assert "## The merge alone" in file.read_text(encoding="utf-8")
    assert bench.run(only("merge") + only("scan") + only("report"), results, file, quick=False, again=False) == 1
    assert asked[3:] == ["scan", "report"]
    assert "exit status 1" in capsys.readouterr().out
    text = file.read_text(encoding="utf-8")
    assert "## The merge alone" in text and "## Reading runs" in text and "## A scan" not in text
    monkeypatch.setattr(bench, "code", lambda: "other")
    assert bench.run(only("merge"), results, file, quick=False, again=False) == 0 and asked[5:] == ["merge"]
    assert bench.run(only("report"), results, file, quick=False, again=True) == 0 and asked[6:] == ["report"]
    (results / "merge.json").write_text("{", encoding="utf-8")
    assert bench.run(only("report"), results, file, quick=False, again=True, minutes=0.5) == 0 and not asked[7:]
    said, text = capsys.readouterr().out, file.read_text(encoding="utf-8")
    assert "merge: left out" in said and "report: left for the next time" in said
    assert "## The merge alone" not in text and "## Reading runs" in text
    (results / "merge.json").write_text(json.dumps(record("merge", form=1)), encoding="utf-8")
    bench.write_page(results, file)
    assert "is of form 1, expected 2" in capsys.readouterr().out
    assert "## The merge alone" not in file.read_text(encoding="utf-8")


NAN = float("nan")


@pytest.mark.parametrize(
    ("path", "value", "said"),
    [
        ("quick", None, "quick: missing"),
        ("others", "much", "others: found 'much'"),
        ("took", NAN, "took: found nan"),
        ("at", 3, "at: found 3"),
        ("commit", [], "commit: found []"),
        ("machine", [], "machine: found []"),
        ("versions", None, "versions: missing"),
        ("section", "scan", "section: found 'scan', expected 'growth'"),
        ("raw.series", 7, "raw.series: found 7"),
        ("raw", {}, "rows: found none, nor a series"),
        ("raw.series.0.seconds", {}, "raw.series.0.seconds: found {}"),
        ("raw.series.0.seconds.1.0", 0.0, "raw.series.0.seconds.1.0: found 0.0"),
        ("raw.series.0.memory", {"small": [1]}, "raw.series.0.memory.small"),
        ("raw.series.0.slope of time.median", NAN, "raw.series.0.slope of time.median: found nan"),
        ("raw.series.0.unexplained", None, "raw.series.0.unexplained: missing"),
        ("rows.0.ratio.most", None, "rows.0.ratio.most: missing"),
        ("rows.0.A.rounds", [], "rows.0.A.rounds: found []"),
        ("rows.0.B.is", None, "rows.0.B.is: missing"),
        ("rows.0.ideal is", 1, "rows.0.ideal is: found 1"),
        ("rows.0.more", [], "rows.0.more: found []"),
    ],
)
def test_a_record_that_cannot_be_shown_is_left_out(
    path: str, value: Any, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    results, file = tmp_path / "results", tmp_path / "RESULTS.md"
    results.mkdir()
    whole = record("growth", raw={"series": [series("cells", LINE)]})
    if path == "raw":
        whole["rows"] = []
    *parents, key = [int(word) if word == "0" else word for word in path.split(".")]
    place: Any = whole
    for word in parents:
        place = place[word]
    if value is None:
        del place[key]
    else:
        place[key] = value
    (results / "growth.json").write_text(json.dumps(whole), encoding="utf-8")
    (results / "merge.json").write_text(json.dumps(record()), encoding="utf-8")
    assert bench.main(["--page", "--output", str(tmp_path)]) == 0
    out, text = capsys.readouterr().out, file.read_text(encoding="utf-8")
    assert f"growth: left out: {results / 'growth.json'}: {said}" in out and bench.REMEDY in out
    assert "## The merge alone" in text and "## Growth" not in text


def test_the_records_that_are_kept_can_be_shown(capsys: pytest.CaptureFixture[str]) -> None:
    results = ROOT / "benchmarks" / "results"
    assert set(bench.stored(results)) == {file.stem for file in results.glob("*.json")}
    assert "left out" not in capsys.readouterr().out


def test_a_script_that_hands_on_what_cannot_be_shown_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def ended(command: list[str], *_: Any) -> int:
        measured.write_rows(Path(command[-1]), [{**record()["rows"][0], "ideal": NAN}], "302 MB")
        return 0

    monkeypatch.setattr(bench, "_to_its_end", ended)
    with pytest.raises(InputError, match=r"merge\.py: handed on what cannot be shown: rows\.0\.ideal: found nan"):
        bench.measure(only("merge")[0], tmp_path / "work", tmp_path / "logs", quick=True)


def test_a_page_stays_where_there_are_no_results(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "RESULTS.md").write_text("kept", encoding="utf-8")
    assert bench.main(["--page", "--output", str(tmp_path)]) == 1
    assert f"{tmp_path / 'results'}: no results" in capsys.readouterr().out
    assert (tmp_path / "RESULTS.md").read_text(encoding="utf-8") == "kept"


def test_what_a_section_has_begun_ends_with_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script, mark = tmp_path / "work.py", tmp_path / "mark"

    class Begun(subprocess.Popen[bytes]):
        """Its time begins when the mark is there: two Pythons have to start for it, on a busy machine perhaps."""

        def wait(self, timeout: float | None = None) -> int:
            deadline = time.monotonic() + 60
            while timeout == 0.1 and not mark.exists() and time.monotonic() < deadline:
                time.sleep(0.02)
            return super().wait(timeout)

    monkeypatch.setattr(bench.subprocess, "Popen", Begun)
    wait = "import os, sys, time; open(sys.argv[1], 'w').close(); time.sleep(60)"
    script.write_text(
        f"import subprocess, sys; subprocess.Popen([sys.executable, '-c', {wait!r}, {str(mark)!r}]).wait()",
        encoding="utf-8",
    )
    with (tmp_path / "log").open("w", encoding="utf-8") as log:
        assert bench._to_its_end(measured.python(script), dict(os.environ), log, limit=0.1) is None
    assert mark.exists()
    running = subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True, check=True).stdout
    assert str(mark) not in running
    with (tmp_path / "log").open("w", encoding="utf-8") as log:
        assert bench._to_its_end(measured.python("-c", "import sys; sys.exit(3)"), dict(os.environ), log, 60) == 3


def test_a_section_of_no_name_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        bench.main(["--only", "merge,speed"])
    assert "no section speed; expected some of load, merge" in capsys.readouterr().err


def tried(names: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, dict[str, Any]]:
    """What a quick run of the sections hands on."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    assert bench.main(["--quick", "--only", names, "--output", str(folder)]) == 0
    found = {name: json.loads((folder / "results" / f"{name}.json").read_text()) for name in names.split(",")}
    text = (folder / "RESULTS.md").read_text(encoding="utf-8")
    for each in found.values():
        assert each["quick"] and each["took"] > 0 and each["commit"] and each["versions"]["torch"]
        assert all(row["what"] in text and row["ratio"]["median"] > 0 and row["ideal is"] for row in each["rows"])
    return found


def test_a_quick_run_measures_with_the_script(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = tried("merge", tmp_path, monkeypatch)["merge"]
    assert [row["what"] for row in found["rows"]] == ["merge at load", "merge to another spec"]
    assert len(found["raw"]["at load"]) == 2 and "34 MB merged" in found["setting"]
    assert (
        not (ROOT / "benchmarks" / "results" / "merge.json").exists()
        or not json.loads((ROOT / "benchmarks" / "results" / "merge.json").read_text(encoding="utf-8"))["quick"]
    )


QUICK = "load,scan,together,sweep,attention,export,report,stock,start,dry-run,busy,rules,growth"


@pytest.mark.long
@pytest.mark.slow
@pytest.mark.parametrize("name", QUICK.split(","))
def test_every_section_is_measured_by_its_script(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = tried(name, tmp_path, monkeypatch)[name]
    assert found["rows"] or found["raw"]["series"]
    if name == "growth":
        assert (tmp_path / "growth.png").exists()
    if name == "load":
        assert found["rows"][1]["more"]["inexact in A"].startswith("0.") and len(found["rows"]) == 3
        assert "mergekit was not asked for" in found["setting"]


@pytest.mark.long
@pytest.mark.slow
@pytest.mark.needs("vllm")
def test_serving_is_measured_by_its_script(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = tried("serving", tmp_path, monkeypatch)["serving"]["rows"]
    assert len(rows) == 3 and rows[2]["more"]["answers that differ"] == 0
