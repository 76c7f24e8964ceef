"""What licences are read from: the front matter of a source's own README, and no other file's text."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from huggingface_hub import constants

from plam_eval.publishing.card.licences import NOT_STATED, Licence, read_licence
from tests.helpers.hub import COMMIT, serving


def folder_of(folder: Path, readme: str | None, **files: str) -> Any:
    folder.mkdir()
    if readme is not None:
        (folder / "README.md").write_text(readme)
    for name, content in files.items():
        (folder / name).write_text(content)
    return SimpleNamespace(location=str(folder), recorded_commit=None, model_name=folder.name)


@pytest.mark.parametrize(
    ("readme", "names"),
    [
        ("---\nlicense: llama2\ntags: [x]\n---\n# A\n", ("llama2",)),
        ("\ufeff---\r\nlicense: [mit, apache-2.0]\r\n---\r\n", ("mit", "apache-2.0")),
        ("# A\n\n---\nlicense: mit\n---\n", ()),
        ("---\ntags: [x]\n---\nlicense: mit\n", ()),
        ("---\n- a list\n---\n", ()),
        ("no front matter", ()),
        (None, ()),
    ],
)
def test_the_front_matter_says_it(tmp_path: Path, readme: str | None, names: tuple[str, ...]) -> None:
    read = read_licence(folder_of(tmp_path / "m", readme, LICENSE="MIT License"))
    assert read == Licence(names, file="LICENSE")
    assert (NOT_STATED in str(read)) == (not names)


def test_another_licence_has_its_name_and_link(tmp_path: Path) -> None:
    readme = "---\nlicense: other\nlicense_name: own\nlicense_link: LICENSE\n---\n"
    assert str(read_licence(folder_of(tmp_path / "m", readme))) == "other (own, LICENSE)"


@pytest.mark.parametrize(
    ("readme", "said"),
    [
        ("---\nlicense: &a mit\n---\n", "anchor"),
        ("---\nlicense: !!python/object/apply:os.system ['x']\n---\n", "tag"),
        ("---\nlicense: mit\n---\n" + "x" * (1 << 20), "larger than"),
    ],
)
def test_a_card_that_cannot_be_read_states_nothing(tmp_path: Path, readme: str, said: str) -> None:
    read = read_licence(folder_of(tmp_path / "m", readme))
    assert read.names == () and said in read.unread and NOT_STATED in str(read)


def test_a_link_out_of_the_folder_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("---\nlicense: mine\n---\n")
    checkpoint = folder_of(tmp_path / "m", None)
    (tmp_path / "m" / "README.md").symlink_to(tmp_path / "secret")
    read = read_licence(checkpoint)
    assert read.names == () and "expected a file inside" in read.unread


def test_of_the_hub_it_is_that_of_the_commit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    repository = tmp_path / "hub" / "org" / "base"
    repository.mkdir(parents=True)
    (repository / "README.md").write_text("---\nlicense: gemma\n---\n")
    source = SimpleNamespace(location="org/base", model_name="org/base", recorded_commit=COMMIT)
    with serving(tmp_path / "hub", tmp_path / "cache", monkeypatch):
        assert read_licence(source).names == ("gemma",)  # type: ignore[arg-type]
        missing = SimpleNamespace(location="org/none", model_name="org/none", recorded_commit=None)
        read = read_licence(missing)  # type: ignore[arg-type]
        assert read.names == () and "no such repository" in read.unread
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
        assert read_licence(source).names == ("gemma",), "it is cached"  # type: ignore[arg-type]
        assert "HF_HUB_OFFLINE is set" in read_licence(missing).unread  # type: ignore[arg-type]
