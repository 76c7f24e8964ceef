"""The arithmetic, tensor by tensor."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from torch import Tensor

import plam_eval
from plam_eval.errors import InputError
from plam_eval.merging.rules import FUNCTIONS, generator_of, register_rule
from plam_eval.rules import RULES, Coefficients, Rule, control_names, register
from plam_eval.spec import SpecError, Weights, load_spec

floats = st.floats(-1e4, 1e4, width=32)
pairs = hnp.array_shapes(max_dims=2, max_side=6).flatmap(
    lambda shape: st.tuples(*[hnp.arrays(np.float32, shape, elements=floats)] * 2)
)
coefficients = st.integers(-2000, 2000).map(lambda thousandths: thousandths / 1000)


def apply(rule: str, mllm: np.ndarray, base: np.ndarray, a: float, b: float, seed: int = 0) -> Tensor:
    operands = torch.from_numpy(mllm.copy()), torch.from_numpy(base.copy())
    return FUNCTIONS[rule](
        *operands, Weights(model=a, base_model=b), generator_of(seed, (3, "self_attn.q_proj.weight"))
    )


def same_bits(one: Tensor, other: np.ndarray) -> bool:
    return one.numpy().tobytes() == other.tobytes()


def near(value: Tensor, exact: np.ndarray, scale: np.ndarray) -> bool:
    """Within a few float32 roundings of the largest intermediate."""
    return bool(np.all(np.abs(value.numpy() - exact) <= 4 * 2.0**-24 * scale + 1e-44))


@given(pairs, coefficients, coefficients)
@settings(deadline=None, max_examples=50)
def test_rules_against_float64(arrays: tuple[np.ndarray, np.ndarray], a: float, b: float) -> None:
    mllm, base = arrays
    wide, wide_base = mllm.astype(np.float64), base.astype(np.float64)
    scale = np.abs(a * wide) + np.abs(b * wide_base)
    assert near(apply("weighted_sum", mllm, base, a, b), a * wide + b * wide_base, scale)
    assert near(apply("self_scale", mllm, base, a, b), (a + b) * wide, np.abs((a + b) * wide))
    if abs(a + b) > 0.01:
        exact = (a * wide + b * wide_base) / (a + b)
        assert near(apply("normalized", mllm, base, a, b), exact, scale / abs(a + b))


@given(pairs)
@settings(deadline=None, max_examples=50)
def test_unit_weights_give_a_source_bit_by_bit(arrays: tuple[np.ndarray, np.ndarray]) -> None:
    mllm, base = (np.where(a == 0, np.float32(-0.0), a) for a in arrays)  # -0.0 is what a zero term would lose
    for rule in ("weighted_sum", "normalized"):
        assert same_bits(apply(rule, mllm, base, 1, 0), mllm)
        assert same_bits(apply(rule, mllm, base, 0, 1), base)
    assert same_bits(apply("self_scale", mllm, base, 1, 0), mllm)
    assert same_bits(apply("noise", mllm, base, 1, 0), mllm)


def test_noise_has_the_norm_of_the_change_and_its_own_direction() -> None:
    random = np.random.default_rng(0)
    mllm, base = (random.standard_normal((64, 48), dtype=np.float32) for _ in range(2))
    change = apply("weighted_sum", mllm, base, 0.9, 0.3).numpy() - mllm
    drawn = apply("noise", mllm, base, 0.9, 0.3).numpy() - mllm
    assert np.linalg.norm(drawn) == pytest.approx(np.linalg.norm(change), rel=1e-5)
    assert abs(np.vdot(drawn, change)) / np.linalg.norm(change) ** 2 < 0.1
    assert abs(drawn.mean()) < 0.05 * drawn.std()


def test_noise_depends_on_seed_and_tensor_only() -> None:
    def draw(seed: int, layer: int, suffix: str) -> Tensor:
        return torch.randn(32, generator=generator_of(seed, (layer, suffix)))

    first = draw(0, 1, "a.weight")
    draw(0, 2, "a.weight")
    assert torch.equal(first, draw(0, 1, "a.weight")), "the order of the tensors does not matter"
    others = [draw(1, 1, "a.weight"), draw(0, 2, "a.weight"), draw(0, 1, "b.weight"), draw(0, 11, ".weight")]
    assert not any(torch.equal(first, other) for other in others)


def mean(w_mllm: Tensor, w_base: Tensor, weights: Weights, generator: torch.Generator) -> Tensor:
    return (w_mllm + w_base) / 2


@pytest.mark.usefixtures("own_rules")
def test_another_rule_can_join() -> None:
    register_rule("mean", mean)
    spec = load_spec(None, {"base": "b", "layers": "0:1", "rule": "mean"})
    assert spec is not None and spec.rule == "mean"
    assert RULES["mean"].role == "merge" and control_names() == ("self_scale", "normalized", "noise")


@pytest.mark.usefixtures("own_rules")
def test_a_registered_rule_has_one_record_and_one_function() -> None:
    meaning, reference = "the mean of both, with noise", "here"
    register_rule("mean", mean, role="control", draws=True, elementwise=True, meaning=meaning, reference=reference)
    assert FUNCTIONS["mean"] is mean
    assert RULES["mean"] == Rule("mean", meaning, "control", ("weights", "seed"), True, reference)
    assert RULES["mean"].draws and control_names()[-1] == "mean"
    specs = [load_spec(None, {"base": "b", "layers": "0:1", "rule": "mean", "seed": seed}) for seed in (0, 1)]
    assert len({spec.digest() for spec in specs if spec}) == 2, "the seed of a rule that draws changes the merge"
    register_rule("mean", mean)
    assert FUNCTIONS["mean"] is mean and not RULES["mean"].elementwise and not RULES["mean"].draws


@pytest.mark.usefixtures("own_rules")
@pytest.mark.parametrize(
    ("name", "says"),
    [
        *(
            (name, "expected a letter, then letters, digits, _ and -")
            for name in ("", "a b", "a/b", "../a", "a=b", "a,b")
        ),
        *(
            (name, "expected a letter, then letters, digits, _ and -")
            for name in ("1e5", "mitte\u00df", "a\n", "a" * 65)
        ),
        *((name, "mean something else where rules are named") for name in ("none", "None", "true")),
        *((name, "one of plam-eval has this name") for name in ("weighted_sum", "noise")),
        ("noise2", "cells of 'noise' with a seed have names such as 'noise2'"),
        ("shuffle", "cells of 'shuffle' with a seed have names such as 'shuffle7'"),
    ],
)
def test_a_name_that_no_rule_can_have_is_refused(name: str, says: str) -> None:
    register_rule("shuffle7", mean)
    before = dict(FUNCTIONS), dict(RULES)
    with pytest.raises(InputError, match=r"a rule named .*: ") as refused:
        register_rule(name, mean, draws=True)
    assert says in str(refused.value)
    assert before == (FUNCTIONS, RULES)


@pytest.mark.usefixtures("own_rules")
def test_a_rule_that_nobody_registered_is_refused_with_near_names() -> None:
    register_rule("half-way", mean)
    with pytest.raises(SpecError, match=r"unknown rule 'halfway', did you mean 'half-way'\?"):
        load_spec(None, {"base": "b", "layers": "0:1", "rule": "halfway"})


@pytest.mark.usefixtures("own_rules")
def test_a_rule_refuses_weights_that_it_cannot_use() -> None:
    def refused(weights: Coefficients) -> str | None:
        return "it divides by the base's weight" if weights.base_model == 0 else None

    register(Rule("ratio", refused=refused))
    assert load_spec(None, {"base": "b", "layers": "0:1", "rule": "ratio"})
    with pytest.raises(SpecError, match=r"rule .*: it divides by the base's weight"):
        load_spec(None, {"base": "b", "layers": "0:1", "rule": "ratio", "base_weight": 0})


def test_every_rule_has_a_function_and_says_what_it_is() -> None:
    assert FUNCTIONS.keys() == RULES.keys()
    assert all(name == rule.name and rule.meaning for name, rule in RULES.items())
    assert {name for name, rule in RULES.items() if rule.draws} == {
        *("noise", "dare", "della", "dare_both", "diga_dare_both")
    }
    assert [name for name, rule in RULES.items() if rule.role == "control"] == [
        *("self_scale", "normalized", "noise", "from_ancestor")
    ]


def test_nothing_else_lists_rules_by_name() -> None:
    """A rule is added in two files: a name that stands elsewhere would be a third."""
    root = Path(plam_eval.__file__).parent
    folders = [root, root.parent / "model_wrappers", root.parent / "tasks"]
    naming = {
        path.relative_to(root.parent).as_posix()
        for path in (path for folder in folders for path in folder.rglob("*.py"))
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        # `plam compare --noise` is called as one of the controls is, and has nothing to do with it.
        if isinstance(node, ast.Constant) and node.value in RULES.keys() - {"noise"}
    }
    assert naming == {"plam_eval/built_in_rules.py"}


@given(pairs)
@settings(deadline=None, max_examples=20)
def test_elementwise_rules_may_be_given_parts(arrays: tuple[np.ndarray, np.ndarray]) -> None:
    mllm, base = (array.reshape(-1) for array in arrays)
    for rule in (
        rule for rule in RULES.values() if rule.elementwise and not rule.parameters and not rule.needs_ancestor
    ):
        whole = apply(rule.name, mllm, base, 0.9, 0.3)
        parts = [apply(rule.name, mllm[part], base[part], 0.9, 0.3) for part in (slice(0, 1), slice(1, None))]
        assert torch.equal(torch.cat(parts), whole)


def test_the_table_is_read_without_torch() -> None:
    command = "import sys, plam_eval.rules; print({'torch', 'numpy', 'pydantic'} & set(sys.modules))"
    run = subprocess.run([sys.executable, "-c", command], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "set()"
