"""The answers of a multimodal LLM under many merges at once.

`generate_all_merges` gives what `merge_in_place(model, spec)` and `model.generate` would give for each of several
specs, and for the plain model, in one generation:

- images are encoded once;
- in the prompt, merges part where their weights part: below the first layer in which two of them differ they share one
  row of hidden states and keys. Merges of layers 24 to 31 of 32 cost a quarter of a prompt each;
- the new tokens of all merges are decoded as one batch: layers that no merge changes run once for all rows, and in the
  others each row is multiplied with the weights of its merge.

Meanwhile the merged tensors of all specs are in memory, and the document's keys and values once for each.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import GenerationConfig, LogitsProcessorList, StoppingCriteriaList

from plam_eval.decoding.greedy import check_call, check_settings, document_dim, of_rows, own_stop_strings
from plam_eval.errors import InputError
from plam_eval.merging.checkpoint import Checkpoint
from plam_eval.merging.merge import is_merged, merged_values
from plam_eval.probing.decoder import ProbeError, cache_in, decoder, decoder_layers
from plam_eval.probing.masking import claimed
from plam_eval.spec import PlateauSpec

_PER_DOCUMENT = ("attention_mask", "position_embeddings", "position_ids")
"""What a decoder layer is given per document, besides hidden states."""


@dataclass(frozen=True, eq=False)
class _Variants:
    """The different weights that one linear layer has among several merges: (weight, bias), and which each spec has."""

    weights: list[tuple[Tensor, Tensor | None]]
    of_spec: list[int]


@dataclass(frozen=True, eq=False)
class Merges:
    """Several merges of one loaded, plain model, held beside it.

    Attributes:
        specs: the merges; None is the plain model.
        nbytes: size of the merged tensors held.
        decoder: the decoder layers of the model that they were made of.
        layers: for each decoder layer, the variants of the linear layers in it that some merge changes.
    """

    specs: tuple[PlateauSpec | None, ...]
    nbytes: int
    decoder: nn.ModuleList
    layers: list[dict[nn.Linear, _Variants]]

    @classmethod
    def of(
        cls,
        model: nn.Module,
        specs: Sequence[PlateauSpec | None],
        *,
        checkpoint: str | Path | Checkpoint | None = None,
    ) -> Merges:
        """Work out every merged tensor; one that several specs merge alike is held once. The model stays plain.

        Args:
            model: an HF MLLM, not merged.
            specs: the merges; None is the plain model.
            checkpoint: as for `merge_in_place`.

        Raises:
            InputError: no spec was given.
            MergeError: as `merge_in_place`.
            ProbeError: a merged model, or tensors that no `nn.Linear` holds.
        """
        if not specs:
            raise InputError("specs is empty; expected at least one")
        if is_merged(model):
            raise ProbeError(f"{type(model).__name__} is merged; expected the plain model: merge_in_place(model, None)")
        held: dict[tuple[str, str], Tensor] = {}  # (recipe, parameter name) -> value
        values: list[dict[str, Tensor]] = []
        for spec in specs:
            if spec is None or spec.is_plain:
                values.append({})
                continue
            values.append(merged_values(model, spec, checkpoint=checkpoint, computed=held))
        modules = dict(model.named_modules())
        changed = {name.rpartition(".")[0] for each in values for name in each}
        variants: dict[nn.Module, _Variants] = {}
        for name in changed:
            module = modules[name]
            if type(module) is not nn.Linear:
                raise ProbeError(f"{name} is a {type(module).__name__}; expected an nn.Linear")
            variants[module] = _variants(module, name, values)
        decoded = decoder_layers(model)
        layers: Any = [{m: variants[m] for m in layer.modules() if m in variants} for layer in decoded]
        nbytes = sum(value.nbytes for value in held.values())
        return cls(tuple(specs), nbytes, decoded, layers)

    @contextmanager
    def applied(self, spec: int) -> Iterator[None]:
        """While it lasts, the model has the weights of one of the merges: no tensor is copied.

        For calls that `generate_all_merges` is none of. Not to be entered twice, nor while the model is merged.

        Args:
            spec: its number in `specs`.
        """
        before: list[tuple[nn.Linear, Tensor, Tensor | None]] = []
        try:
            for layer in self.layers:
                for module, variants in layer.items():
                    before.append((module, module.weight.data, None if module.bias is None else module.bias.data))
                    weight, bias = variants.weights[variants.of_spec[spec]]
                    module.weight.data = weight.data
                    if module.bias is not None and bias is not None:
                        module.bias.data = bias.data
            yield
        finally:
            for module, own_weight, own_bias in before:
                module.weight.data = own_weight
                if module.bias is not None and own_bias is not None:
                    module.bias.data = own_bias


def _variants(module: nn.Linear, name: str, values: Sequence[dict[str, Tensor]]) -> _Variants:
    numbers: dict[tuple[int, int], int] = {}
    weights: list[tuple[Tensor, Tensor | None]] = []
    of_spec = []
    for each in values:
        pair = each.get(f"{name}.weight", module.weight), each.get(f"{name}.bias", module.bias)
        key = id(pair[0]), id(pair[1])
        if key not in numbers:
            numbers[key] = len(weights)
            weights.append(pair)
        of_spec.append(numbers[key])
    return _Variants(weights, of_spec)


@dataclass(frozen=True, eq=False)
class MergeAnswers:
    """Greedy answers of one batch of documents under each merge.

    Attributes:
        tokens: (specs, documents, new tokens) int64; after its end an answer is padded to the longest.
        lengths: (specs, documents) int64; tokens of each answer, its end token among them.
    """

    tokens: Tensor
    lengths: Tensor


class Watch:
    """What is looked at while merges are answered together; this one looks at nothing."""

    def prompt(self, inputs: Mapping[str, Any], shared: Sequence[Sequence[int]]) -> AbstractContextManager[Any]:
        """Around the call of the model that runs the prompt.

        Args:
            inputs: of that call, a row for each document.
            shared: filled while it lasts, for each decoder layer: which of the rows that the layer runs of a document a
                spec has. They lie by that number, and within one by document.
        """
        return nullcontext()

    def step(self, places: Tensor) -> AbstractContextManager[Any]:
        """Around each call of the model on one new token of the answers that are not at their end.

        Args:
            places: (rows,) int64; spec * documents + document of each row of the call.
        """
        return nullcontext()


@torch.no_grad()
def generate_all_merges(model: nn.Module, merges: Merges, **generate_kwargs: Any) -> MergeAnswers:
    """What `model.generate(**generate_kwargs)` answers under each merge.

    Decoding is greedy and otherwise that of `generate`: lengths, end tokens, logits processors, stop strings and
    stopping criteria of the call and of the generation config, which must keep no state between calls.

    Equal token for token in float32, as far as tests go. Sums may be rounded in another order, as between batch sizes,
    so that two tokens which the model holds all but equally likely may change places; in lower precision that is less
    rare.

    Args:
        model: the model that `merges` was made of.
        merges: as `Merges.of` gives them.
        generate_kwargs: as for `model.generate`, prompt included; batches padded on the left.

    Raises:
        ProbeError: for a model or settings it cannot answer for.
    """
    return generate_watched(model, merges, Watch(), generate_kwargs)


@torch.no_grad()
def generate_watched(
    model: nn.Module, merges: Merges, watch: Watch, generate_kwargs: Mapping[str, Any]
) -> MergeAnswers:
    """What `generate_all_merges` answers, while somebody looks on.

    Args:
        model: as for `generate_all_merges`.
        merges: as for `generate_all_merges`.
        watch: who looks on.
        generate_kwargs: as for `generate_all_merges`.

    Raises:
        ProbeError: as `generate_all_merges`.
    """
    if is_merged(model):
        raise ProbeError(f"{type(model).__name__} was merged since; expected the plain model that Merges.of was given")
    if merges.decoder is not decoder_layers(model):
        raise ProbeError(f"{type(model).__name__} is not the model that Merges.of was given")
    check_call("generate_all_merges", generate_kwargs)
    with claimed(model, "generate_all_merges"):
        answers: MergeAnswers = model.generate(  # type: ignore[operator]
            **own_stop_strings(model, generate_kwargs), custom_generate=partial(_generate, merges, watch)
        )
    return answers


def _generate(
    merges: Merges,
    watch: Watch,
    model: Any,
    input_ids: Tensor,
    logits_processor: LogitsProcessorList,
    stopping_criteria: StoppingCriteriaList,
    generation_config: GenerationConfig,
    **model_kwargs: Any,
) -> MergeAnswers:
    """`generate`'s greedy loop over (spec, document) rows in place of documents. Called by `generate` itself."""
    check_settings("generate_all_merges", generation_config, model_kwargs)
    documents, device = input_ids.shape[0], input_ids.device
    pads = any(hasattr(criterion, "eos_token_id") for criterion in stopping_criteria)
    if not pads and documents > 1:
        raise ProbeError("several documents without an end token; pass eos_token_id=, or one document at a time")
    padding = generation_config._pad_token_tensor
    rows = _Rows(model, merges, documents)
    inputs = model.prepare_inputs_for_generation(input_ids, is_first_iteration=True, **model_kwargs)
    with rows.weights():
        with rows.prefilling(), watch.prompt(inputs, rows.shared_below):
            outputs = model(**inputs, return_dict=True)
        logits = outputs.logits[:, -1].to(copy=True, dtype=torch.float32, device=device)
        logits = logits[rows.finish_prompt(cache_in(outputs)[1]).to(device)]
        model_kwargs = model._update_model_kwargs_for_generation(outputs, model_kwargs)
        count = len(merges.specs) * documents
        model_kwargs = of_rows(model_kwargs, torch.arange(count, device=device) % documents, documents)
        del outputs
        ids = input_ids.repeat(len(merges.specs), 1)
        places = torch.arange(count, device=device)  # of the rows that are still being written
        answers: list[Tensor] = []
        lengths = torch.zeros(count, dtype=torch.long, device=device)
        while True:
            chosen = _processed(logits_processor, ids, logits, places, documents).argmax(-1)
            answers.append(ids.new_zeros(count).index_copy_(0, places, chosen))
            ids = torch.cat([ids, answers[-1][:, None]], dim=-1)
            lengths[places] += 1
            going = ~stopping_criteria(ids[places], None)
            if not bool(going.any()):
                break
            if not bool(going.all()):
                kept = going.nonzero()[:, 0]
                places = places[kept]
                model_kwargs = of_rows(model_kwargs, kept, len(going))
                rows.select(kept, cache_in(model_kwargs)[1])
            inputs = model.prepare_inputs_for_generation(ids[places], next_sequence_length=1, **model_kwargs)
            with watch.step(places):
                outputs = model(**inputs, return_dict=True)
            model_kwargs = model._update_model_kwargs_for_generation(outputs, model_kwargs)
            logits = outputs.logits[:, -1].to(copy=True, dtype=torch.float32, device=device)
            del outputs
    tokens = torch.stack(answers, dim=-1)
    ended = torch.arange(tokens.shape[1], device=device) >= lengths[:, None]
    if bool(ended.any()):
        if padding is None:
            raise ProbeError("answers end at different lengths and there is no pad token; pass pad_token_id=")
        tokens = tokens.masked_fill(ended, int(padding))
    shape = len(merges.specs), documents
    return MergeAnswers(tokens.unflatten(0, shape), lengths.unflatten(0, shape))


