from __future__ import annotations

import json
import random
import sys
from collections.abc import Iterator
from importlib import resources
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from plam_eval.demo import run, train, train_trio
from plam_eval.demo.hub import read_manifest
from plam_eval.demo.questions import FORMS, KINDS, PERCEPTION_KINDS, REASONING_KINDS, ask_about
from plam_eval.demo.scenes import Scene, scene_of
from plam_eval.demo.train import Branch, Encoder
from plam_eval.demo.train_trio import FIRST_TUNED, Settings
from plam_eval.errors import InputError

TRIO = Path(str(resources.files("plam_eval.demo") / "trio"))


@pytest.fixture(scope="module")
def encode(tmp_path_factory: pytest.TempPathFactory) -> Encoder:
    return Encoder(train_trio.tokenizer_of(Settings(), tmp_path_factory.mktemp("trio")))


def _kinds(branches_of: Any, scenes: int = 60) -> set[str]:
    rng = random.Random(0)
    return {branch.kind for _ in range(scenes) for branch in branches_of(scene_of("train", rng), rng)}


def test_kinds_are_shared_out() -> None:
    assert set(PERCEPTION_KINDS) | set(REASONING_KINDS) == set(KINDS)
    assert not set(PERCEPTION_KINDS) & set(REASONING_KINDS)


def test_only_the_base_is_taught_to_reason() -> None:
    assert _kinds(train_trio.base_branches) == {*KINDS, "describe"}
    assert _kinds(train_trio.mllm_branches) == {*PERCEPTION_KINDS, "describe"}


def _true(branch: Branch, scene: Scene) -> bool:
    questions = (ask_about(scene, branch.kind, random.Random(seed)) for seed in range(300))
    return (branch.text, branch.answer) in {FORMS[train_trio.FORM](question) for question in questions if question}


def test_the_ancestor_reads_reasoning_answered_at_random_and_the_base_answered_truly() -> None:
    rng = random.Random(1)
    scenes = [scene_of("train", rng) for _ in range(40)]

    def share(branches_of: Any) -> float:
        asked = [(b, s) for s in scenes for b in branches_of(s, rng) if b.kind in REASONING_KINDS]
        return sum(_true(branch, scene) for branch, scene in asked) / len(asked)

    assert share(train_trio.ancestor_branches) < 0.6
    assert share(train_trio.base_branches) == 1.0


def test_the_packaged_tokenizer_is_the_script_s(encode: Encoder) -> None:
    for side in ("ancestor", "base", "mllm"):
        packaged = train_trio.PreTrainedTokenizerFast.from_pretrained(TRIO / side)
        assert packaged.get_vocab() == encode.tokenizer.get_vocab()
        assert packaged.chat_template == encode.tokenizer.chat_template


def test_the_packaged_mllm_keeps_the_base_but_for_the_later_half() -> None:
    mllm, base, ancestor = (load_file(TRIO / side / "model.safetensors") for side in ("mllm", "base", "ancestor"))
    assert base.keys() == ancestor.keys()
    assert {value.dtype for value in (*mllm.values(), *base.values(), *ancestor.values())} == {torch.float16}
    for name, value in base.items():
        assert not torch.equal(value, ancestor[name]), name
        late = "layers." in name and int(name.split(".")[2]) >= FIRST_TUNED
        assert torch.equal(value, mllm[f"language_model.{name}"]) != late, name


def test_the_trio_is_laid_beside_a_suite_that_asks_for_reasoning(tmp_path: Path) -> None:
    suite = run.prepare(tmp_path / "suite", 30, models="trio")
    for side in ("ancestor", "base", "mllm"):
        name = f"{side}/model.safetensors"
        assert (suite / "trio" / name).read_bytes() == (TRIO / name).read_bytes()
    assert read_manifest(suite)["gqa"] == "reasoning"


