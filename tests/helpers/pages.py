"""A report page as a reader of its source has it."""

from __future__ import annotations

from html.parser import HTMLParser
from pathlib import Path

VOID = {"meta", "img", "br", "wbr"}


class Page(HTMLParser):
    """What stands on a page: its text, by tag what it refers to, and its headings. Raises for tags that do not pair."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.source = path.read_text(encoding="utf-8")
        self.words: list[str] = []
        self.references: list[tuple[str, str, str]] = []
        self.tags: list[str] = []
        self.headings: list[str] = []
        self.drawings: list[dict[str, str]] = []
        self.styled: list[str] = []
        self.ids: list[str] = []
        self._open: list[str] = []
        self.feed(self.source)
        self.close()
        assert not self._open
        self.text = " ".join(" ".join(self.words).split())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        given = {name: value or "" for name, value in attrs}
        if tag == "svg":
            self.drawings.append(given)
        if "style" in given or any(name.startswith("on") for name in given):
            self.styled.append(tag)
        self.ids += [given["id"]] if "id" in given else []
        for name, value in attrs:
            if name in ("src", "href", "srcset", "action", "data"):
                self.references.append((tag, name, value or ""))
        if tag not in VOID:
            self._open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        if not {"style", "script"} & set(self._open):
            self.words.append(data)
        if "h2" in self._open:
            self.headings.append(data)

    @property
    def images(self) -> list[str]:
        return [value for tag, _, value in self.references if tag == "img"]