def _processed(processor: LogitsProcessorList, ids: Tensor, logits: Tensor, places: Tensor, documents: int) -> Tensor:
    """The logits of the rows still being written, as the processors leave them.

    Processors may hold something for each document of the batch that `generate` was given, so they are called for each
    spec in turn, on all documents. What they make of a finished answer is dropped.

    Args:
        processor: those of `generate`.
        ids: (specs * documents, tokens).
        logits: (rows, vocabulary).
        places: (rows,), which of `ids` a row goes on with.
        documents: number of documents.
    """
    if not processor:
        return logits
    processed = logits.clone()
    for spec in (places // documents).unique().tolist():
        rows = (places // documents == spec).nonzero()[:, 0]
        own = logits[rows[:1]].repeat(documents, 1)
        own[places[rows] % documents] = logits[rows]
        own = processor(ids[spec * documents : (spec + 1) * documents], own)  # type: ignore[arg-type]
        processed[rows] = own[places[rows] % documents]
    return processed


class _Rows:
    """Which spec each row of the running batch belongs to, and the weights that it is multiplied with.

    Rows come by spec, and within one by document. While the prompt runs, specs whose weights have been the same so far
    share rows, and `specs` names one of them for each.
    """

    def __init__(self, model: Any, merges: Merges, documents: int) -> None:
        self.model, self.merges, self.documents = model, merges, documents
        self.layers = decoder_layers(model)
        count = len(merges.specs)
        self.shared = [0] * count  # spec -> which of the rows it shares, of one document
        self.shared_below: list[list[int]] = []  # the same in each layer, filled as the prompt runs
        self.specs = [0] * documents
        self.splits: dict[nn.Linear, list[tuple[int, Tensor | None]]] = {}
        # Per layer what parts specs there: the variants of all its linear layers.
        self.kinds = [[tuple(v.of_spec[s] for v in layer.values()) for s in range(count)] for layer in merges.layers]

    # The prompt.

    @contextmanager
    def prefilling(self) -> Iterator[None]:
        handles = [
            layer.register_forward_pre_hook(partial(self._before_layer, index), with_kwargs=True)
            for index, layer in enumerate(self.layers)
        ]
        module: Any = decoder(self.model)
        add = getattr(module, "_deepstack_process", None)
        if add is not None:  # Qwen3-VL adds image features between layers, to the rows there were at the start

            def add_to_rows(hidden: Tensor, vision: Tensor, features: Tensor) -> Any:
                times = hidden.shape[0] // vision.shape[0]
                return add(hidden, vision.repeat(times, 1), features.repeat(times, 1))

            module._deepstack_process = add_to_rows
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()
            if add is not None:
                del module._deepstack_process

    def _before_layer(self, index: int, layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """A row of its own, of each document, for all specs whose weights have been the same up to this layer."""
        rows: dict[tuple[int, Any], int] = {}
        parents, first = [], []
        shared = []
        for spec, (row, kind) in enumerate(zip(self.shared, self.kinds[index], strict=True)):
            if (row, kind) not in rows:
                rows[row, kind] = len(rows)
                parents.append(row)
                first.append(spec)
            shared.append(rows[row, kind])
        hidden = args[0] if args else kwargs["hidden_states"]
        if len(rows) > len(set(self.shared)):
            hidden = hidden[self._rows_of(parents, hidden.device)]
        self.shared = shared
        self.shared_below.append(shared)
        self._set([spec for spec in first for _ in range(self.documents)])
        kwargs = {name: self._repeated(name, value, len(rows)) for name, value in kwargs.items()}
        if args:
            return (hidden, *args[1:]), kwargs
        return args, {**kwargs, "hidden_states": hidden}

    def _rows_of(self, shared: Sequence[int], device: torch.device) -> Tensor:
        """Rows in the batch, in which each of `shared` has one for every document."""
        chosen = torch.tensor(shared, device=device)[:, None] * self.documents
        return (chosen + torch.arange(self.documents, device=device)).flatten()

    def _repeated(self, name: str, value: Any, times: int) -> Any:
        """What belongs to documents, once for each row of one; with one document it is broadcast anyway."""
        if isinstance(value, tuple):
            return tuple(self._repeated(name, each, times) for each in value)
        if not isinstance(value, Tensor) or self.documents == 1 or times == 1 or name not in _PER_DOCUMENT:
            return value
        dim = document_dim(name, value)
        return torch.cat([value] * times, dim=dim) if value.shape[dim] == self.documents else value

    def finish_prompt(self, cache: Any) -> Tensor:
        """From now on every spec has rows of its own; returns those of the prompt's end that they come from."""
        if len(self.shared_below) != len(self.layers):
            raise ProbeError(
                f"{type(self.model).__name__} ran {len(self.shared_below)} of {len(self.layers)} decoder layers"
            )
        for layer, shared in zip(cache.layers, self.shared_below, strict=True):
            if shared != list(range(len(shared))):
                layer.batch_select_indices(self._rows_of(shared, layer.keys.device))
        last = self._rows_of(self.shared, torch.device("cpu"))
        self._set([spec for spec in range(len(self.merges.specs)) for _ in range(self.documents)])
        return last

    # Generated tokens.

    def select(self, kept: Tensor, cache: Any) -> None:
        """Go on with some of the rows."""
        for layer in cache.layers:
            layer.batch_select_indices(kept.to(layer.keys.device))
        self._set([self.specs[row] for row in kept.tolist()])

    # Weights.

    def _set(self, specs: list[int]) -> None:
        if specs != self.specs:
            self.specs = specs
            self.splits.clear()

    @contextmanager
    def weights(self) -> Iterator[None]:
        """Meanwhile each row of a linear layer's input is multiplied with the weights of its spec."""
        before: dict[Any, Any] = {}
        try:
            for layer in self.merges.layers:
                for module, variants in layer.items():
                    before[module] = vars(module).get("forward")
                    setattr(module, "forward", partial(self._multiply, module, variants))  # noqa: B010  (a method)
            yield
        finally:
            for module, forward in before.items():
                if forward is None:
                    del module.forward
                else:
                    module.forward = forward

    def _multiply(self, module: nn.Linear, variants: _Variants, rows: Tensor) -> Tensor:
        if module not in self.splits:
            self.splits[module] = self._split(variants, rows.device)
        split = self.splits[module]
        if len(split) == 1:
            return nn.functional.linear(rows, *variants.weights[split[0][0]])
        result = rows.new_empty(*rows.shape[:-1], module.out_features)
        for variant, index in split:
            result[index] = nn.functional.linear(rows[index], *variants.weights[variant])
        return result

    def _split(self, variants: _Variants, device: torch.device) -> list[tuple[int, Any]]:
        """(variant, its rows), as a slice where they are side by side."""
        rows_of_variant: dict[int, list[int]] = {}
        for row, spec in enumerate(self.specs):
            rows_of_variant.setdefault(variants.of_spec[spec], []).append(row)
        return [
            (
                variant,
                slice(rows[0], rows[-1] + 1)
                if rows[-1] - rows[0] + 1 == len(rows)
                else torch.tensor(rows, device=device),
            )
            for variant, rows in rows_of_variant.items()
        ]
