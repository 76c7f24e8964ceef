"""Depth measures on a toy decoder whose layers have known roles, and on every family against plain definitions."""

from __future__ import annotations

import math
import weakref
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from plam_eval.probing.decoder import ProbeError, decoder_layers, final_norm, output_head
from plam_eval.probing.depth import describe, hidden_states, layer_contribution, similarity
from plam_eval.probing.masking import mask_vision
from tests.helpers.mllm import Mllm, backend, hooks, mixed, picture
from tests.helpers.pico import FAMILIES, OTHER_FAMILIES

SIZE = 8
IMAGE = 1
"""Id of an image token; any other id k is a text token, whose embedding is the k-th unit vector."""
Role = Callable[[Tensor, Tensor], Tensor]


def still(hidden: Tensor, image: Tensor) -> Tensor:
    return hidden


def copy(hidden: Tensor, image: Tensor) -> Tensor:
    """Adds ten times the mean image token to the last token."""
    mean = (hidden * image[..., None]).sum(1) / image.sum(-1, keepdim=True).clamp(min=1)
    return torch.cat([hidden[:, :-1], hidden[:, -1:] + 10 * mean[:, None]], 1)


def turn(degrees: float, first: int = 5, second: int = 6) -> Role:
    """Rotates image tokens in the plane of two dimensions."""

    def role(hidden: Tensor, image: Tensor) -> Tensor:
        angle = math.radians(degrees)
        rotation = torch.eye(SIZE)
        rotation[first, first] = rotation[second, second] = math.cos(angle)
        rotation[second, first], rotation[first, second] = math.sin(angle), -math.sin(angle)
        return torch.where(image[..., None], hidden @ rotation.T, hidden)

    return role


class _Layer(nn.Module):
    def __init__(self, role: Role) -> None:
        super().__init__()
        self.role = role

    def forward(self, hidden: Tensor, image: Tensor) -> Tensor:
        return self.role(hidden, image)


class _Decoder(nn.Module):
    def __init__(self, roles: tuple[Role, ...]) -> None:
        super().__init__()
        self.layers = nn.ModuleList(_Layer(role) for role in roles)
        self.norm = nn.RMSNorm(SIZE, elementwise_affine=False)

    def forward(self, inputs_embeds: Tensor, image: Tensor) -> Any:
        hidden = inputs_embeds
        for layer in self.layers:
            hidden = layer(hidden, image=image)
        return SimpleNamespace(last_hidden_state=self.norm(hidden))


class Toy(nn.Module):
    """An MLLM of as many layers as roles. Its head reads token k off dimension k."""

    def __init__(self, *roles: Role) -> None:
        super().__init__()
        self.config = SimpleNamespace(image_token_id=IMAGE, num_hidden_layers=len(roles))
        self.config.get_text_config = lambda decoder: self.config
        self.decoder, self.head, self.scale = _Decoder(roles), nn.Linear(SIZE, SIZE, bias=False), 1.0
        nn.init.eye_(self.head.weight)
        self.requires_grad_(False)

    def get_decoder(self) -> nn.Module:
        return self.decoder

    def get_output_embeddings(self) -> nn.Module:
        return self.head

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        pixel_values: Tensor | None = None,
        use_cache: bool | None = None,
    ) -> Any:
        embeddings, image = torch.eye(SIZE)[input_ids], input_ids == IMAGE
        if pixel_values is not None:
            embeddings[image] = pixel_values
        hidden = self.decoder(inputs_embeds=embeddings, image=image).last_hidden_state
        return SimpleNamespace(logits=self.head(hidden) * self.scale)


def unit(index: int) -> Tensor:
    return torch.eye(SIZE)[index]


def prompt(*pixels: Tensor) -> dict[str, Tensor]:
    """Text 2, an image of three tokens or of those given, text 3, text 4."""
    image = pixels or (unit(5),) * 3
    return {"input_ids": torch.tensor([[2, *[IMAGE] * len(image), 3, 4]]), "pixel_values": torch.stack(image)}


def close(got: Tensor, expected: list[float]) -> None:
    torch.testing.assert_close(got, torch.tensor([expected], dtype=torch.float32), atol=1e-5, rtol=0, equal_nan=True)


# ---- what the figures mean -------------------------------------------------------------------------------------------


