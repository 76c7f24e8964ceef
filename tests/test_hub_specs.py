"""Plateau specs on the hub: how they are named, what is looked at first, what is recorded, and what is refused."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from plam_eval.hub import HUB_FILE, HubSpec, RemoteFile, name_problem, revision_problem
from plam_eval.serving.gate import Gate
from plam_eval.spec import SpecError, load_spec
from tests.helpers.hub import COMMIT, Hub, serving

SPEC = "base_model: org/base@v1\nlayer_range: [2, 4]\nmodules: qkvo\nweights: {model: 0.9, base_model: 0.3}\n"
LATER = "b" * 40


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    repository = tmp_path / "hub" / "org" / "specs"
    (repository / "more").mkdir(parents=True)
    (repository / HUB_FILE).write_text(SPEC + "source: a scan\n")
    (repository / "more" / "late.yaml").write_text(SPEC.replace("[2, 4]", "[3, 4]"))
    (repository / "config.json").write_text("{}")
    monkeypatch.chdir(tmp_path)
    with serving(tmp_path / "hub", tmp_path / "cache", monkeypatch) as hub:
        yield hub


def refused(plateau: Any) -> str:
    with pytest.raises(SpecError) as error:
        load_spec(plateau)
    return str(error.value)


def test_a_repository_s_spec_and_its_commit(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    spec = load_spec("org/specs", {"base_weight": 0.2})
    assert spec is not None and spec.layer_range == (2, 4) and spec.base_model == "org/base@v1"
    assert spec.source == f"a scan (from org/specs@{COMMIT}:plateau.yaml) (overridden: base_weight=0.2)"
    late = load_spec("org/specs@v1:more/late.yaml")
    assert late is not None and late.layer_range == (3, 4)
    assert late.source == f"from org/specs@{COMMIT}:more/late.yaml"

    # What the source says is itself a name of that very file, whatever the branch holds by then.
    moved = tmp_path / "moved"
    moved.mkdir()
    (moved / HUB_FILE).write_text(SPEC.replace("[2, 4]", "[0, 4]"))
    hub.publish("org/specs", moved, LATER, "main")
    now, then = load_spec("org/specs"), load_spec(f"org/specs@{COMMIT}:plateau.yaml")
    assert now is not None and then is not None and (now.layers[0], then.layers[0]) == (0, 2)

    hub.requests.clear()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert load_spec("org/specs") == now and not hub.requests, "offline the cache is used"
    assert "late.yaml is not in the local cache, and HF_HUB_OFFLINE is set" in refused("org/specs:late.yaml")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    hub.refusal = (503, "", "maintenance")
    assert load_spec("org/specs") == now, "as it is while the hub is out of reach"


def test_files_and_packaged_names_come_first(hub: Hub, tmp_path: Path) -> None:
    (tmp_path / "org").mkdir()
    (tmp_path / "org" / "specs").write_text(SPEC.replace("[2, 4]", "[1, 2]"))
    spec = load_spec("org/specs")
    assert spec is not None and spec.layers[0] == 1 and not hub.requests
    for name in ("scan/plateau.yaml", "no-such-spec", "./org/other", "/org/other", "a/b/c", "org/x.yml"):
        assert HubSpec.read(name) is None, name
        assert "on the hub" not in refused(name)
    assert "on the hub" not in refused(Path("org/elsewhere")) and not hub.requests, "a path is a file's"


def test_what_a_repository_lacks_is_told(hub: Hub, tmp_path: Path) -> None:
    said = refused("org/specs:missing.yaml")
    assert "org/specs has no missing.yaml; it has more/late.yaml, plateau.yaml. Write org/specs:more/late.yaml" in said
    (tmp_path / "hub" / "org" / "specs" / HUB_FILE).unlink()
    assert "org/specs@v1 has no plateau.yaml; it has more/late.yaml. Write org/specs@v1:more" in refused("org/specs@v1")
    (tmp_path / "hub" / "org" / "empty").mkdir()
    assert "no other .yaml file" in refused("org/empty")
    said = refused("org/none")
    assert "no packaged spec of that name, and no file none in" in said and "no such repository" in said
    assert "has no revision 'v9'" in refused("org/specs@v9")


def test_nothing_large_and_no_code_is_read(hub: Hub, tmp_path: Path) -> None:
    file = tmp_path / "hub" / "org" / "specs" / HUB_FILE
    file.write_text(SPEC + "# " + "x" * (1 << 20))
    assert "has 1.0 MB, expected at most 1048576 bytes" in refused("org/specs")
    assert not list((tmp_path / "cache").rglob(HUB_FILE)), "and it was not downloaded"
    file.write_text("base_model: !!python/object/apply:os.system ['touch ran']\n")
    assert "the tag" in refused("org/specs") and not (tmp_path / "ran").exists()
    file.write_text("- a list\n")
    hub.publish("org/specs", file.parent, LATER, "main")
    assert "found a list" in refused("org/specs")


@pytest.mark.parametrize(
    "file", ["../x.yaml", "a/../x.yaml", "/x.yaml", "a//x.yaml", "x.json", "x.yaml/", "", "ä.yaml"]
)
def test_names_of_files_that_lead_nowhere(hub: Hub, file: str) -> None:
    assert "expected a YAML file of the repository" in refused(f"org/specs:{file}")
    assert not hub.requests


@pytest.mark.parametrize(
    "revision", ["", "..", "a/../b", "-x", "a b", "a\nb", "a/.b", "a.lock", "x" * 201, "a:b", 7, True]
)
def test_revisions_that_are_none(revision: Any) -> None:
    assert revision_problem(revision)
    if isinstance(revision, str):
        assert name_problem(f"org/base@{revision}")
        with pytest.raises(SpecError, match=r"base_model.*behind the @"):
            load_spec(None, {"base": f"org/base@{revision}", "layers": "0:1"})


@pytest.mark.parametrize("revision", ["main", "v1.0", "refs/pr/3", COMMIT, "a+b=c", "2024-01-01", "_x"])
def test_revisions(revision: str) -> None:
    assert revision_problem(revision) is None
    spec = load_spec(None, {"base": f"org/base@{revision}", "layers": "0:1"})
    other = load_spec(None, {"base": "org/base", "layers": "0:1"})
    assert spec is not None and other is not None and spec.digest() != other.digest()


def test_a_folder_with_an_at_in_its_name_is_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "org" / "base@a b").mkdir(parents=True)
    assert name_problem("org/base@a b") is None and name_problem("org/other@a b")
    assert load_spec(None, {"base": "org/base@a b", "layers": "0:1"}) is not None


def test_a_request_names_no_spec_of_the_hub_and_no_other_revision(hub: Hub) -> None:
    gate = Gate.of({"PLAM_BASES": "org/base@v1"}, "org/other")
    with pytest.raises(ValueError, match="no packaged spec of that name"):
        gate.spec("org/specs", {})
    assert not hub.requests
    assert gate.allows("org/base@v1") and gate.allows("org/other")
    for base in ("org/base", "org/base@v2", "org/other@refs/pr/1"):
        assert not gate.allows(base), base


def test_parts_of_a_file(hub: Hub, tmp_path: Path) -> None:
    content = bytes(range(256)) * 1024
    (tmp_path / "hub" / "org" / "specs" / "file").write_bytes(content)
    file = RemoteFile("org/specs", "file", None, len(content))
    file.seek(-22, 2)
    assert file.read() == content[-22:] and file.tell() == len(content)
    file.seek(-1000, 1)
    assert file.read(10) == content[-1000:-990]
    file.seek(0)
    assert file.read(100_000) == content[:100_000] and file.read(0) == b""
    assert [count for method, _, count in hub.requests if method == "GET"] == [65536, 100_000]
