from __future__ import annotations

import random
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from plam_eval.demo import scenes, train
from plam_eval.demo.questions import FIXED_PHRASES, FORMS, ask_about
from plam_eval.demo.scenes import scene_of
from plam_eval.demo.train import Encoder, Settings, make_batch


@pytest.fixture(scope="module")
def encode() -> Encoder:
    return Encoder(train.train_tokenizer(seed=0))


def test_tokenizer_round_trip_and_phrases(encode: Encoder) -> None:
    tokenizer = encode.tokenizer
    for text in ("What color is the circle?\nA. red", "左上角的物体是什么颜色？", "unseen wörds\t🙂", "Answer  twice"):
        assert tokenizer.decode(encode(text)) == text
    for phrase in FIXED_PHRASES:
        assert len(encode(phrase)) == 1


def test_pieces_encode_like_the_whole_prompt(encode: Encoder) -> None:
    """Training joins encoded pieces; evaluation encodes the whole prompt at once."""
    rng = random.Random(0)
    scene = scene_of("train", rng)
    batch = make_batch([scene], rng, encode, images=False, questions=4, descriptions=0)
    ids = batch.input_ids[0].tolist()
    prefix = batch.spans[0][1] + 1 - len(encode(batch.spans[0][3].text)) - 1
    start = prefix
    for _, first, last, branch in batch.spans:
        told = encode.tokenizer.decode(ids[1:prefix])
        whole = encode.tokenizer.encode(f"{told}{branch.text} ASSISTANT:", add_special_tokens=True)
        assert whole == ids[:prefix] + ids[start : first + 1]
        answer = batch.labels[0, first:last].tolist()
        assert answer == [*encode(" " + branch.answer), encode.tokenizer.eos_token_id]
        start = last


def test_branches_see_the_scene_and_themselves_only(encode: Encoder) -> None:
    rng = random.Random(0)
    torch.manual_seed(0)
    model = train.LlamaForCausalLM(train.text_config(encode.tokenizer)).eval().model
    batch = make_batch([scene_of("train", rng)], rng, encode, images=False, questions=3, descriptions=0)
    (_, first, end, _), (_, second, _, _), (_, third, last, _) = batch.spans
    with torch.no_grad():
        before = train._hidden(model, batch)[0]
        batch.input_ids[0, end] = 300  # the first token of the second branch
        after = train._hidden(model, batch)[0]
    moved = (before - after).abs().amax(-1) > 0
    assert not moved[: first + 1].any() and not moved[third:last].any()
    assert moved[end : second + 1].all()


def test_pixels_are_those_of_the_saved_image_processor(encode: Encoder) -> None:
    image = scenes.draw(scene_of("train", random.Random(2)), seed=3).image
    processed = train.build_processor(encode.tokenizer).image_processor(image, return_tensors="pt")["pixel_values"]
    assert torch.allclose(processed, train.pixel_values([image]), rtol=0, atol=1e-6)


@pytest.fixture
def threads() -> Iterator[None]:
    """Training sets the process's number of threads."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def _main(monkeypatch: pytest.MonkeyPatch, folder: Path, *extra: str) -> None:
    tiny = ["--tower-steps", "3", "--base-steps", "6", "--mllm-steps", "3", "--scenes-per-step", "2"]
    tiny += [
        "--questions-per-scene",
        "2",
        "--base-describing-steps",
        "2",
        "--mllm-describing-steps",
        "1",
        "--threads",
        "1",
    ]
    arguments = ["train", "--output", str(folder / "pair"), "--work", str(folder / "work"), *tiny, *extra]
    monkeypatch.setattr(sys, "argv", arguments)
    train.main()


@pytest.mark.slow
@pytest.mark.usefixtures("threads")
def test_training_resumes_after_a_kill_and_writes_a_loadable_pair(
    encode: Encoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from safetensors.torch import load_file
    from transformers import AutoProcessor, LlavaForConditionalGeneration

    save_every: dict[str, Any] = {"save_every": 2, "score_every": 6}
    stock = train.Stage.__init__
    monkeypatch.setattr(train.Stage, "__init__", lambda self, *a, **k: stock(self, *a, **{**k, **save_every}))
    batches = train._batches

    def few(*arguments: Any, **named: Any) -> Any:
        batch_at, heldout = batches(*arguments, **named)
        return batch_at, heldout[:1]

    monkeypatch.setattr(train, "_batches", few)
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

    for side in ("base", "mllm"):
        one, other = (load_file(tmp_path / run / "pair" / side / "model.safetensors") for run in ("whole", "halves"))
        assert one.keys() == other.keys()
        assert all(torch.equal(one[name], other[name]) for name in one), side

    folder = tmp_path / "whole" / "pair" / "mllm"
    assert "language_model.model.layers.0.self_attn.q_proj.weight" in load_file(folder / "model.safetensors")
    loaded: Any = LlavaForConditionalGeneration.from_pretrained(folder, output_loading_info=True)
    model, info = loaded
    assert not info["missing_keys"] and not info["unexpected_keys"]
    processor = AutoProcessor.from_pretrained(folder)
    scene = scene_of("heldout", random.Random(0))
    question = ask_about(scene, "count_all", random.Random(0))
    assert question is not None
    content = [{"type": "image"}, {"type": "text", "text": FORMS["gqa"](question)[0]}]
    text = processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
    inputs = processor(images=scenes.draw(scene).image, text=text, return_tensors="pt")
    assert (inputs["input_ids"] == model.config.image_token_id).sum() == train.IMAGE_TOKENS
    assert model.generate(**inputs, max_new_tokens=2).shape[1] > inputs["input_ids"].shape[1]


def test_descriptions_weigh_more_at_the_start_of_either_stage() -> None:
    settings = Settings(base_describing_steps=3, mllm_describing_steps=1)
    weights = {stage: [settings.description_weight(stage, step) for step in range(5)] for stage in ("base", "mllm")}
    assert weights == {"base": [1.5, 1.5, 1.5, 0.5, 0.5], "mllm": [1.5, 0.5, 0.5, 0.5, 0.5]}
