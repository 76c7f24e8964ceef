"""A planted effect, and none: tensors as they are described, and what `plam sweep` says of them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from plam_eval.demo.damaged import BASES, LAYERS, MODULES, DamagedPair, write_damaged
from plam_eval.errors import FolderError, InputError
from plam_eval.evaluation.sweep.findings import read_findings
from plam_eval.merging.names import Key, decoder_tensor
from tests.helpers.paths import PAIR
from tests.helpers.sweeps import plam

DAMAGED = {(layer, f"self_attn.{module}.weight") for layer in LAYERS for module in MODULES}


def tensors(folder: Path) -> dict[str, Tensor]:
    return load_file(folder / "model.safetensors")


def decoder(folder: Path) -> dict[Key, Tensor]:
    return {key: tensor for name, tensor in tensors(folder).items() if (key := decoder_tensor(name)) is not None}


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, DamagedPair]:
    """A pair with each base, damaged by 1.5 times the norm. Do not modify."""
    folder = tmp_path_factory.mktemp("damaged")
    return {base: write_damaged(folder / base, 1.5, base, seed=3) for base in BASES}


def test_the_damage_has_its_size_and_nothing_else_is_touched(pairs: dict[str, DamagedPair]) -> None:
    before, after = tensors(PAIR / "mllm"), tensors(pairs["own"].mllm)
    assert before.keys() == after.keys()
    for name, tensor in before.items():
        if decoder_tensor(name) in DAMAGED:
            noise = after[name] - tensor
            assert noise.norm() / tensor.norm() == pytest.approx(1.5, rel=1e-4)
            assert abs(torch.sum(noise * tensor)) < 0.05 * noise.norm() * tensor.norm()
        else:
            assert torch.equal(after[name], tensor), name
    copied = {path.name: path.read_bytes() for path in (PAIR / "mllm").iterdir() if path.suffix != ".safetensors"}
    assert copied == {name: (pairs["own"].mllm / name).read_bytes() for name in copied}


def test_the_damage_is_of_its_seed_alone(pairs: dict[str, DamagedPair], tmp_path: Path) -> None:
    one = (pairs["own"].mllm / "model.safetensors").read_bytes()
    assert all((pair.mllm / "model.safetensors").read_bytes() == one for pair in pairs.values())
    again = write_damaged(tmp_path / "again", 1.5, "own", seed=3)
    other = write_damaged(tmp_path / "other", 1.5, "own", seed=4)
    assert (again.mllm / "model.safetensors").read_bytes() == one
    key = min(DAMAGED)
    one_noise, other_noise = (decoder(pair.mllm)[key] - decoder(PAIR / "mllm")[key] for pair in (again, other))
    assert abs(torch.sum(one_noise * other_noise)) < 0.05 * one_noise.norm() * other_noise.norm()


def test_the_undamaged_base_halves_the_noise_at_equal_weights(pairs: dict[str, DamagedPair], tmp_path: Path) -> None:
    half = decoder(write_damaged(tmp_path / "half", 0.75, seed=3).mllm)
    mllm, base = decoder(pairs["undamaged"].mllm), decoder(pairs["undamaged"].base)
    for key in DAMAGED:
        torch.testing.assert_close(0.5 * mllm[key] + 0.5 * base[key], half[key], atol=1e-6, rtol=1e-5)


def test_the_other_bases_know_nothing_of_the_undamaged_mllm(pairs: dict[str, DamagedPair]) -> None:
    own, mllm = decoder(PAIR / "base"), decoder(pairs["own"].mllm)
    assert all(torch.equal(decoder(pairs["own"].base)[key], tensor) for key, tensor in own.items())
    assert all(torch.equal(decoder(pairs["itself"].base)[key], mllm[key]) for key in own)
    undamaged, noisy = decoder(PAIR / "mllm"), decoder(pairs["noisy"].base)
    for key in own:
        added = noisy[key] - mllm[key]
        if key[1].split(".")[-2] in MODULES:
            assert added.norm() == pytest.approx(float((own[key] - mllm[key]).norm()), rel=1e-4)
            towards = undamaged[key] - mllm[key]
            assert abs(torch.sum(added * towards)) <= 0.05 * added.norm() * towards.norm()
        else:
            assert not added.any()


def test_a_scale_multiplies_what_is_damaged(tmp_path: Path) -> None:
    scaled, plain = decoder(write_damaged(tmp_path / "pair", 0, scale=3).mllm), decoder(PAIR / "mllm")
    assert all(torch.equal(scaled[key], 3 * tensor if key in DAMAGED else tensor) for key, tensor in plain.items())


def test_what_cannot_be_written_is_refused_at_once(tmp_path: Path) -> None:
    with pytest.raises(InputError) as refused:
        write_damaged(tmp_path / "new", float("nan"), "noissy", seed=-1, scale=0)
    for words in ("damage is nan", "did you mean noisy?", "seed is -1", "scale is 0"):
        assert words in str(refused.value)
    assert not (tmp_path / "new").exists()
    (tmp_path / "file").touch()
    with pytest.raises(FolderError, match="holds something"):
        write_damaged(tmp_path, 1)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("base", "damage", "scale", "weights", "against_plain", "against_scale"),
    [
        ("undamaged", 3, 1, "0.5+0.5,0.9+0.3", "better", "better"),
        # The scale is what repairs: without its control the base would be praised for it.
        ("itself", 0, 3, "0.2+0.2", "better", None),
        ("noisy", 0, 3, "0.2+0.2", "better", None),
    ],
    ids=["repairs", "scale-repairs-itself", "scale-repairs-noise"],
)
def test_a_sweep_sees_what_is_there(
    base: str,
    damage: float,
    scale: float,
    weights: str,
    against_plain: str | None,
    against_scale: str | None,
    in_suite: Path,
    tmp_path: Path,
) -> None:
    pair = write_damaged(tmp_path / "pair", damage, base, seed=1, scale=scale)
    arguments = f"pretrained={pair.mllm},base={pair.base},layers=6:8,device=cpu"
    words = ["--tasks", "mme,gqa,pope", "--limit", "30", "--weights", weights, "--controls", "self_scale"]
    select = ["--select", "10"] if "," in weights else []
    output = ["--together", "9", "--output", str(tmp_path / "sweep")]
    plam("sweep", "--model", "plam_llava", "--model_args", arguments, *words, *select, *output)
    conclusion = read_findings(tmp_path / "sweep").conclusion
    assert conclusion is not None and conclusion.scale is not None
    said = (conclusion.against_plain, conclusion.against_scale)
    assert said == (against_plain, against_scale), conclusion.text()
    assert conclusion.positive is (base == "undamaged")
