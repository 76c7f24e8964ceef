"""What is recorded of a document, against the library by hand on the model merged in place; and what goes wrong."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from plam_eval.decoding import merge_rows
from plam_eval.decoding.greedy import model_inputs
from plam_eval.evaluation.answer_store import AnswerStore
from plam_eval.evaluation.attend.document import finest, frame_of
from plam_eval.evaluation.attend.folder import MEASURES, MERGED, PLAIN, AttendError
from plam_eval.evaluation.attend.recorder import NO_IMAGE, Recorder, shown_first
from plam_eval.evaluation.attend.settings import Settings
from plam_eval.harness.documents import Documents
from plam_eval.harness.evaluate import evaluate
from plam_eval.harness.requests import key_of
from plam_eval.harness.single_image import image_request
from plam_eval.harness.wrapper import text_of, writable
from plam_eval.probing.attention import attention_rows, tokens_behind_images
from plam_eval.probing.attention_measures import measures, sink_dimensions, sink_tokens
from plam_eval.probing.decoder import ProbeError
from plam_eval.probing.token_grid import TILES, WHOLE, ImageTokens, token_grids
from plam_eval.spec import PlateauSpec, load_spec
from tests.helpers.mllm import picture
from tests.helpers.wrappers import WRAPPER, arguments

LAYERS = 4


def spec_for(base: Any) -> PlateauSpec:
    found = load_spec(
        {
            "base_model": str(base),
            "layer_range": [2, 4],
            "modules": "qkvo",
            "weights": {"model": 0.2, "base_model": 1.2},
        }
    )
    assert found is not None
    return found


@pytest.fixture(scope="module")
def load(pico: Callable[[str], Any]) -> Callable[..., Any]:
    from lmms_eval.models import get_model

    loaded: dict[tuple[str, str], Any] = {}

    def get(family: str, mode: str = "chat") -> Any:
        if (family, mode) not in loaded:
            cls = get_model(WRAPPER[family][0], force_simple=mode == "simple")
            loaded[family, mode] = cls.create_from_arg_string(arguments(pico(family)), {"batch_size": 1})
        return loaded[family, mode]

    return get


def recorder_of(model: Any, settings: Settings, folder: Path, boxes: Any = None, **more: Any) -> Recorder:
    return Recorder(model, settings, AnswerStore(folder, 0), Documents(boxes), num_layers=LAYERS, **more)


class Kept:
    """A strategy that keeps requests, what the stock loop asks the model with, and what it answers."""

    def __init__(self, model: Any) -> None:
        self.model = model
        self.requests: dict[Any, Any] = {}
        self.inputs: dict[Any, Any] = {}

    def answer(self, requests: list[Any]) -> list[Any]:
        return [self.asked(request) for request in requests]

    def asked(self, request: Any) -> Any:
        def generate(**inputs: Any) -> Any:
            self.inputs[key_of(request)] = inputs
            with self.model.generating_itself():
                return self.model.own_generate(**inputs)

        self.requests[key_of(request)] = request
        with self.model.generating(generate):
            return self.model.stock_answers([request], counted=False)[0]

    def end_run(self, tasks: dict[str, Any]) -> None:
        pass


def by_hand(
    model: Any, given: dict[str, Any], pictures: Any, sinks: np.ndarray, queries: Any = None
) -> dict[str, np.ndarray]:
    """Measures of the model as it is merged now, by column, (with and without sinks, layers)."""
    inputs = model_inputs(given)
    (images,) = token_grids(model.model, model.input_processor, inputs, pictures.sizes)
    rows = attention_rows(model.model, inputs, queries).rows_of(0)[:, 0]
    columns: dict[str, list[Any]] = {name: [] for name in MEASURES}
    for without in (None, sinks[:, None]):
        own = measures(rows, images, boxes=pictures.boxes, sinks=sinks[:, None], without=without)
        other = measures(rows, images, boxes=pictures.other_boxes, sinks=sinks[:, None], without=without)
        for name in MEASURES:
            of = other if name.startswith("other_") else own
            columns[name].append(np.nanmean(getattr(of, name.removeprefix("other_")), axis=1))
    return {name: np.array(values) for name, values in columns.items()}


def sinks_by_hand(model: Any, given: dict[str, Any]) -> np.ndarray:
    inputs = model_inputs(given)
    rows = attention_rows(model.model, inputs, massive=True)
    massive = rows.massive_of(0)
    dimensions = sink_dimensions([massive], [rows.text_of(0)])
    return sink_tokens(massive, dimensions, LAYERS, inputs["input_ids"].shape[1])


CASES = [("llava", "chat", "last"), ("qwen3_vl", "chat", "question"), ("llava_next", "simple", "answer")]
CASES += [("internvl", "chat", "last"), ("qwen2_5_vl", "simple", "answer")]


@pytest.mark.filterwarnings("ignore:Mean of empty slice")
@pytest.mark.parametrize(("family", "mode", "queries"), CASES)
def test_measures_are_those_of_the_model_merged_in_place(
    family: str, mode: str, queries: Any, load: Any, pico: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("plam_eval.probing.attention.SINK_THRESHOLD", 3.0)  # random weights have no outliers
    model, pair = load(family, mode), pico(family)
    settings = Settings.read(spec_for(pair.base))
    image = picture(3, (60, 44))
    request = image_request(model, image, "Which color is it?", gen_kwargs={"max_new_tokens": 4})
    boxes = {("image", 0): [[(4.0, 4.0, 30.0, 30.0)]]}
    recorder = recorder_of(model, settings, tmp_path, boxes, queries=queries, shown=frozenset([("image", 0)]))
    (answer,) = recorder.answer([request])
    recorder.gather_one(("image", 0), {"prompt": "?", "target": "", "group": "one"})
    got = {setting: values for _, setting, values in recorder.share.measures}
    assert list(got) == list(settings.specs) and all(
        values.shape == (2, len(MEASURES), LAYERS) for values in got.values()
    )
    kept, pictures = Kept(model), Documents(boxes).of_request(request)
    assert writable(text_of(kept.asked(request))) == text_of(answer)
    sinks = sinks_by_hand(model, kept.inputs["image", 0])
    assert sinks.any() and not sinks[:2].any()
    answers = {row["setting"]: row["answer"] for row in recorder.share.answers}
    for setting, spec in settings.specs.items():
        model.merge(spec)
        try:
            assert writable(text_of(kept.asked(request))).strip() == answers[setting]
            given = dict(kept.inputs["image", 0])
            wanted, own_sinks = None, sinks
            if queries == "question":
                wanted = tokens_behind_images(model.model, model_inputs(given))
            if queries == "answer":
                with model.generating_itself():
                    new = model.own_generate(**given)[:, given["input_ids"].shape[1] : -1]
                given, wanted = _with_answer(given, new)
                own_sinks = np.pad(sinks, ((0, 0), (0, new.shape[1])))
            expected = by_hand(model, given, pictures, own_sinks, wanted)
        finally:
            model.merge(None)
        for column, name in enumerate(MEASURES):
            np.testing.assert_allclose(got[setting][:, column], expected[name], rtol=2e-4, atol=2e-6, err_msg=name)
    assert np.isnan(got[PLAIN][:, MEASURES.index("other_chance")]).all()  # there is no other document
    assert not np.allclose(got[PLAIN][:, 0, 2:], got[MERGED][:, 0, 2:])
    if queries != "answer":  # of which each setting gives its own: below the merge nothing changes
        np.testing.assert_array_equal(got[PLAIN][:, :, :2], got[MERGED][:, :, :2])
    (shown,) = recorder.share.shown
    total = got[PLAIN][0, MEASURES.index("image_share")]
    assert shown.maps[PLAIN].shape[0] == LAYERS and (shown.maps[PLAIN].sum((1, 2)) <= total + 1e-5).all()
    assert shown.size == (60, 44) and shown.image.shape == (44, 60, 3) and list(shown.answers) == list(settings.specs)


def _with_answer(given: dict[str, Any], new: torch.Tensor) -> tuple[dict[str, Any], list[list[int]]]:
    """The prompt with the tokens of an answer that are read again, and where these are."""
    length, count = given["input_ids"].shape[1], new.shape[1]
    ones = torch.ones_like(new)
    more = {"input_ids": new, "attention_mask": ones}
    if given.get("mm_token_type_ids") is not None:
        more["mm_token_type_ids"] = torch.zeros_like(new)
    longer = {name: torch.cat([given[name], tail], 1) for name, tail in more.items()}
    return {**given, **longer}, [list(range(length, length + count))]


@pytest.fixture
def recorded(load: Any, pico: Any, in_suite: Path) -> Callable[..., Recorder]:
    """`recorded(folder)`: the recorder of an evaluation of six documents of gqa, which has boxes."""

    def record(folder: Path, task: str = "gqa", limit: int = 4, **more: Any) -> Recorder:
        model = load("llava")
        recorder = recorder_of(model, Settings.read(spec_for(pico("llava").base)), folder, **more)
        with recorder.installed():
            evaluate(model, task, limit=limit, gen_kwargs="max_new_tokens=3")
        return recorder

    return record


def test_the_plain_answer_is_lmms_evals_and_all_are_scored(recorded: Any, load: Any, tmp_path: Path) -> None:
    recorder = recorded(tmp_path)
    run = evaluate(load("llava"), "gqa", limit=4, gen_kwargs="max_new_tokens=3")
    assert run is not None
    stock = {log["doc_id"]: log["filtered_resps"][0] for log in run.samples["gqa"]}
    plain = {row["doc_id"]: row for row in recorder.share.answers if row["setting"] == PLAIN}
    assert {doc_id: row["answer"] for doc_id, row in plain.items()} == stock
    assert len(recorder.share.answers) == 4 * 4 and all(row["score"] in (0, 1) for row in recorder.share.answers)
    assert {row["image_tokens"] for row in recorder.share.answers} == {plain[0]["image_tokens"]} != {None}
    boxed = [
        values[0, MEASURES.index("other_chance"), 0] for _, name, values in recorder.share.measures if name == PLAIN
    ]
    assert np.isfinite(boxed).any()  # the suite's documents have boxes, and each has those of another


def test_some_settings_at_a_time_give_the_same(recorded: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The sinks of the plain model among them, which was looked at before."""
    monkeypatch.setattr("plam_eval.probing.attention.SINK_THRESHOLD", 2.5)
    key = frozenset([("gqa", 1)])
    whole = recorded(tmp_path / "all", shown=key).share
    parts = recorded(tmp_path / "parts", together=1, depth=True, shown=key).share
    assert parts.answers == whole.answers and len(parts.depth) == 4
    assert [each[:2] for each in parts.measures] == [each[:2] for each in whole.measures]
    for (_, _, one), (_, _, other) in zip(parts.measures, whole.measures, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-6)
    assert any(values[0, MEASURES.index("sink_share")].any() for _, _, values in whole.measures)
    (one,), (other,) = parts.shown, whole.shown
    assert list(one.maps) == list(other.maps) and one.boxes == other.boxes and one.frame == other.frame
    lines = (tmp_path / "parts" / "answers.rank0.jsonl").read_text().splitlines()
    assert len(lines) == 4 * 4 and len((tmp_path / "all" / "answers.rank0.jsonl").read_text().splitlines()) == 4