def test_drift_is_what_a_layer_turns_tokens_by():
    found = describe(Toy(still, turn(60), copy), prompt())
    assert found.image_tokens.tolist() == [3] and found.text_tokens.tolist() == [3]
    close(found.image_drift, [1, 0.5, 1])
    close(found.text_drift, [1, 1, (1 + 1 + 101**-0.5) / 3])  # the last of three texts becomes e4 + 10 of the image


def test_clouds_apart_and_in_one_cone():
    def meet(hidden: Tensor, image: Tensor) -> Tensor:
        return torch.where(image[..., None], hidden, hidden + 3 * unit(5))

    found = describe(Toy(still, meet), prompt())
    close(found.image_text, [0, 0, 3 * 10**-0.5])
    close(found.image_image, [1, 1, 1])
    close(found.text_text, [0, 0, 0.9])
    spread = describe(Toy(still), prompt(unit(5), unit(6), -unit(5)))
    close(spread.image_image, [-1 / 3, -1 / 3])


def test_the_lens_finds_the_answer_where_a_layer_copies_it_into_the_last_token():
    model = Toy(still, copy, still, turn(90))
    lens = describe(model, prompt()).lens
    assert lens is not None
    assert lens.answer.tolist() == [5] and lens.decided.tolist() == [2]
    assert lens.top.tolist() == [[4, 4, 5, 5, 5]] and lens.rank.tolist() == [[1, 1, 0, 0, 0]]
    own = model(**prompt()).logits[0, -1].log_softmax(-1)
    assert lens.log_prob[0, -1] == pytest.approx(float(own[5])) and lens.log_prob[0, 0] < lens.log_prob[0, 2]
    other = describe(model, prompt(), answer=torch.tensor([4])).lens
    assert other is not None and other.decided.tolist() == [5] and other.rank.tolist() == [[0, 0, 1, 1, 1]]
    assert describe(model, prompt(), lens=False).lens is None


def test_a_layer_contributes_by_what_is_read_of_its_work_not_by_how_much_it_moves():
    """The first layer turns the image before it is copied, the third as far but after nobody reads it."""
    model = Toy(turn(90), copy, turn(90), still)
    close(describe(model, prompt()).image_drift, [0, 1, 0, 1])
    found = layer_contribution(model, prompt())
    assert found.layers == (0, 1, 2, 3)
    assert found.flips.tolist() == [[True, False, False, False]]
    assert found.kl[0, 0] > 1 and not found.kl[0, 1:].any()
    plain = model(**prompt()).logits[0, -1].log_softmax(-1)
    without = Toy(still, copy, turn(90), still)(**prompt()).logits[0, -1].log_softmax(-1)
    assert found.kl[0, 0] == pytest.approx(float((plain.exp() * (plain - without)).sum()))
    some = layer_contribution(model, prompt(), [2, 0])
    assert some.layers == (2, 0) and torch.equal(some.kl, found.kl[:, [2, 0]])


def test_two_settings_are_alike_up_to_the_layer_that_differs():
    pixels = torch.randn(6, SIZE, generator=torch.Generator().manual_seed(0))
    inputs = prompt(*pixels)
    reference = hidden_states(Toy(still, still, still), inputs)
    assert len(reference.depths) == 4

    same = similarity(Toy(still, still, still), inputs, reference)
    turned = similarity(Toy(still, turn(90), turn(90, 0, 7)), inputs, reference)
    for found in (same, turned):
        close(found.text_cosine, [1, 1, 1, 1])
        close(found.text_cka, [1, 1, 1, 1])
        close(found.image_cka, [1, 1, 1, 1])  # all image tokens turned alike still lie to each other as before
    close(same.image_cosine, [1, 1, 1, 1])
    close(turned.image_cosine[:, :2], [1, 1])
    one = nn.functional.cosine_similarity(pixels, turn(90)(pixels[None], torch.ones(1, 6, dtype=torch.bool))[0]).mean()
    assert turned.image_cosine[0, 2] == pytest.approx(float(one)) and one < 0.9

    def shuffle(hidden: Tensor, image: Tensor) -> Tensor:
        return torch.where(image[..., None], hidden.flip(1).roll(1, 1), hidden)

    shuffled = similarity(Toy(still, shuffle, still), inputs, reference)
    assert shuffled.image_cka[0, 1] == pytest.approx(1) and shuffled.image_cka[0, 2] < 0.9
    few = similarity(Toy(still), prompt(unit(5)), hidden_states(Toy(still), prompt(unit(5))))
    close(few.image_cka, [math.nan, math.nan])
    close(few.image_cosine, [1, 1])


