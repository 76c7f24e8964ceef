from __future__ import annotations

import re
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoProcessor

from plam_eval.errors import InputError
from plam_eval.probing.decoder import ProbeError, vision_positions
from plam_eval.probing.token_grid import TILES, WHOLE, ImageTokens, check_grid, token_grids
from tests.helpers.mllm import Mllm
from tests.helpers.pico import FAMILIES

OTHERS = ("gemma3", "paligemma", "mistral3", "pixtral", "glm4v", "qwen3_vl_moe", "llava_next_video")
SIZES = ((120, 80), (84, 116), (200, 88), (74, 242))
MERGED = ("qwen2_vl", "qwen2_5_vl", "qwen3_vl", "qwen3_vl_moe", "glm4v")


@pytest.fixture
def local(mllm, pico, monkeypatch):
    """`local(family)`: a model whose tower mixes no patches, so that each feature is of its own pixels; large grids."""

    def get(family: str) -> Mllm:
        loaded = mllm(family)
        for name, module in loaded.model.named_modules():
            vision = re.search(r"vision|visual", name)
            if vision and re.search(r"attn\.(out_proj|proj)$|attention\.(out_proj|projection_layer|o_proj)$", name):
                monkeypatch.setattr(module, "forward", lambda hidden: torch.zeros_like(hidden))
        processor = AutoProcessor.from_pretrained(pico(family).mllm)
        images = processor.image_processor
        if family in MERGED:
            images.size = {"shortest_edge": 4 * 28 * 28, "longest_edge": 40 * 28 * 28}
        if family == "internvl":
            images.max_patches = 6
        return Mllm(family, loaded.model, processor)

    return get


def inputs_of(loaded: Mllm, *documents: list[Image.Image]):
    prompts = []
    for images in documents:
        content = [*({"type": "image"} for _ in images), {"type": "text", "text": "Where?"}]
        prompts.append(loaded.processor.apply_chat_template([{"role": "user", "content": content}], tokenize=False))
    loaded.processor.tokenizer.padding_side = "left"
    return dict(loaded.processor(text=prompts, images=[*documents], padding=True, return_tensors="pt"))


@torch.no_grad()
def features(loaded: Mllm, inputs):
    """What the decoder gets at every position: (documents, tokens, hidden size)."""
    taken = []
    handle = loaded.model.get_decoder().register_forward_pre_hook(
        lambda _, args, kwargs: taken.append(kwargs["inputs_embeds"]), with_kwargs=True
    )
    loaded.model(**{name: value for name, value in inputs.items() if name != "labels"})
    handle.remove()
    return taken[0]


def bright(size: tuple[int, int], square: tuple[int, int, int, int] = (0, 0, 0, 0)) -> Image.Image:
    image = Image.new("RGB", size, (90, 90, 90))
    image.paste((255, 255, 255), square)
    return image


def in_cell(tokens: ImageTokens, index: int) -> tuple[int, int, int, int]:
    left, top, right, bottom = (round(float(edge)) for edge in tokens.boxes[index])
    return left, top, right, bottom


def apart(tokens: ImageTokens, index: int) -> np.ndarray:
    """Which cells have nothing to do with one: resizing blurs over two pixels of the image that the tower sees."""
    (left, top, right, bottom), blur = tokens.boxes[index], 2 + 2 * max(tokens.size) / 28
    x0, y0, x1, y1 = tokens.boxes.T
    return (x1 <= left - blur) | (x0 >= right + blur) | (y1 <= top - blur) | (y0 >= bottom + blur) | ~tokens.placed


def misplaced(loaded: Mllm, tokens: ImageTokens) -> list[str]:
    """Paint each cell in turn: its token has to be the one of its plane that changes most, and none apart from it."""
    painted = [index for index in np.flatnonzero(tokens.placed) if in_cell(tokens, index) != (0, 0, 0, 0)]
    pictures = [bright(tokens.size, in_cell(tokens, index)) for index in painted]
    plain, *changed = features(loaded, inputs_of(loaded, [bright(tokens.size)], *([p] for p in pictures)))
    wrong = []
    for index, each in zip(painted, changed, strict=True):
        change = (each - plain)[tokens.positions].norm(dim=-1).numpy()
        same = tokens.plane == tokens.plane[index]
        if change[index] < 0.6 * change[same].max() or change[index] == 0:
            wrong.append(f"token {index} changes by {change[index]:.2f}, of its plane {change[same].max():.2f}")
        if (change[apart(tokens, index)] > 0.01 * change[index]).any():
            wrong.append(f"with token {index} change {np.flatnonzero(change > 0.01 * change[index])}")
    return wrong


def grid_of(loaded: Mllm, size: tuple[int, int]) -> ImageTokens:
    ((tokens,),) = token_grids(loaded.model, loaded.processor, inputs_of(loaded, [bright(size)]), [size])
    return tokens


