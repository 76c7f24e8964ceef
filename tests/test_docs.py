"""The documentation: every link and picture leads somewhere, and the site is built without a warning."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import plam_eval
from tests.helpers.paths import ROOT

PAGES = [*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")]
_CODE = re.compile(r"^```.*?^```|`[^`\n]*`", re.MULTILINE | re.DOTALL)
_LINK = re.compile(r"\]\(\s*([^)\s]+)\s*\)")


def anchors(text: str) -> set[str]:
    """Of headings, as code hosts and the site make them."""
    headings = re.findall(r"^#+ +(.*?) *$", re.sub(r"^```.*?^```", "", text, flags=re.M | re.S), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    for target in _LINK.findall(_CODE.sub("", page.read_text(encoding="utf-8"))):
        if "://" in target or target.startswith("mailto:"):
            continue
        name, _, anchor = target.partition("#")
        file = (page.parent / name).resolve() if name else page
        assert file.exists() and file.is_relative_to(ROOT), f"{page.name}: {target}"
        if anchor and file.suffix == ".md":
            assert anchor in anchors(file.read_text(encoding="utf-8")), f"{page.name}: no heading {target}"


def test_every_page_is_in_the_reading_order_or_behind_it() -> None:
    """From the overview, by links alone."""
    seen, left = set(), [ROOT / "README.md"]
    while left:
        page = left.pop()
        if page in seen or page.suffix != ".md":
            continue
        seen.add(page)
        targets = (link.partition("#")[0] for link in _LINK.findall(page.read_text(encoding="utf-8")))
        left += [(page.parent / target).resolve() for target in targets if target and "://" not in target]
    assert set((ROOT / "docs").glob("*.md")) <= seen, set((ROOT / "docs").glob("*.md")) - seen


def test_the_reference_has_every_function() -> None:
    text = (ROOT / "docs" / "api.md").read_text(encoding="utf-8")
    assert [name for name in plam_eval.__all__ if not re.search(rf"\b{name}\b", text)] == []


def test_the_estimates_are_those_of_the_script(capsys: pytest.CaptureFixture[str]) -> None:
    from benchmarks import estimate

    estimate.main([])
    out = capsys.readouterr().out
    text = (ROOT / "docs" / "start.md").read_text(encoding="utf-8")
    hours = dict(re.findall(r"^\| ([a-z][^|]*?) +\|[^|]*\| +([\d.]+) \|", out, re.MULTILINE))
    assert round(float(hours["scan"]) * 60) == 5 and "| 5 min |" in text
    assert f"| {float(hours['compare']):.1f} h |" in text and f"| {float(hours['sweep, cell by cell']):.0f} h |" in text
    assert f"| {float(hours['sweep --together 10']):.0f} h or more |" in text
    for figure in ("14.1 GB for the MLLM", "13.5 GB for the base"):
        assert figure in out and figure in text


@pytest.mark.slow
def test_the_site_is_built_without_a_warning(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path / "site")]
    environment = os.environ | {"NO_MKDOCS_2_WARNING": "1", "NO_COLOR": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0 and "WARNING" not in done.stderr, done.stdout + done.stderr
    reference = (tmp_path / "site" / "api" / "index.html").read_text(encoding="utf-8")
    for name in ("merge", "scan", "compare", "sweep", "read_run", "report", "load_spec"):
        assert re.search(rf'id="plam_eval\.(api|spec)\.{name}"', reference), name
    overview = (tmp_path / "site" / "readme" / "index.html").read_text(encoding="utf-8")
    assert 'href="../start/"' in overview and 'src="../images/report.png"' in overview
    assert "fonts.googleapis.com" not in overview
    security = (tmp_path / "site" / "security" / "index.html").read_text(encoding="utf-8")
    assert "what is trusted, and what is not" in security  # the page of docs, not the root's pointer to it
