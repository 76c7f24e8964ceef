"""`plam export` on the command line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from plam_eval.merging.export_record import read_export_record
from tests.helpers.commands import Call
from tests.helpers.llamas import Pair, write_llama


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    folder = tmp_path_factory.mktemp("pair")
    return Pair(write_llama(folder / "mllm", 1), write_llama(folder / "base", 2))


def test_what_was_written_is_said(plam: Call, pair: Pair, tmp_path: Path) -> None:
    words = ["export", "--model", pair.mllm, "--base", pair.base, "--layers", "1:3", "--output", tmp_path / "out"]
    code, out, err = plam(*words)
    assert code == 0, err
    for said in ("Merge", "16 merged", "1 copied, 1 merged", "vLLM loads float32 in a half precision"):
        assert said in out, said
    code, out, err = plam(*words)
    assert code == 1 and "--overwrite" in err and not out
    code, out, err = plam(*words, "--overwrite", "--json")
    assert code == 0, err
    written = json.loads(out)
    assert written["folder"] == str(tmp_path / "out") and written["address"] is None
    assert written["record"] == read_export_record(tmp_path / "out").to_dict()
    code, out, err = plam(*words, "--overwrite", "--quiet")
    assert (code, out, err) == (0, "", "")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--base-weight", "0,3"], "a decimal fraction has a point"),
        (["--layers", "1:30"], "[1, 30) does not fit"),
        (["--results", "/nowhere/at/all"], "no such folder"),
        (["--public"], "--push-to-hub"),
    ],
)
def test_a_mistake_is_told_and_nothing_is_written(
    plam: Call, pair: Pair, tmp_path: Path, words: list[str], said: str
) -> None:
    given = {"--model": pair.mllm, "--base": pair.base, "--layers": "1:3", "--output": tmp_path / "out"}
    before = [word for option in given.items() if option[0] not in words for word in option]
    code, out, err = plam("export", *before, *words)
    assert code == 1 and said in err and not out, err
    assert not list(tmp_path.iterdir())


def test_the_model_is_the_specs_own_if_none_is_named(plam: Call, pair: Pair, tmp_path: Path) -> None:
    code, _, err = plam("export", "--base", pair.base, "--layers", "1:3", "--output", tmp_path / "out")
    assert code == 1 and "names no model" in err
    (tmp_path / "own.yaml").write_text(
        f"model: {pair.mllm}\nbase_model: {pair.base}\nlayer_range: [1, 3]\nmodules: [q_proj]\n"
        "weights: {model: 0.9, base_model: 0.3}\n"
    )
    code, _, err = plam("export", "--plateau", tmp_path / "own.yaml", "--output", tmp_path / "out")
    assert code == 0 and read_export_record(tmp_path / "out").merge["tensors"] == 4, err
