"""Rules with a third checkpoint: formulas in float64, ends, checks of all three sides, equal bits on all paths."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch

from plam_eval.errors import MergeError
from plam_eval.evaluation.sweep.config import SweepConfig
from plam_eval.evaluation.sweep.grid import cell_arguments, make_grid
from plam_eval.merging.arithmetic import TaskVectors
from plam_eval.merging.checkpoint import Checkpoint
from plam_eval.merging.merge import merge_in_place, merged_values, merged_weights
from plam_eval.merging.names import decoder_tensor
from plam_eval.merging.plan import plan_merge
from plam_eval.merging.report import MergeReport
from plam_eval.merging.rules import FUNCTIONS, generator_of
from plam_eval.provenance import provenance
from plam_eval.spec import PlateauSpec, SpecError, Weights, load_spec
from tests.helpers.llamas import bits, changed, load, write_llama

RULES = ("task_arithmetic", "from_ancestor", "ties", "dare_both", "dim3", "diga_ties", "diga_dare_both")
WEIGHTS = [(0.9, 0.3), (1.0, 0.0), (0.0, 1.0), (0.5, 0.5), (1.0, 1.0), (0.0, 0.0)]


class Trio(NamedTuple):
    mllm: Path
    base: Path
    ancestor: Path

    def spec(self, rule: str = "task_arithmetic", **changes: Any) -> PlateauSpec:
        content = {
            "base_model": str(self.base),
            "ancestor": str(self.ancestor),
            "layer_range": [1, 3],
            "modules": "all",
            "weights": {"model": 0.9, "base_model": 0.3},
            "rule": rule,
        }
        spec = load_spec({**content, **changes})
        assert spec is not None
        return spec


@pytest.fixture(scope="module")
def trio(tmp_path_factory: pytest.TempPathFactory) -> Trio:
    """An ancestor, and two models tuned from it, stored in bfloat16. Do not modify."""
    folder = tmp_path_factory.mktemp("trio")
    old = write_llama(folder / "ancestor", 0, dtype=torch.bfloat16)
    stored = {name: Checkpoint.open(old).tensor(name).float() for name in Checkpoint.open(old).names()}

    def tuned(tensors: dict[str, Any], config: dict[str, Any]) -> None:
        for name, tensor in tensors.items():
            tensors[name] = (stored[name] + 0.1 * tensor.float()).to(torch.bfloat16)

    mllm, base = (write_llama(folder / n, seed, dtype=torch.bfloat16, edit=tuned) for seed, n in ((1, "m"), (2, "b")))
    return Trio(mllm, base, old)


def operands(seed: int = 0) -> list[np.ndarray]:
    random = np.random.default_rng(seed)
    ancestor, one, two = (random.standard_normal((24, 40)).astype(np.float32) for _ in range(3))
    return [ancestor + 0.1 * one, ancestor + 0.1 * two, ancestor]


def apply(rule: str, sides: list[np.ndarray], weights: tuple[float, float], **more: float) -> np.ndarray:
    mllm, base, ancestor = (torch.from_numpy(side.copy()) for side in sides)
    given = Weights(model=weights[0], base_model=weights[1])
    result: torch.Tensor = FUNCTIONS[rule](mllm, base, given, generator_of(0, (0, "x")), ancestor=ancestor, **more)
    return result.numpy()


@pytest.mark.parametrize("weights", WEIGHTS)
def test_task_arithmetic_is_its_formula_and_the_weighted_sum_less_a_share_of_the_ancestor(
    weights: tuple[float, float],
) -> None:
    sides = operands()
    mllm, base, ancestor = (side.astype(np.float64) for side in sides)
    merged = apply("task_arithmetic", sides, weights)
    exact = ancestor + weights[0] * (mllm - ancestor) + weights[1] * (base - ancestor)
    assert np.abs(merged - exact).max() < 1e-5 * np.abs(exact).max() / 4
    assert np.array_equal(merged, apply("from_ancestor", sides, weights))
    for end, side in (((1.0, 0.0), 0), ((0.0, 1.0), 1), ((0.0, 0.0), 2)):
        if weights == end:
            assert np.array_equal(merged, sides[side]), "each source, bit by bit"
    same = [sides[0], sides[1], sides[1]]  # the base as its own ancestor: W_base + l (W_mllm - W_base)
    assert np.allclose(apply("task_arithmetic", same, weights), base + weights[0] * (mllm - base), atol=1e-6)


def test_ties_is_its_formula() -> None:
    sides = operands()
    mllm, base, ancestor = (side.astype(np.float64) for side in sides)
    for density, weights in ((0.2, (1.0, 1.0)), (0.6, (0.9, 0.3)), (1.0, (0.5, 0.7)), (0.0, (1.0, 1.0))):
        vectors = []
        for side, weight in ((mllm, weights[0]), (base, weights[1])):
            tau = side - ancestor
            place = np.abs(tau).ravel().argsort().argsort().reshape(tau.shape)
            vectors.append(np.where(place >= tau.size - int(density * tau.size), tau, 0) * weight)
        sign = np.where(vectors[0] + vectors[1] >= 0, 1, -1)
        agree = [np.sign(vector) == sign for vector in vectors]
        total = sum(np.where(kept, vector, 0) for kept, vector in zip(agree, vectors, strict=True))
        exact = ancestor + total / np.maximum(1, agree[0].astype(int) + agree[1])
        assert np.allclose(apply("ties", sides, weights, density=density), exact, atol=2e-6)


def test_ties_of_equal_weights_is_that_of_peft() -> None:
    utils = pytest.importorskip("peft.utils.merge_utils")
    sides = operands(1)
    vectors = [torch.from_numpy(side - sides[2]) for side in sides[:2]]
    for density, weights in ((0.2, (1.0, 1.0)), (0.7, (0.4, 0.4))):
        change = utils.ties(vectors, torch.tensor(weights), density)
        assert np.allclose(apply("ties", sides, weights, density=density), sides[2] + change.numpy(), atol=1e-6)


@pytest.mark.parametrize("rule", RULES)
def test_every_path_gives_the_same_bits(rule: str, trio: Trio) -> None:
    spec = trio.spec(rule)
    model = load(trio.mllm, torch.bfloat16)
    plain = bits(model)
    beside = merged_values(model, spec, checkpoint=trio.mllm)
    report = merge_in_place(model, spec, checkpoint=trio.mllm)
    merged = model.state_dict()
    assert changed(plain, model) == set(beside) and len(beside) == report.tensors
    assert all(torch.equal(merged[name], value) for name, value in beside.items())
    opened, reports = Checkpoint.open(trio.mllm), list[MergeReport]()
    weights = ((name, opened.tensor(name)) for name in reversed(opened.names()))
    stream = dict(merged_weights(weights, spec, None, torch.bfloat16, reports.append))
    by_key = {decoder_tensor(name): tensor for name, tensor in stream.items()}
    assert all(torch.equal(by_key[decoder_tensor(name)], merged[name]) for name in beside)
    assert reports[0].task_vectors == pytest.approx(report.task_vectors) and reports[0].bytes_read == report.bytes_read
    for name in sorted(beside)[:3]:
        sides = [Checkpoint.open(folder).tensor(name).float() for folder in trio]
        more = {**spec.parameters, "ancestor": sides.pop()}
        one = FUNCTIONS[rule](*sides, spec.weights, generator_of(0, decoder_tensor(name)), **more)
        assert torch.equal(merged[name], one.to(torch.bfloat16))
    before = bits(model)
    merge_in_place(model, trio.spec("weighted_sum"))
    assert changed(before, model)
    merge_in_place(model, spec)
    assert not changed(before, model)
    merge_in_place(model, None)
    assert not changed(plain, model)


def test_a_merge_that_fails_brings_the_one_before_back_from_three_checkpoints(
    trio: Trio, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def spoil(tensors: dict[str, Any], config: dict[str, Any]) -> None:
        tensors["model.layers.2.mlp.up_proj.weight"][0, 0] = float("nan")

    monkeypatch.setattr("tempfile.TemporaryFile", None)  # nothing has to be kept on disk
    damaged = write_llama(tmp_path / "nan", 5, dtype=torch.bfloat16, edit=spoil)
    model = load(trio.mllm, torch.bfloat16)
    merge_in_place(model, trio.spec("ties"), checkpoint=trio.mllm)
    before = bits(model)
    with pytest.raises(MergeError, match=r"model.layers.2.mlp.up_proj.weight of .*nan.* holds NaN or Inf"):
        merge_in_place(model, trio.spec(ancestor=str(damaged)))
    assert not changed(before, model)


def test_faults_of_all_three_sides_are_told_at_once(trio: Trio, tmp_path: Path) -> None:
    def wide(tensors: dict[str, Any], config: dict[str, Any]) -> None:
        tensors["model.layers.1.mlp.up_proj.weight"] = torch.zeros(3, 32)

    def lacking(tensors: dict[str, Any], config: dict[str, Any]) -> None:
        del tensors["model.layers.2.self_attn.q_proj.weight"]

    broken = Trio(trio.mllm, write_llama(tmp_path / "b", 1, edit=lacking), write_llama(tmp_path / "a", 2, edit=wide))
    with pytest.raises(MergeError) as refused:
        plan_merge(broken.spec(), model=Checkpoint.open(broken.mllm), base=Checkpoint.open(broken.base))
    assert "[3, 32]" in str(refused.value) and "layer 2, self_attn.q_proj.weight: missing" in str(refused.value)
    lost = trio.spec(base_model=str(tmp_path / "no base"), ancestor=str(tmp_path / "nowhere"))
    both = r"(?s)base=.*no base: no such folder.*ancestor=.*nowhere: no such folder"
    for merge in (merge_in_place, merged_values):
        with pytest.raises(MergeError, match=both):
            merge(load(trio.mllm), lost, checkpoint=trio.mllm)
    with pytest.raises(MergeError, match=both):
        merged_weights([], lost, None, None)
    with pytest.raises(MergeError) as refused:
        merged_weights([], broken.spec(), None, None)
    assert "layer 2, self_attn.q_proj.weight: missing" in str(refused.value)
    assert plan_merge(
        trio.spec("weighted_sum", ancestor=str(tmp_path / "nowhere")),
        model=Checkpoint.open(trio.mllm),
        base=Checkpoint.open(trio.base),
    ), "what a rule does not take is not opened"


def test_the_report_says_how_the_three_lie(trio: Trio, tmp_path: Path) -> None:
    model = load(trio.mllm, torch.bfloat16)
    report = merge_in_place(model, trio.spec(), checkpoint=trio.mllm)
    names = [name for name in Checkpoint.open(trio.mllm).names() if "layers.1." in name or "layers.2." in name]
    names = [name for name in names if "proj" in name]
    flat = [torch.cat([Checkpoint.open(side).tensor(n).double().flatten() for n in names]) for side in trio]
    mine, theirs = flat[0] - flat[2], flat[1] - flat[2]
    assert report.task_vectors == pytest.approx(
        {
            "model": float(mine.norm()),
            "base_model": float(theirs.norm()),
            "difference": float((flat[0] - flat[1]).norm()),
            "cosine": float(mine @ theirs / mine.norm() / theirs.norm()),
        },
        rel=1e-4,
        abs=1e-4,
    )
    assert report.warnings == () and "from the ancestor" in str(report)
    assert MergeReport.from_dict(json.loads(json.dumps(report.to_dict()))) == report
    stranger = write_llama(tmp_path / "stranger", 9, dtype=torch.bfloat16)
    warned = merge_in_place(model, trio.spec(ancestor=str(stranger)))
    assert any("is probably not the checkpoint that both were tuned from" in warning for warning in warned.warnings)


def test_task_vectors_by_hand() -> None:
    vectors = TaskVectors(9.0, 16.0, 0.0) + TaskVectors(0.0, 0.0, 0.0)
    assert vectors.to_dict() == {"model": 3, "base_model": 4, "difference": 5, "cosine": 0} and not vectors.warning()
    assert TaskVectors(9.0, 1.0, 3.0).to_dict()["difference"] == 2 and TaskVectors(9.0, 1.0, 3.0).warning()
    assert TaskVectors().to_dict()["cosine"] == 0


# Specs and who reads them


def test_a_rule_that_needs_an_ancestor_says_so(trio: Trio) -> None:
    for rule in RULES:
        with pytest.raises(SpecError, match=f"ancestor: missing; {rule} needs the checkpoint that MLLM and base were"):
            trio.spec(rule, ancestor=None)
    with pytest.raises(SpecError, match="put it into quotes"):
        trio.spec(ancestor=3)
    overridden = load_spec(trio.spec("weighted_sum", ancestor=None), {"rule": "ties", "ancestor": "org/old"})
    assert overridden is not None and overridden.ancestor == "org/old"


def test_digests(trio: Trio) -> None:
    one = trio.spec()
    assert load_spec(one.to_dict()) == one
    assert one.digest() == trio.spec("from_ancestor").digest() != trio.spec("weighted_sum").digest()
    assert one.digest() != trio.spec(ancestor="org/other").digest() and one.recipe(2) != trio.spec("ties").recipe(2)
    unread = trio.spec("weighted_sum"), trio.spec("weighted_sum", ancestor=None)
    assert unread[0].digest() == unread[1].digest(), "an ancestor that is not read changes nothing"
    halves = {"model": 0.7, "base_model": 0.3}
    assert trio.spec(weights=halves).digest() == trio.spec("weighted_sum", weights=halves).digest()
    assert trio.spec(weights={"model": 1, "base_model": 0}).is_plain
    assert not trio.spec("ties", weights={"model": 1, "base_model": 0}).is_plain


def test_a_sweep_runs_the_control_where_an_ancestor_is_given(trio: Trio) -> None:
    arguments = f"pretrained={trio.mllm},base={trio.base},layers=1:3"

    def made(**changes: Any) -> Any:
        given = {"model": "plam_hf", "tasks": "mme", "model_args": f"{arguments},ancestor={trio.ancestor}", **changes}
        return make_grid(SweepConfig.load(**given), 3)

    (beside,) = made().controls.values()
    assert list(beside) == ["self_scale", "normalized", "noise", "from_ancestor"]
    (beside,) = made(model_args=arguments).controls.values()
    assert "from_ancestor" not in beside
    (beside,) = made(controls="none").controls.values()
    assert not beside
    with pytest.raises(SpecError, match="from_ancestor needs the checkpoint"):
        made(model_args=arguments, controls="from_ancestor")
    config = SweepConfig.load(model="plam_hf", tasks="mme", model_args=arguments)
    cell = next(cell for cell in made().cells if cell.spec and cell.spec.rule == "from_ancestor")
    words = dict(word.split("=") for word in cell_arguments(config, cell).split(","))
    assert words["ancestor"] == str(trio.ancestor) and words["rule"] == "from_ancestor"


def test_provenance_tells_the_ancestor(trio: Trio) -> None:
    opened = Checkpoint.open(trio.ancestor)
    record = provenance(trio.spec(), ancestor=(opened, opened.identity()))
    assert record["ancestor"]["name"] == opened.name and "ancestor" not in provenance(trio.spec())
