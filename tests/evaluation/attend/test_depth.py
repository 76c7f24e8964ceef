"""What a document's layers do under each setting, as it is stored, against the library on models merged in place."""

from __future__ import annotations

import json
import math
from typing import Any

import pandas as pd
import pytest
import torch
from transformers import GenerationConfig

from plam_eval.decoding.all_merges import Merges
from plam_eval.decoding.greedy import model_inputs
from plam_eval.evaluation import variants
from plam_eval.evaluation.attend.depth import depth_of, depth_table
from plam_eval.evaluation.attend.folder import DEPTH_KEYS, DEPTH_OF_LAYERS, DEPTH_OF_STREAM, MERGED, PLAIN
from plam_eval.harness.evaluate import evaluate
from plam_eval.harness.wrapper import HFWrapper
from plam_eval.merging.merge import merge_in_place
from plam_eval.probing.depth import describe, hidden_states, layer_contribution, similarity
from plam_eval.spec import PlateauSpec, load_spec
from tests.helpers.mllm import Mllm, hooks, picture
from tests.helpers.wrappers import WRAPPER, arguments

COLUMNS = [*DEPTH_OF_LAYERS, *DEPTH_OF_STREAM]
SETTINGS = (PLAIN, MERGED, "self_scale")


@pytest.fixture(autouse=True)
def _one_thread(one_thread: None) -> None:
    """Small differences are looked at here."""


def spec(base: Any, rule: str = "weighted_sum") -> PlateauSpec:
    given = {"base_model": str(base), "layer_range": [2, 4], "modules": "qkvo", "rule": rule}
    found = load_spec({**given, "weights": {"model": 0.2, "base_model": 1.2}})
    assert found is not None
    return found


def merges_of(loaded: Mllm, pair: Any) -> Merges:
    return Merges.of(loaded.model, [None, spec(pair.base), spec(pair.base, "self_scale")], checkpoint=pair.mllm)


def asked(loaded: Mllm, *document: Any) -> dict[str, Any]:
    """What a wrapper hands to `generate`."""
    settings = {"do_sample": False, "max_new_tokens": 4, "num_beams": 1, "temperature": None, "use_cache": True}
    more = {"pad_token_id": 0, "eos_token_id": [2], "generation_config": GenerationConfig(), "stop_strings": ["x"]}
    return {**loaded.batch(document), **settings, **more, "tokenizer": loaded.processor.tokenizer}


def close(column: list[float | None], expected: torch.Tensor) -> None:
    got = torch.tensor([math.nan if value is None else value for value in column])
    torch.testing.assert_close(got, expected.float(), atol=1e-5, rtol=1e-5, equal_nan=True)


@pytest.mark.parametrize("family", ["llava", "qwen3_vl"])
def test_a_document_is_described_under_each_setting_as_the_library_describes_a_merged_model(family, mllm, pico):
    loaded, pair = mllm(family), pico(family)
    given = asked(loaded, "Look: ", picture(0), " is it red?")
    inputs = {name: given[name] for name in loaded.batch(["Look: ", picture(0), " is it red?"])}
    plain, contributed = describe(loaded.model, inputs), layer_contribution(loaded.model, inputs)
    reference = hidden_states(loaded.model, inputs)
    merges, before = merges_of(loaded, pair), hooks(loaded)
    weights = [each.data_ptr() for each in loaded.model.parameters()]

    columns = depth_of(loaded.model, merges, SETTINGS, given)

    assert hooks(loaded) == before and weights == [each.data_ptr() for each in loaded.model.parameters()]
    assert json.loads(json.dumps(columns, allow_nan=False)) == columns and list(columns) == [*SETTINGS]
    assert all(sorted(each) == sorted(COLUMNS) for each in columns.values())
    close(columns[PLAIN]["contribution"], contributed.kl[0])
    close(columns[PLAIN]["contribution_flips"], contributed.flips[0])
    assert plain.lens is not None and columns[PLAIN]["image_cka"] == [None] * (loaded.layers + 1)
    for setting, merged in ((MERGED, spec(pair.base)), ("self_scale", spec(pair.base, "self_scale")), (PLAIN, None)):
        own = columns[setting]
        try:
            merge_in_place(loaded.model, merged, checkpoint=pair.mllm)
            found = describe(loaded.model, inputs, answer=plain.lens.answer)
            alike = similarity(loaded.model, inputs, reference)
        finally:
            merge_in_place(loaded.model, None, checkpoint=pair.mllm)
        for name in ("image_drift", "text_drift", "image_text", "image_image", "text_text"):
            close(own[name], getattr(found, name)[0])
        assert found.lens is not None
        close(own["lens_log_prob"], found.lens.log_prob[0])
        close(own["lens_rank"], found.lens.rank[0])
        if setting != PLAIN:
            for name in ("image_cosine", "text_cosine", "image_cka", "text_cka"):
                close(own[name], getattr(alike, name)[0])
            assert own["contribution"] == own["contribution_flips"] == [None] * loaded.layers
            # The merge begins at layer 2, so what enters it is still the plain model's.
            assert own["text_drift"][:2] == columns[PLAIN]["text_drift"][:2]
            assert own["text_drift"][2] != columns[PLAIN]["text_drift"][2]


