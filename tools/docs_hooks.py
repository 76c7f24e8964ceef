"""Hooks of mkdocs: pages that lie at the repository's root, and links that work on a code host and in the site alike.

README.md, CHANGELOG.md and their like become pages, in small letters, unless docs has a page of that name. A link from
a page to a file outside of docs (`../README.md`, `../LICENSE`) leads to that page, or to a copy of the file; links of
root pages into docs lose the folder's name.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parent.parent
LINK = re.compile(r"(\]\()([^)\s#]+)")


def _elsewhere(target: str) -> bool:
    return "://" in target or target.startswith(("mailto:", "/"))


def on_files(files: Files, config: Any) -> Files:
    """Add the pages of the root, and whatever else pages link to outside of docs.

    Args:
        files: of the site so far; it is added to.
        config: MkDocs' own.
    """
    for root in _roots():
        files.append(File.generated(config, root.name.lower(), content=root.read_text(encoding="utf-8")))
    for page in [file for file in list(files) if file.is_documentation_page()]:
        for target in (link[2] for link in LINK.finditer(page.content_string)):
            path = _outside(page.src_uri, target)
            if path is not None and path.suffix != ".md" and files.get_file_from_path(_copy(path)) is None:
                files.append(File.generated(config, _copy(path), abs_src_path=str(path)))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """The text `markdown` of `page` with its links as they are in the site."""
    here = page.file.src_uri

    def rewritten(link: re.Match[str]) -> str:
        target = link[2]
        path = _outside(here, target)
        if path is not None:
            return link[1] + (path.name.lower() if path.suffix == ".md" else _copy(path))
        if _is_root(here) and not _elsewhere(target):
            return link[1] + target.removeprefix("docs/")
        return link[0]

    return LINK.sub(rewritten, markdown)


def _roots() -> list[Path]:
    """Pages of the root that are pages of the site: SECURITY.md is for code hosts, and leads to docs/security.md."""
    return [page for page in sorted(ROOT.glob("*.md")) if not (ROOT / "docs" / page.name.lower()).exists()]


def _is_root(here: str) -> bool:
    return any(page.name.lower() == here for page in _roots())


def _outside(here: str, target: str) -> Path | None:
    """The file outside of docs that a link of a page leads to; None for other links, and where there is none."""
    if _elsewhere(target):
        return None
    path = ((ROOT if _is_root(here) else (ROOT / "docs" / here).parent) / target).resolve()
    inside = path.is_relative_to(ROOT) and not path.is_relative_to(ROOT / "docs")
    return path if inside and path.is_file() else None


def _copy(path: Path) -> str:
    return f"files/{path.relative_to(ROOT).as_posix()}"