@pytest.mark.parametrize("family", [*FAMILIES, *OTHERS])
def test_a_bright_cell_changes_its_own_token(family, local):
    loaded = local(family)
    for size in SIZES:
        assert misplaced(loaded, grid_of(loaded, size)) == []


@pytest.mark.parametrize("family", ["qwen2_5_vl", "internvl", "llava", "llava_next"])
def test_a_wrong_geometry_is_found_that_way(family, local):
    loaded, size = local(family), (200, 88)
    right = grid_of(loaded, size)
    assert misplaced(loaded, right) == []
    x0, y0, x1, y1 = right.boxes.T
    late = right.boxes.copy()
    late[right.placed] = np.roll(right.boxes[right.placed], 1, axis=0)
    for boxes in (
        np.stack([200 - x1, y0, 200 - x0, y1], 1),  # mirrored
        np.stack([y0 * 200 / 88, x0 * 88 / 200, y1 * 200 / 88, x1 * 88 / 200], 1),  # rows for columns
        late,  # by one token
    ):
        assert misplaced(loaded, replace(right, boxes=boxes))


def test_a_crop_is_known(local):
    """LLaVA-1.5 sees the middle square alone: what lies outside of it is in no cell."""
    loaded = local("llava")
    tokens = grid_of(loaded, (120, 80))
    assert tokens.boxes[:, 0].min() == 20 and tokens.boxes[:, 2].max() == 100
    strips = [(0, 0, 0, 0), (0, 0, 14, 80), (106, 0, 120, 80), (20, 0, 26, 80)]
    plain, left, right, inside = features(loaded, inputs_of(loaded, *([bright((120, 80), each)] for each in strips)))
    assert torch.equal(plain, left) and torch.equal(plain, right)
    changed = (plain != inside).any(-1)[tokens.positions].numpy()
    assert np.array_equal(changed, tokens.column == 0)


@pytest.mark.parametrize(
    ("family", "best", "rows_and_columns"),
    [
        ("llava_next", None, [(2, 6), (6, 2), (6, 6)]),
        ("llava_onevision", None, [(2, 6), (6, 2), (6, 6)]),
        ("llava_onevision", "anyres_max_2", [(1, 4), (4, 1), (2, 2)]),
    ],
)
def test_tiles_are_cut_back_to_the_image(family, best, rows_and_columns, local, monkeypatch):
    """On a canvas of three by three tiles, of which the image fills a strip; OneVision shrinks what is too large."""
    loaded = local(family)
    for owner in (loaded.model.config, loaded.processor.image_processor):
        monkeypatch.setattr(owner, "image_grid_pinpoints", [[84, 84]])
    if best:
        for owner in (loaded.model.config, loaded.processor):
            monkeypatch.setattr(owner, "vision_aspect_ratio", best)
    for size, expected in zip(((300, 100), (90, 270), (110, 110)), rows_and_columns, strict=True):
        tokens = grid_of(loaded, size)
        assert tokens.shape(WHOLE) == (2, 2) and tokens.shape(TILES) == expected
        assert misplaced(loaded, tokens) == []
        # What is left over of the image is less than a cell of the canvas.
        tiles = tokens.boxes[tokens.plane == TILES]
        reach = tiles[:, 2:].max(0) - tiles[:, :2].min(0)
        assert (reach > 0.8 * np.array(size)).all()


@pytest.mark.parametrize("family", [*FAMILIES, *OTHERS])
def test_images_of_a_batch_are_told_apart(family, local):
    """Two documents of unequal length, one of them with two images: each image's cells are of its own tokens."""
    loaded, several = local(family), family != "paligemma"
    documents = [[(120, 80)], [(84, 116), (112, 112)]] if several else [[(120, 80)], [(84, 116)]]
    images = [[bright(size) for size in sizes] for sizes in documents]
    inputs = inputs_of(loaded, *images)
    grids = token_grids(loaded.model, loaded.processor, inputs, [size for sizes in documents for size in sizes])
    assert [[tokens.size for tokens in each] for each in grids] == documents
    vision = vision_positions(loaded.model, inputs["input_ids"])
    plain = features(loaded, inputs)
    for number, own in enumerate(grids):
        positions = np.concatenate([tokens.positions for tokens in own])
        assert positions.tolist() == vision[number].nonzero()[:, 0].tolist()
        for image, tokens in enumerate(own):
            index = int(np.flatnonzero(tokens.plane == WHOLE)[-1])
            painted = [list(each) for each in images]
            painted[number][image] = bright(tokens.size, in_cell(tokens, index))
            change = (features(loaded, inputs_of(loaded, *painted)) - plain).norm(dim=-1).numpy()
            whole = tokens.positions[tokens.plane == WHOLE]
            assert change[number, tokens.positions[index]] > 0.6 * change[number, whole].max() > 0
            change[number, tokens.positions] = 0
            assert not change.any()