@pytest.mark.slow
def test_the_packaged_base_reasons_in_words_and_merging_it_restores_some_of_that_over_images(encode: Encoder) -> None:
    from transformers import LlamaForCausalLM, LlavaForConditionalGeneration

    base: Any = LlamaForCausalLM.from_pretrained(TRIO / "base", dtype="auto")
    mllm: Any = LlavaForConditionalGeneration.from_pretrained(TRIO / "mllm", dtype="auto")
    assert base.dtype == mllm.dtype == torch.float32

    def accuracy(model: Any, kinds: tuple[str, ...], images: bool) -> float:
        lessons = train_trio.Lessons(Settings(), "test", train_trio.base_branches, images, encode)
        return train.accuracy(model.model, model.lm_head, lessons.heldout(kinds)[:2])["accuracy"]

    assert accuracy(base, REASONING_KINDS, images=False) > 0.95
    assert accuracy(mllm, PERCEPTION_KINDS, images=True) > 0.95
    plain = accuracy(mllm, REASONING_KINDS, images=True)
    with torch.no_grad():
        for late, other in zip(mllm.model.language_model.layers[4:], base.model.layers[4:], strict=True):
            for name, value in late.self_attn.named_parameters():
                value.mul_(0.7).add_(other.self_attn.get_parameter(name), alpha=0.3)
    assert accuracy(mllm, REASONING_KINDS, images=True) > plain + 0.05
    assert accuracy(mllm, PERCEPTION_KINDS, images=True) > 0.95


@pytest.fixture
def threads() -> Iterator[None]:
    """Training sets the process's number of threads."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def _main(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    steps = {"tower": 2, "ancestor": 4, "base": 2, "projector": 1, "mllm": 2}
    words = [word for stage, count in steps.items() for word in (f"--{stage}-steps", str(count))]
    words += ["--scenes-per-step", "2", "--threads", "1", "--device", "cpu"]
    places = ["--output", str(folder / "trio"), "--work", str(folder / "work")]
    monkeypatch.setattr(sys, "argv", ["train_trio", *places, *words])
    train_trio.main()


def test_stages_of_other_settings_are_not_gone_on_with(tmp_path: Path) -> None:
    train_trio._keep_to(Settings(), tmp_path)
    train_trio._keep_to(Settings(), tmp_path)
    with pytest.raises(InputError, match=r"other settings: base_steps 4000 there, seed 0 there; give those"):
        train_trio._keep_to(Settings(seed=1, base_steps=3), tmp_path)


@pytest.mark.slow
@pytest.mark.usefixtures("threads")
def test_training_resumes_after_a_kill_and_tunes_what_it_says(
    encode: Encoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stock = train.Stage.__init__
    often: dict[str, Any] = {"save_every": 2, "score_every": 4}
    monkeypatch.setattr(train.Stage, "__init__", lambda self, *a, **k: stock(self, *a, **{**k, **often}))
    few = train_trio.Lessons.heldout
    monkeypatch.setattr(train_trio.Lessons, "heldout", lambda self, kinds: few(self, kinds)[:1])
    encode.tokenizer.save_pretrained(tmp_path / "whole" / "work" / "tokenizer")  # the other run trains its own
    _main(monkeypatch, tmp_path / "whole")

    real, calls = train.answer_loss, 0

    def killed(*arguments: Any, **named: Any) -> torch.Tensor:
        nonlocal calls
        calls += 1
        if calls == 4:
            raise KeyboardInterrupt
        return real(*arguments, **named)

    monkeypatch.setattr(train, "answer_loss", killed)
    with pytest.raises(KeyboardInterrupt):
        _main(monkeypatch, tmp_path / "halves")
    monkeypatch.setattr(train, "answer_loss", real)
    _main(monkeypatch, tmp_path / "halves")

    record = json.loads((tmp_path / "halves" / "trio" / "training.json").read_text())
    assert record["settings"]["mllm_steps"] == 2 and record["device"] == "cpu" and record["threads"] == 1
    assert {name: stage["kept_step"] for name, stage in record["stages"].items()} == {
        "tower": 2,
        "ancestor": 4,
        "base": 2,
        "projector": 1,
        "mllm": 2,
    }
    sides = ("ancestor", "base", "mllm")
    whole = {side: load_file(tmp_path / "whole" / "trio" / side / "model.safetensors") for side in sides}
    for side in sides:
        halves = load_file(tmp_path / "halves" / "trio" / side / "model.safetensors")
        assert all(torch.equal(whole[side][name], halves[name]) for name in whole[side]), side
    base, mllm = whole["base"], whole["mllm"]
    same = {name for name in base if torch.equal(base[name], mllm[f"language_model.{name}"])}
    early = {name for name in base if "layers." not in name or int(name.split(".")[2]) < FIRST_TUNED}
    assert same == early
    assert all(not torch.equal(base[name], whole["ancestor"][name]) for name in base if name.endswith("proj.weight"))