@pytest.mark.parametrize("count", [3, 20])
def test_cka_is_that_of_both_gram_matrices(count):
    generator = torch.Generator().manual_seed(1)
    one, other = (torch.randn(count, SIZE, generator=generator) * 1e4 + 30 for _ in range(2))
    inputs = prompt(*one)
    found = similarity(Toy(still), prompt(*other), hidden_states(Toy(still), inputs)).image_cka[0, 0]
    x, y = ((each - each.mean(0)).double() for each in (one, other))
    centred = ((x @ x.T) * (y @ y.T)).sum() / ((x @ x.T).norm() * (y @ y.T).norm())
    assert float(found) == pytest.approx(float(centred), abs=1e-5) and found < 0.99


def test_padding_is_neither_and_a_document_without_an_image_has_no_figures_of_one():
    model = Toy(turn(60), copy)
    alone = prompt()
    both = {
        "input_ids": torch.tensor([[0, 0, *alone["input_ids"][0].tolist()], [0, 0, 0, 0, 0, 2, 3, 4]]),
        "attention_mask": torch.tensor([[0, 0, 1, 1, 1, 1, 1, 1], [0] * 5 + [1] * 3]),
        "pixel_values": alone["pixel_values"],
    }
    one, two = describe(model, alone), describe(model, both)
    for name in ("image_tokens", "text_tokens", "image_drift", "text_drift", "image_text", "image_image", "text_text"):
        torch.testing.assert_close(getattr(two, name)[:1], getattr(one, name))
    assert two.image_tokens.tolist() == [3, 0] and two.text_tokens.tolist() == [3, 3]
    assert two.image_drift[1].isnan().all() and two.image_text[1].isnan().all() and not two.text_drift[1].isnan().any()
    contributed = layer_contribution(model, both)
    assert contributed.kl[0, 0] > 0 and contributed.kl[1].isnan().all()
    text = {"input_ids": torch.tensor([[2, IMAGE, 3]])}  # a placeholder id in a call without pixels is text
    assert describe(model, text).image_tokens.tolist() == [0]


def test_no_more_than_two_streams_are_held_at_a_time():
    """Of a decoder of many layers, each of which makes a new stream."""
    model, alive, held = Toy(*[turn(1)] * 12), [], []

    def look(_, args, kwargs):
        alive.append(weakref.ref(args[0]))
        held.append(sum(each() is not None for each in alive))

    for layer in model.decoder.layers:
        layer.register_forward_pre_hook(look, with_kwargs=True)
    describe(model, prompt())
    assert len(held) == 12 and max(held) <= 2


# ---- every family ----------------------------------------------------------------------------------------------------


def naive_cosines(one: Tensor, other: Tensor) -> Tensor:
    return nn.functional.cosine_similarity(one[:, None], other[None], dim=-1)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_is_described_as_its_stream_says(family, mllm):
    loaded = mllm(family)
    inputs = mixed(loaded)
    logits = (
        loaded.model(**inputs).logits[:, -1].log_softmax(-1)
    )  # at its first call transformers adds hooks of its own
    before = hooks(loaded)
    found, states = describe(loaded.model, inputs), hidden_states(loaded.model, inputs)
    assert hooks(loaded) == before
    assert len(states.depths) == loaded.layers + 1 and found.image_drift.shape == (4, loaded.layers)
    real = inputs["attention_mask"].bool()
    assert torch.equal(found.image_tokens + found.text_tokens, real.sum(-1)) and found.image_tokens[2] == 0
    vision = torch.isin(inputs["input_ids"], torch.tensor(_image_id(loaded)))
    for document in (0, 1):
        image, text = vision[document], real[document] & ~vision[document]
        for depth in range(loaded.layers):
            here, there = (states.depths[at][document] for at in (depth, depth + 1))
            for kind, name in ((image, "image"), (text, "text")):
                drift = nn.functional.cosine_similarity(here[kind], there[kind], dim=-1).mean()
                torch.testing.assert_close(getattr(found, f"{name}_drift")[document, depth], drift)
                cosines = naive_cosines(here[kind], here[kind])
                off = cosines[~torch.eye(len(cosines), dtype=torch.bool)].mean()
                torch.testing.assert_close(getattr(found, f"{name}_{name}")[document, depth], off)
            across = naive_cosines(here[image], here[text]).mean()
            torch.testing.assert_close(found.image_text[document, depth], across)

    assert found.lens is not None and found.lens.answer.tolist() == logits.argmax(-1).tolist()
    torch.testing.assert_close(found.lens.log_prob[:, -1], logits.amax(-1), atol=1e-5, rtol=0)
    assert not found.lens.rank[:, -1].any() and (found.lens.decided <= loaded.layers).all()
    norm, head = final_norm(loaded.model), output_head(loaded.model)
    middle = head(norm(states.depths[2][:, -1])).log_softmax(-1)
    torch.testing.assert_close(
        found.lens.log_prob[:, 2], middle.gather(-1, found.lens.answer[:, None])[:, 0], atol=1e-5, rtol=0
    )