def test_later_settings_are_compared_with_the_plain_model_that_is_none_of_them(mllm, pico):
    loaded, pair = mllm("llava"), pico("llava")
    given = asked(loaded, "Look: ", picture(0), " is it red?")
    whole = depth_of(loaded.model, merges_of(loaded, pair), SETTINGS, given)
    later = Merges.of(loaded.model, [spec(pair.base, "self_scale")], checkpoint=pair.mllm)
    assert depth_of(loaded.model, later, ["self_scale"], given) == {"self_scale": whole["self_scale"]}


def test_a_document_without_an_image_has_the_columns_of_text_alone(mllm, pico):
    loaded, pair = mllm("llava"), pico("llava")
    columns = depth_of(loaded.model, merges_of(loaded, pair), SETTINGS, asked(loaded, "is it red?"))
    for setting, own in columns.items():
        of_text = {"text_drift", "text_text", "lens_log_prob", "lens_rank"}
        of_text |= set() if setting == PLAIN else {"text_cosine", "text_cka"}
        for name, values in own.items():
            assert (None in values) == (name not in of_text), (setting, name)
            assert name in of_text or set(values) == {None}


def test_a_setting_takes_one_prefill(mllm, pico, monkeypatch):
    loaded, pair = mllm("llava"), pico("llava")
    merges, tower = merges_of(loaded, pair), loaded.model.model.vision_tower
    encoded: list[int] = []
    handle = tower.register_forward_hook(lambda *_: encoded.append(1))
    try:
        depth_of(loaded.model, merges, SETTINGS, asked(loaded, "Look: ", picture(0), " is it red?"))
    finally:
        handle.remove()
    assert len(encoded) == len(SETTINGS) + 1  # and one for what layers contribute


def test_the_table_has_a_row_for_each_depth_with_nothing_of_a_layer_at_the_last():
    columns = {name: [0.5] * 4 for name in DEPTH_OF_LAYERS} | {name: [0.25] * 5 for name in DEPTH_OF_STREAM}
    columns["image_cka"] = [None] * 5
    documents = [
        {"task": "gqa", "doc_id": doc_id, "cluster": "c", "depth": {PLAIN: columns, MERGED: columns}}
        for doc_id in (0, 3)
    ]
    table = depth_table(documents)
    assert list(table.columns) == [*DEPTH_KEYS, *COLUMNS] and len(table) == 2 * 2 * 5
    assert table["depth"].tolist() == [0, 1, 2, 3, 4] * 4 and table["doc_id"].unique().tolist() == [0, 3]
    assert all(table[name].dtype == float for name in COLUMNS)
    last = table[table["depth"] == 4]
    assert last[list(DEPTH_OF_LAYERS)].isna().all(axis=None) and last["image_text"].eq(0.25).all()
    assert not table[table["depth"] < 4][list(DEPTH_OF_LAYERS)].isna().any(axis=None)
    assert table["image_cka"].isna().all()
    empty = depth_table([])
    pd.testing.assert_index_equal(empty.columns, table.columns)
    assert empty.empty


CALLS = [("llava", "chat"), ("llava_next", "simple"), ("llava_onevision", "chat"), ("qwen2_vl", "simple")]
CALLS += [("qwen2_5_vl", "chat"), ("qwen3_vl", "simple"), ("internvl", "chat")]


@pytest.mark.parametrize(("family", "mode"), CALLS)
def test_what_every_wrapper_hands_to_generate_can_be_described(family, mode, pico, in_suite):
    """Of it, the prompt and its images are what `generate` itself hands to the model."""
    from lmms_eval.models import get_model

    wrapper = get_model(WRAPPER[family][0], force_simple=mode == "simple")
    model = wrapper.create_from_arg_string(arguments(pico(family)), {"batch_size": 1})
    described: list[dict[str, Any]] = []

    class Describing:
        def answer(self, requests: list[Any]) -> list[Any]:
            assert isinstance(model, HFWrapper)

            def generate(**given: Any) -> Any:
                described.append(depth_of(model.model, Merges.of(model.model, [None]), [PLAIN], given))
                new = model.model.generate(**given)[:, given["input_ids"].shape[1] :]
                assert {*model_inputs(given)} == {key for key, value in given.items() if torch.is_tensor(value)}
                return [new[0]]

            return [variants.answer_all(model, request, generate)[0] for request in requests]

        def end_run(self, tasks: Any) -> None:
            pass

    with model.answering(Describing(), max_error_share=0.0):
        evaluate(model, "mmstar", limit=1, gen_kwargs="max_new_tokens=2")
    assert len(described) == 1
    columns = described[0][PLAIN]
    assert all(None not in columns[name] for name in ("image_drift", "contribution", "image_text", "lens_rank"))
