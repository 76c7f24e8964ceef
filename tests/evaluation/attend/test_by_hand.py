"""One document worked out by hand, on transformers' own outputs and by the formulas of the documents alone.

Nothing of `probing/`, `merging/` or `decoding/` is used: weights are added tensor by tensor, cells are cut out of the
image by pixels, and the row, the stream and the changed layer are those of the stock eager model.
"""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoModelForImageTextToText, AutoProcessor

from plam_eval.evaluation.attend.folder import load
from plam_eval.evaluation.attend.run import attend
from plam_eval.evaluation.attend.settings import Settings
from plam_eval.spec import load_spec
from tests.helpers.paths import PAIR

LAYERS, MERGED_FROM, SIDE, IMAGE_TOKEN = 8, 4, 4, 4
WEIGHTS = {"plain": (1.0, 0.0), "merged": (0.9, 0.3), "self_scale": (1.2, 0.0), "normalized": (0.75, 0.25)}
cosines = torch.nn.functional.cosine_similarity
Numbers = dict[str, float]


def merged_by_hand(setting: str) -> Any:
    model = AutoModelForImageTextToText.from_pretrained(
        PAIR / "mllm", dtype=torch.float32, attn_implementation="eager"
    ).eval()
    base, (own, other) = load_file(PAIR / "base" / "model.safetensors"), WEIGHTS[setting]
    for layer in range(MERGED_FROM, LAYERS):
        for name in ("q_proj", "k_proj", "v_proj", "o_proj"):
            weight = getattr(model.model.language_model.layers[layer].self_attn, name).weight
            weight.data = own * weight.data + other * base[f"model.layers.{layer}.self_attn.{name}.weight"]
    return model


def first_of_gqa(suite: Path) -> tuple[Any, list[Any], list[Any]]:
    """What the processor makes of gqa's first document; its boxes, and those of the second, which has another image."""
    folder = suite / "lmms-lab-encoder" / "GQA"
    read = {part: pd.read_parquet(next(folder.glob(f"*_{part}/*.parquet"))) for part in ("instructions", "images")}
    document, second = (read["instructions"].iloc[index] for index in (0, 1))
    assert document["imageId"] != second["imageId"]
    data = read["images"].set_index("id").loc[document["imageId"], "image"]["bytes"]
    lines = [json.loads(line) for line in (folder / "plam_boxes.jsonl").read_text().splitlines()]
    boxes = {line["doc_id"]: line["boxes"][0] for line in lines}
    processor = AutoProcessor.from_pretrained(PAIR / "mllm")
    question = f"{document['question']}\nAnswer the question using a single word or phrase."
    text = f"USER: <image>\n{question} ASSISTANT:"
    image = Image.open(io.BytesIO(data)).convert("RGB")
    assert image.size == (64, 64)
    return processor(images=image, text=text, return_tensors="pt"), boxes[0], boxes[1]


def rows_by_hand(model: Any, inputs: Any, queries: str) -> list[NDArray[np.float64]]:
    """Of each layer (rows, keys), mean over heads."""
    ids, prompt = inputs["input_ids"], inputs["input_ids"].shape[1]
    rows = slice(prompt - 1, prompt)
    if queries == "question":
        rows = slice(int((ids[0] == IMAGE_TOKEN).nonzero()[-1]) + 1, prompt)
    if queries == "answer":
        ids = model.generate(**inputs, max_new_tokens=16, do_sample=False)[:, :-1]
        rows = slice(prompt, ids.shape[1])
    whole = {"input_ids": ids, "pixel_values": inputs["pixel_values"], "attention_mask": torch.ones_like(ids)}
    weights = model(**whole, output_attentions=True).attentions
    return [layer[0, :, rows].double().mean(0).numpy() for layer in weights]


def entropy(values: Any) -> float:
    shares = np.array([value for value in np.ravel(values) if value > 0])
    shares /= shares.sum()
    return float(-(shares * np.log(shares)).sum())


def regions(above: NDArray[np.float64]) -> list[float]:
    """Sums of the 8-connected regions, filled one by one."""
    left = {(int(row), int(column)) for row, column in np.argwhere(above > 0)}
    sums = []
    while left:
        edge, mass = [left.pop()], 0.0
        while edge:
            row, column = edge.pop()
            mass += above[row, column]
            near = {cell for cell in left if abs(cell[0] - row) <= 1 and abs(cell[1] - column) <= 1}
            left -= near
            edge += near
        sums.append(mass)
    return sums


def painted(boxes: list[Any]) -> NDArray[np.float64]:
    """The share of each of 4 x 4 cells of 16 x 16 pixels that lies inside boxes."""
    pixels = np.zeros((64, 64))
    for left, top, right, bottom in boxes:
        pixels[top:bottom, left:right] = 1
    return pixels.reshape(SIDE, 16, SIDE, 16).mean((1, 3))


def measures_by_hand(rows: NDArray[np.float64], image: Tensor, own: list[Any], other: list[Any]) -> Numbers:
    """Of each row by itself, mean over rows."""
    return dict(pd.DataFrame([measures_of_row(row, image, own, other) for row in rows]).mean())


def measures_of_row(row: NDArray[np.float64], image: Tensor, own: list[Any], other: list[Any]) -> Numbers:
    cells = row[: len(image)][image.numpy()].reshape(SIDE, SIDE)
    inside, elsewhere = painted(own), painted(other)
    return {
        "image_share": cells.sum(),
        "entropy": entropy(cells),
        "spatial_entropy": entropy(regions(np.maximum(cells - cells.mean(), 0))),
        "box_share": (cells * inside).sum(),
        "box_share_of_image": (cells * inside).sum() / cells.sum(),
        "chance": inside.mean(),
        "other_box_share_of_image": (cells * elsewhere).sum() / cells.sum(),
        "other_chance": elsewhere.mean(),
    }