def _image_id(loaded: Mllm) -> int:
    config = loaded.model.config
    return int(getattr(config, "image_token_id", None) or config.image_token_index)


@pytest.mark.slow
@pytest.mark.parametrize("family", OTHER_FAMILIES)
def test_families_without_a_wrapper_are_described_too(family, mllm):
    loaded = mllm(family)
    inputs = loaded.batch([picture(0), " is it ", picture(1), " or red?"])
    found, contributed = describe(loaded.model, inputs), layer_contribution(loaded.model, inputs)
    same = similarity(loaded.model, inputs, hidden_states(loaded.model, inputs))
    assert found.lens is not None and not found.lens.rank[:, -1].any()
    assert found.image_tokens > 1 and found.image_drift.min() > 0 and found.image_drift.max() < 1
    assert contributed.kl[:, :-1].min() > 1e-6 and contributed.kl[:, -1].max() < 1e-6
    for each in (same.image_cosine, same.text_cosine, same.image_cka, same.text_cka):
        torch.testing.assert_close(each, torch.ones_like(each), atol=1e-4, rtol=0)


@pytest.mark.parametrize("family", [family for family in FAMILIES if family != "qwen3_vl"])
def test_the_stream_is_the_one_that_transformers_gives(family, mllm):
    """Apart from its last, which is normed; what decoders add to the stream between layers, it leaves out."""
    loaded = mllm(family)
    inputs = mixed(loaded)
    real = inputs["attention_mask"].bool()
    theirs = loaded.model(**inputs, output_hidden_states=True).hidden_states
    ours = hidden_states(loaded.model, inputs).depths
    for one, other in zip(ours[:-1], theirs[:-1], strict=True):
        assert torch.equal(one[real], other[real])
    normed = final_norm(loaded.model)(ours[-1])
    torch.testing.assert_close(normed[real], theirs[-1][real], atol=1e-5, rtol=0)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("family", FAMILIES)
def test_layer_contribution_of_every_family_is_that_of_the_whole_model(family, attention, mllm):
    loaded = mllm(family)
    inputs = mixed(loaded)
    loaded.model(**inputs)  # at its first call transformers adds hooks of its own
    before = hooks(loaded)
    vision = torch.isin(inputs["input_ids"], torch.tensor(_image_id(loaded)))
    with backend(loaded, attention):
        found = layer_contribution(loaded.model, inputs)
        assert hooks(loaded) == before
        plain = loaded.model(**inputs).logits[:, -1].double().log_softmax(-1)
        for index, layer in enumerate(decoder_layers(loaded.model)):
            run = layer.forward

            def leaving(hidden, *args, run=run, **kwargs):
                return torch.where(vision[..., None], hidden, run(hidden, *args, **kwargs))

            layer.forward = leaving
            other = loaded.model(**inputs).logits[:, -1].double().log_softmax(-1)
            del layer.forward
            kl = (plain.exp() * (plain - other)).sum(-1)
            torch.testing.assert_close(found.kl[[0, 1, 3], index], kl[[0, 1, 3]].float(), atol=1e-5, rtol=0)
            assert torch.equal(found.flips[:, index], plain.argmax(-1) != other.argmax(-1))
    assert found.kl[2].isnan().all()
    assert found.kl[:2, :-1].min() > 1e-6 and found.kl[:2, -1].max() < 1e-6  # nobody reads what the last layer makes