def test_what_is_finished_is_not_done_again_and_what_is_damaged_is(
    recorded: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = recorded(tmp_path)
    looked, stock = list[int](), merge_rows.generate_with_rows

    def counted(*args: Any, **given: Any) -> Any:
        looked.append(1)
        return stock(*args, **given)

    monkeypatch.setattr(merge_rows, "generate_with_rows", counted)
    again = recorded(tmp_path)
    assert not looked and again.share.answers == whole.share.answers
    file = tmp_path / "answers.rank0.jsonl"
    lines = file.read_text().splitlines(keepends=True)
    spoilt = lines[1].replace('"measures": {"plain": "', '"measures": {"plain": "AAAA')
    too_many = re.sub(r'"image_tokens": \d+', f'"image_tokens": {10**30}', lines[2])
    file.write_text("".join([lines[0], spoilt, too_many, lines[3][:-20]]))
    once_more = recorded(tmp_path)
    assert len(looked) == 3 and once_more.share.answers == whole.share.answers
    assert recorded(tmp_path, shown=frozenset([("gqa", 2)])).share.shown and len(looked) == 4
    file.write_text(file.read_text().replace('"prompt": "', '"prompt": "0'))
    with pytest.raises(AttendError, match="its prompt changed"):
        recorded(tmp_path)


# ---- what cannot be looked at ----------------------------------------------------------------------------------------


def failing_at(doc_ids: set[int], error: Exception) -> Callable[..., Any]:
    """`generate_with_rows` that raises for some documents, counted in the order in which they are asked."""
    stock, turns = merge_rows.generate_with_rows, iter(range(1000))

    def generate(*args: Any, **given: Any) -> Any:
        if next(turns) in doc_ids:
            raise error
        return stock(*args, **given)

    return generate


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"), "out of memory"),
        (ProbeError("its attention rows cannot be had"), "its attention rows cannot be had"),
    ],
)
def test_a_failure_costs_one_document_and_is_tried_again_next_time(
    recorded: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception, says: str
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(merge_rows, "generate_with_rows", failing_at({1}, error))
        failed = recorded(tmp_path / "failed")
    skipped = [row for row in failed.share.answers if row["skipped"]]
    assert len({row["doc_id"] for row in skipped}) == 1 and all(says in row["skipped"] for row in skipped)
    assert len(failed.share.measures) == 3 * 4
    whole = recorded(tmp_path / "whole").share
    plain = {row["doc_id"]: row["answer"] for row in whole.answers if row["setting"] == PLAIN}
    own = next(row for row in skipped if row["setting"] == PLAIN)
    assert own["answer"] == plain[own["doc_id"]] and own["target"]
    assert recorded(tmp_path / "failed").share.answers == whole.answers


def test_a_document_without_an_image_is_skipped_and_answered_all_the_same(
    recorded: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stock = Documents.of_request

    def of_request(self: Documents, request: Any) -> Any:
        found = stock(self, request)
        if request.doc_id == 2:
            found.images.clear()
        return found

    monkeypatch.setattr(Documents, "of_request", of_request)
    share = recorded(tmp_path).share
    skipped = [row for row in share.answers if row["skipped"]]
    assert [row["skipped"] for row in skipped] == [NO_IMAGE] * 4 and {row["doc_id"] for row in skipped} == {2}
    assert all(row["answer"] is not None and row["score"] in (0, 1) for row in skipped)
    assert {key[1] for key, _, _ in share.measures} == {0, 1, 3}


def test_an_image_that_is_not_the_one_of_the_inputs_is_skipped_with_the_reason(
    load: Any, pico: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = load("llava_next", "simple")
    settings = Settings.read(spec_for(pico("llava_next").base))
    request = image_request(model, picture(0, (60, 44)), "What?", gen_kwargs={"max_new_tokens": 2})
    stock = Documents.of_request

    def shrunk(self: Documents, request: Any) -> Any:
        found = stock(self, request)
        found.images[:] = [image.resize((30, 22)) for image in found.images]
        return found

    monkeypatch.setattr(Documents, "of_request", shrunk)
    recorder = recorder_of(model, settings, tmp_path)
    recorder.answer([request])
    recorder.gather_one(("image", 0), {"prompt": "?", "target": "", "group": "one"})
    assert all("image_sizes" in row["skipped"] and row["answer"] is not None for row in recorder.share.answers)
    assert not recorder.share.measures


def test_an_image_that_a_processor_refuses_costs_one_document(load: Any, pico: Any, tmp_path: Path) -> None:
    model = load("qwen2_5_vl", "simple")
    settings = Settings.read(spec_for(pico("qwen2_5_vl").base))
    request = image_request(model, Image.new("RGB", (2100, 4)), "What?", gen_kwargs={"max_new_tokens": 2})
    recorder = recorder_of(model, settings, tmp_path)
    assert recorder.answer([request]) == [""]
    recorder.gather_one(("image", 0), {"prompt": "?", "target": "", "group": "one"})
    assert all("aspect ratio" in row["skipped"] and row["answer"] is None for row in recorder.share.answers)


# ---- which are drawn -------------------------------------------------------------------------------------------------


def test_documents_to_draw_are_of_all_tasks_and_those_with_boxes_first() -> None:
    boxed = {"a": iter([1, 4]), "b": iter([2]), "c": iter(())}
    everything = {"a": iter(range(9)), "b": iter(range(9)), "c": iter(range(9))}
    assert shown_first(boxed, everything, 5) == {("a", 1), ("b", 2), ("a", 4), ("a", 0), ("b", 0)}
    assert shown_first({"a": iter([1, 2, 3])}, {}, 2) == {("a", 1), ("a", 2)}
    assert shown_first({}, {"a": iter([0])}, 3) == {("a", 0)}


def test_a_frame_is_the_whole_grid_of_which_cells_were_cut(mllm: Any) -> None:
    loaded, wide = mllm("llava"), picture(0, (120, 60))
    inputs = loaded.batch(["Look: ", wide])
    ((cropped,),) = token_grids(loaded.model, loaded.processor, inputs, [wide.size])
    assert frame_of(cropped, WHOLE) == (30.0, 0.0, 90.0, 60.0)
    row, column = (each.ravel() for each in np.mgrid[:4, :4])
    corner = np.stack([column * 30.0, row * 30.0 - 30.0], 1)  # a square of 120 around an image of 120 x 60
    cells = np.concatenate([corner, corner + 30], 1).clip(0, [120, 60, 120, 60])
    padded = ImageTokens(np.arange(16), np.full(16, TILES), row, column, cells, (120, 60))
    assert frame_of(padded, TILES) == (0.0, -30.0, 120.0, 90.0) and finest(padded) == TILES