def stream_by_hand(model: Any, inputs: Any) -> tuple[list[Tensor], Tensor]:
    """What enters each layer and what leaves the last one, before the final norm; and ln p of the next token."""
    last: list[Tensor] = []
    handle = model.model.language_model.norm.register_forward_pre_hook(lambda _, args: last.append(args[0]))
    output = model(**inputs, output_hidden_states=True)
    handle.remove()
    stream = [state[0].double() for state in (*output.hidden_states[:-1], last[0])]
    return stream, output.logits[0, -1].double().log_softmax(-1)


def left_as_they_were(model: Any, inputs: Any, layer: int, image: Tensor) -> Tensor:
    """ln p of the next token where the layer gives image tokens out as it got them."""

    def keep(_: Any, args: Any, output: Tensor) -> Tensor:
        return torch.where(image[None, :, None], args[0], output)

    handle = model.model.language_model.layers[layer].register_forward_hook(keep)
    logits = model(**inputs).logits[0, -1]
    handle.remove()
    return torch.Tensor(logits).double().log_softmax(-1)


def cloud(one: Tensor, other: Tensor) -> float:
    """Mean cosine over all pairs of two tokens."""
    pairs = [cosines(a, b, dim=0) for i, a in enumerate(one) for j, b in enumerate(other) if one is not other or i < j]
    return float(torch.stack(pairs).mean())


def cka(one: Tensor, other: Tensor) -> float:
    one, other = one - one.mean(0), other - other.mean(0)
    return float((one.T @ other).norm() ** 2 / ((one.T @ one).norm() * (other.T @ other).norm()))


def depth_by_hand(model: Any, inputs: Any, image: Tensor, plain: tuple[list[Tensor], Tensor] | None) -> list[Numbers]:
    """A row for each depth; `plain` is None for the plain model itself."""
    stream, log_p = stream_by_hand(model, inputs)
    reference, token = (plain or (stream, log_p))[0], int((plain or (stream, log_p))[1].argmax())
    rows = []
    for depth, state in enumerate(stream):
        lens = model.lm_head(model.model.language_model.norm(state[-1].float())).double().log_softmax(-1)
        row = {
            "image_text": cloud(state[image], state[~image]),
            "lens_log_prob": float(lens[token]),
            "lens_rank": float((lens > lens[token]).sum()),
        }
        for kind, tokens in (("image", image), ("text", ~image)):
            own = state[tokens]
            row[f"{kind}_{kind}"] = cloud(own, own)
            if depth < LAYERS:
                row[f"{kind}_drift"] = float(cosines(own, stream[depth + 1][tokens]).mean())
            if plain is not None:
                row[f"{kind}_cosine"] = float(cosines(own, reference[depth][tokens]).mean())
                row[f"{kind}_cka"] = cka(own, reference[depth][tokens])
        if plain is None and depth < LAYERS:
            changed = left_as_they_were(model, inputs, depth, image)
            row["contribution"] = float((log_p.exp() * (log_p - changed)).sum())
            row["contribution_flips"] = float(changed.argmax() != log_p.argmax())
        rows.append(row)
    return rows


def held(found: pd.DataFrame, expected: list[Numbers], told: list[str]) -> None:
    """Equal in every column that is a number, missing where nothing is expected."""
    columns = [column for column in found.columns if column not in told]
    by_hand = pd.DataFrame(expected).reindex(columns=columns).astype(float)
    pd.testing.assert_frame_equal(
        found[columns].astype(float).reset_index(drop=True), by_hand, rtol=0, atol=2e-5, check_exact=False
    )


@torch.no_grad()
@pytest.mark.parametrize("queries", ["last", "question", "answer"])
def test_every_number_of_a_document_is_what_its_formula_says(
    queries: Literal["last", "question", "answer"], in_suite: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from plam_eval.model_wrappers.llava import PlamLlavaChat

    monkeypatch.setattr("plam_eval.evaluation.attend.run.conclude", lambda *_, **given: None)  # tables alone
    lm = PlamLlavaChat(pretrained=str(PAIR / "mllm"), device="cpu", dtype="float32")
    settings = Settings.read(load_spec("demo", {"base": str(PAIR / "base")}), list(WEIGHTS))
    depth = queries == "last"
    attend(lm, "gqa", tmp_path, settings, limit=2, queries=queries, depth=depth, show=0)
    attended = load(tmp_path)
    inputs, own, other = first_of_gqa(in_suite)
    image, plain = inputs["input_ids"][0] == IMAGE_TOKEN, None
    assert image.sum() == SIDE**2
    told = ["task", "doc_id", "cluster", "setting", "layer", "sinks", "depth"]
    no_sinks = {"sink_share": 0.0, "sink_share_of_image": 0.0}  # no token of the pair is one
    for setting in WEIGHTS:
        model = merged_by_hand(setting)
        by_hand = [
            measures_by_hand(rows, image, own, other) | no_sinks for rows in rows_by_hand(model, inputs, queries)
        ]
        of_setting = attended.measures[(attended.measures["doc_id"] == 0) & (attended.measures["setting"] == setting)]
        for _, seen in of_setting.groupby("sinks"):
            held(seen.sort_values("layer"), by_hand, told)
        if depth:
            assert attended.depth is not None
            streams = attended.depth[(attended.depth["doc_id"] == 0) & (attended.depth["setting"] == setting)]
            held(streams.sort_values("depth"), depth_by_hand(model, inputs, image, plain), told)
            plain = plain or stream_by_hand(model, inputs)