@pytest.mark.parametrize("family", FAMILIES)
def test_a_changed_layer_of_every_family_shows_from_its_depth_on(family, mllm):
    loaded = mllm(family)
    inputs = mixed(loaded)
    reference = hidden_states(loaded.model, inputs)
    handle = decoder_layers(loaded.model)[2].register_forward_hook(
        lambda _, args, output: output + torch.linspace(-0.5, 0.5, output.shape[-1])
    )
    found = similarity(loaded.model, inputs, reference)
    handle.remove()
    for each in (found.image_cosine, found.text_cosine, found.image_cka, found.text_cka):
        assert each.shape == (4, loaded.layers + 1)
        known = each[[0, 1]]  # a single token has no CKA
        torch.testing.assert_close(known[:, :3], torch.ones_like(known[:, :3]), atol=1e-4, rtol=0)
    assert max(float(found.image_cosine[[0, 1], 3].max()), float(found.text_cosine[:, 3].max())) < 0.999
    assert found.image_cosine[2].isnan().all()


def test_a_masked_model_can_be_described(mllm):
    loaded = mllm("llava")
    inputs = loaded.batch(["Look: ", picture(0), " is it red?"])
    plain = describe(loaded.model, inputs)
    with mask_vision(loaded.model, 2, "last"):
        masked = describe(loaded.model, inputs)
        with pytest.raises(ProbeError, match="inside mask_vision already"):
            layer_contribution(loaded.model, inputs)
    torch.testing.assert_close(masked.image_drift, plain.image_drift)
    torch.testing.assert_close(masked.text_drift[:, :2], plain.text_drift[:, :2])
    assert (masked.text_drift[:, 2] - plain.text_drift[:, 2]).abs().min() > 1e-6


# ---- what is refused -------------------------------------------------------------------------------------------------


def test_what_cannot_be_described_is_refused_with_what_was_looked_for(mllm):
    model, inputs = Toy(turn(60), copy), prompt()
    padded = {**inputs, "attention_mask": torch.tensor([[1, 1, 1, 1, 1, 0]])}
    with pytest.raises(ProbeError, match="expected prompts padded on the left"):
        describe(model, padded)
    with pytest.raises(ProbeError, match=r"answer is \[8\]; expected a token id from 0 to 7 for each of 1 documents"):
        describe(model, inputs, answer=torch.tensor([8]))
    with pytest.raises(ProbeError, match="inputs hold inputs_embeds; expected input_ids"):
        describe(model, {"inputs_embeds": torch.zeros(1, 2, SIZE)})
    wrong: list[Any] = [[2], [-1], [0.5], []]
    for layers in wrong:
        with pytest.raises(ProbeError, match=r"are not of Toy; expected integers from 0 to 1"):
            layer_contribution(model, inputs, layers)
    reference = hidden_states(model, inputs)
    with pytest.raises(ProbeError, match=r"other than the .* given; expected the same prompts"):
        similarity(model, prompt(unit(5)), reference)
    with pytest.raises(ProbeError, match="the reference has 2 layers, Toy has 1"):
        similarity(Toy(still), inputs, reference)

    model.scale = 0.5
    for measure in (describe, layer_contribution):
        with pytest.raises(ProbeError, match=r"logits .* away from the model's own.* It caps or scales them"):
            measure(model, inputs)
    assert describe(model, inputs, lens=False).image_drift.shape == (1, 2)
    assert all(not module._forward_hooks and not module._forward_pre_hooks for module in model.modules())


def test_decoders_whose_layers_are_passed_by_or_repeated_are_refused(monkeypatch):
    model = Toy(still, still)
    run, layers = model.decoder.layers[0].forward, model.decoder.layers
    layers[0].forward = lambda hidden, image: layers[1](run(hidden, image), image=image)
    with pytest.raises(ProbeError, match=r"passed the depths \[0, 1, 2, 1, 2\] of its 2 decoder layers"):
        describe(model, prompt())
    model = Toy(still)
    model.decoder.norm, model.decoder.strange = None, nn.Identity()
    with pytest.raises(
        ProbeError, match=r"_Decoder has layers, .*strange; expected a norm behind the layers, named norm or"
    ):
        final_norm(model)
    monkeypatch.setattr(model, "get_output_embeddings", lambda: None)
    with pytest.raises(ProbeError, match="Toy has no output embeddings"):
        output_head(model)
