"""What goes out with an export: scores that belong to it, and the push; and the memory that all of it takes."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from plam_eval import export
from plam_eval.errors import ExportError
from plam_eval.merging.checkpoint import Checkpoint
from plam_eval.merging.export_record import FILE, read_export_record
from plam_eval.provenance import describe_checkpoint
from plam_eval.publishing.upload import UploadError
from plam_eval.spec import load_spec
from tests.helpers.exports import run_of
from tests.helpers.hub import Hub, serving
from tests.helpers.llamas import Pair, write_llama
from tests.helpers.paths import ROOT
from tests.helpers.run_folders import changed, documents

LAYERS = "1:3"
TOKEN = "hf_aVerySecretToken"
PLAIN = documents(["pope"], 40, right=20)
BETTER = changed(PLAIN, {("pope", n): ("yes", 1.0) for n in range(20, 30)})


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    folder = tmp_path_factory.mktemp("pair")
    return Pair(write_llama(folder / "mllm", 1), write_llama(folder / "base", 2))


def runs(pair: Pair, folder: Path, **overrides: Any) -> list[Path]:
    """A plain run of the source, and one of a merge of it."""
    spec = load_spec(None, {"base": str(pair.base), "layers": LAYERS, **overrides})
    model, base = (describe_checkpoint(Checkpoint.open(one)) for one in (pair.mllm, pair.base))
    merged = run_of(folder / "merged", BETTER, spec, model, base=base)
    return [run_of(folder / "plain", PLAIN, None, model), merged]


def test_results_of_this_merge_go_onto_the_card(pair: Pair, tmp_path: Path) -> None:
    folders = runs(pair, tmp_path / "runs")
    done = export(pair.mllm, None, tmp_path / "out", base=pair.base, layers=LAYERS, results=folders)
    card = (tmp_path / "out" / "README.md").read_text()
    assert "## Results" in card and "0.750" in card and "+0.250" in card
    assert all(f"--results {folder}" in done.record.command for folder in folders)


def test_results_of_another_merge_are_refused_before_a_byte(pair: Pair, tmp_path: Path) -> None:
    folders = runs(pair, tmp_path / "runs", base_weight=0.5)
    with pytest.raises(ExportError, match="is of another merge"):
        export(pair.mllm, None, tmp_path / "out", base=pair.base, layers=LAYERS, results=folders)
    assert not (tmp_path / "out").exists()


def test_results_that_are_not_there_are_told_with_every_other_problem(pair: Pair, tmp_path: Path) -> None:
    (tmp_path / "out").write_text("mine")
    with pytest.raises(ExportError) as caught:
        export(pair.mllm, None, tmp_path / "out", base=pair.base, layers=LAYERS, results=tmp_path / "none")
    assert "none: no such folder" in str(caught.value) and "found a file where a folder is to be" in str(caught.value)


def test_a_run_of_the_export_stands_on_its_next_card(pair: Pair, tmp_path: Path) -> None:
    export(pair.mllm, None, tmp_path / "out", base=pair.base, layers=LAYERS)
    run = run_of(tmp_path / "run", BETTER, None, describe_checkpoint(Checkpoint.open(tmp_path / "out")))
    export(pair.mllm, None, tmp_path / "out", base=pair.base, layers=LAYERS, results=run, overwrite=True)
    assert "the exported files" in (tmp_path / "out" / "README.md").read_text()


# ---- the hub ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    (tmp_path / "hub").mkdir()
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    with serving(tmp_path / "hub", tmp_path / "cache", monkeypatch) as served:
        served.user[TOKEN] = {"name": "me", "auth": {"accessToken": {"role": "write"}}}
        yield served


@pytest.mark.parametrize("public", [False, True])
def test_an_export_is_pushed(hub: Hub, pair: Pair, tmp_path: Path, public: bool) -> None:
    given: dict[str, Any] = {"base": pair.base, "layers": LAYERS, "push_to_hub": "me/merged", "public": public}
    done = export(pair.mllm, None, tmp_path / "out", **given)
    assert done.address == f"{hub.url}/me/merged" and ("me/merged" in hub.private) != public
    there = tmp_path / "hub" / "me" / "merged"
    for name in (*done.record.files, "README.md"):
        assert (there / name).read_bytes() == (tmp_path / "out" / name).read_bytes()
    assert str(tmp_path) not in (there / FILE).read_text() + (there / "README.md").read_text()
    assert read_export_record(there).files == done.record.files
    assert "# me/merged" in (there / "README.md").read_text()


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"push_to_hub": "merged"}, "no name of a repository"),
        ({"push_to_hub": "you/merged"}, "logged in as me"),
        ({"public": True}, "--push-to-hub"),
    ],
)
def test_what_cannot_be_pushed_is_said_before_a_byte(
    hub: Hub, pair: Pair, tmp_path: Path, given: dict[str, Any], said: str
) -> None:
    with pytest.raises(ExportError, match=said) as caught:
        export(pair.mllm, None, tmp_path / "out", base=pair.base, layers=LAYERS, **given)
    assert TOKEN not in str(caught.value) and not (tmp_path / "out").exists()


def test_a_push_that_fails_leaves_the_export_and_says_so(
    hub: Hub, pair: Pair, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from plam_eval.publishing.checkpoint import export as checkpoint

    def fail(folder: Path, repository: str, *, public: bool) -> str:
        raise UploadError("the hub is gone")

    monkeypatch.setattr(checkpoint, "push_export", fail)
    with pytest.raises(UploadError, match=r"(?s)the hub is gone.*export itself is complete.*--overwrite"):
        export(pair.mllm, None, tmp_path / "out", base=pair.base, layers=LAYERS, push_to_hub="me/merged")
    assert (tmp_path / "out" / FILE).is_file()


# ---- memory ----------------------------------------------------------------------------------------------------------

PEAK = """
import sys, torch
from pathlib import Path
from plam_eval import export
from plam_eval.merging.checkpoint import Checkpoint
from plam_eval.publishing.checkpoint.weight_writer import plan_header

model, base, out = map(Path, sys.argv[1:])


def resident(field):
    fields = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(fields[field].split()[0]) * 1024


export(model, None, out / "small", base=base, layers="1:3")  # imports, and what a small one takes
checkpoint = Checkpoint.open(model)
tensors = {name: checkpoint.tensor(name).clone() for name in checkpoint.names()}
del checkpoint
large = {"visual.large": (torch.float32, (256 << 18,))}  # 256 MB of nothing: the file is sparse
header, places = plan_header({**{name: (t.dtype, tuple(t.shape)) for name, t in tensors.items()}, **large})
with (model / "model.safetensors").open("r+b") as file:
    file.write(header)
    file.truncate(max(place.end for place in places.values()))
    for name, tensor in tensors.items():
        file.seek(places[name].start)
        file.write(tensor.numpy().tobytes())
before = resident("VmRSS")
Path("/proc/self/clear_refs").write_text("5")  # VmHWM begins again
export(model, None, out / "large", base=base, layers="1:3")
print(resident("VmHWM") - before)
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="the peak is read from Linux's /proc")
def test_memory_does_not_grow_with_the_files(tmp_path: Path) -> None:
    model, base = write_llama(tmp_path / "mllm", 1), write_llama(tmp_path / "base", 2)
    command = [sys.executable, "-c", PEAK, *map(str, (model, base, tmp_path))]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) < 48 << 20  # blocks of 8 MB, buffers of a merge, and nothing of the 256 MB
    (tmp_path / "large" / "model.safetensors").unlink()