def test_several_images_lie_in_squares(mllm, monkeypatch):
    """OneVision pads each of several images of a prompt to a square, and sees it without tiles."""
    loaded = mllm("llava_onevision")
    monkeypatch.setattr(loaded.model.config.vision_config, "patch_size", 7)  # four rows; the tower itself does not run
    image, sizes = [loaded.model.config.image_token_id] * 17, [(40, 160), (160, 160)]
    inputs = {
        "input_ids": torch.tensor([[65, *image, 66, *image, 67]]),
        "image_sizes": torch.tensor([size[::-1] for size in sizes]),
        "batch_num_images": torch.tensor([2]),
    }
    ((first, second),) = token_grids(loaded.model, loaded.processor, inputs, sizes)
    assert first.shape(WHOLE) == second.shape(WHOLE) == (4, 4) and first.shape(TILES) == (0, 0)
    assert first.boxes[:4, [0, 2]].tolist() == [[0, 0], [0, 20], [20, 40], [40, 40]]
    assert first.boxes[::4, [1, 3]][:4].tolist() == [[0, 40], [40, 80], [80, 120], [120, 160]]
    assert second.boxes[:4, [0, 2]].tolist() == [[0, 40], [40, 80], [80, 120], [120, 160]]
    assert first.plane[-1] == -1 and second.positions[0] == 19


def test_a_class_token_is_of_no_place(mllm, monkeypatch):
    loaded = mllm("llava")
    monkeypatch.setattr(loaded.processor, "vision_feature_select_strategy", "full")
    tokens = grid_of(loaded, (56, 56))
    assert tokens.plane.tolist() == [-1, 0, 0, 0, 0] and np.isnan(tokens.boxes[0]).all()


def test_values_lie_as_the_image_does(local):
    tokens = grid_of(local("internvl"), (120, 80))
    assert tokens.shape(TILES) == (4, 6) and tokens.shape(WHOLE) == (2, 2)
    left = tokens.image(tokens.boxes[None, :, 0], TILES)
    assert left.shape == (1, 4, 6) and np.allclose(left[0], np.arange(6) * 20)


def test_what_is_not_known_is_refused(mllm):
    for family in ("idefics3", "smolvlm"):
        with pytest.raises(ProbeError, match=f"family {family}, whose layout of image tokens is not known"):
            check_grid(mllm(family).model)
    check_grid(mllm("qwen3_vl").model)


@pytest.mark.parametrize("family", FAMILIES)
def test_sizes_that_are_not_those_of_the_images_are_refused(family, local):
    loaded = local(family)
    inputs = inputs_of(loaded, [bright((120, 80))], [bright((84, 116))])

    def grids(*sizes, **more):
        return token_grids(loaded.model, loaded.processor, {**inputs, **more}, sizes)

    assert len(grids((120, 80), (84, 116))) == 2
    with pytest.raises(ProbeError, match=r"found .* expected"):
        grids((120, 80))
    with pytest.raises(ProbeError, match=r"found .* expected"):
        grids((120, 80), (84, 116), (84, 116))
    with pytest.raises(ProbeError, match="place of video tokens is not worked out"):
        grids((120, 80), (84, 116), pixel_values_videos=torch.zeros(1))
    for size in ((120,), (0, 80), (120.0, 80)):
        with pytest.raises(InputError, match=r"expected \(width, height\) in pixels"):
            grids(size, (84, 116))


def test_inputs_without_what_tells_the_grid_are_refused(local):
    loaded = local("qwen2_vl")
    inputs = inputs_of(loaded, [bright((120, 80))])
    del inputs["image_grid_thw"]
    with pytest.raises(ProbeError, match="found no image_grid_thw in inputs"):
        token_grids(loaded.model, loaded.processor, inputs, [(120, 80)])


def test_processors_whose_geometry_is_not_known_are_refused(local, monkeypatch):
    loaded = local("llava")
    inputs = inputs_of(loaded, [bright((120, 80))])
    images = loaded.processor.image_processor
    monkeypatch.setattr(images, "do_pad", True)
    with pytest.raises(ProbeError, match="pads images"):
        token_grids(loaded.model, loaded.processor, inputs, [(120, 80)])
    monkeypatch.setattr(images, "do_pad", None)
    monkeypatch.setattr(images, "size", {"max_height": 28, "max_width": 28})
    with pytest.raises(ProbeError, match="expected a shortest edge, or both sides"):
        token_grids(loaded.model, loaded.processor, inputs, [(120, 80)])
    gemma = local("gemma3")
    monkeypatch.setattr(gemma.processor.image_processor, "do_pan_and_scan", True)
    with pytest.raises(ProbeError, match="pan and scan"):
        token_grids(gemma.model, gemma.processor, inputs_of(gemma, [bright((56, 56))]), [(56, 56)])
