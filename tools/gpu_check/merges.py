"""Merging on the device: bits, controls, the way back, where a model may lie, seconds and memory, and the export."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from plam_eval.errors import MergeError
from plam_eval.merging import rules
from plam_eval.merging.checkpoint import Checkpoint
from plam_eval.merging.merge import merge_in_place, merged_weights
from plam_eval.merging.names import decoder_tensor
from plam_eval.merging.undo import checksum_of
from plam_eval.publishing.checkpoint.export import export_checkpoint
from plam_eval.spec import PlateauSpec
from tools.gpu_check.board import Board, Fault, Figures, Skipped
from tools.gpu_check.pairs import load
from tools.gpu_check.session import Session, decoder_parameters, same_bits


def check_bf16(session: Session) -> None:
    """What is checked of merging in bf16, one pair.

    Args:
        session: the pair's.
    """
    board, group, half = session.board, session.pair.family, session.layers // 2
    wide, narrow = session.spec(half, session.layers, "all"), session.spec(half, half + 2, model=0.7)
    board.check(group, "load in bf16", _load, session)
    board.check(group, "merge of the upper half, all modules: the CPU's bits", _merge, session, wide)
    board.check(group, "merged again otherwise, and back to plain: the CPU's bits", _remerge, session, wide, narrow)
    board.check(group, "a merge that fails half-way leaves every bit", _undo, session, wide)
    check_rules(session, torch.bfloat16, "self_scale", "normalized", "noise")


def check_rules(session: Session, dtype: torch.dtype, *names: str) -> None:
    """Merge two layers by each of some rules.

    Args:
        session: the pair's.
        dtype: of the model.
        names: of the rules.
    """
    half = session.layers // 2
    for rule in names:
        spec = session.spec(half, half + 2, rule=rule, seed=3)
        name = f"{rule} in {str(dtype).removeprefix('torch.')}: the CPU's bits"
        session.board.check(session.pair.family, name, _bits, session, spec, dtype)


def check_places(session: Session) -> None:
    """Streams, device maps and the export, of one pair.

    Args:
        session: the pair's.
    """
    board, group, half = session.board, session.pair.family, session.layers // 2
    wide, narrow = session.spec(half, session.layers, "all"), session.spec(half, half + 2, model=0.7)
    session.drop()
    board.check(group, "a stream merged on the device: the CPU's bits", _stream, session, narrow)
    board.check(group, 'device_map="auto": the CPU\'s bits', _auto, session, narrow)
    board.check(group, "a model over several cards: the CPU's bits", _several, session, wide)
    board.check(group, "offloaded layers are refused by name", _offloaded, session, wide)
    session.drop()
    board.check(group, "export: the bits of the merge in place", _export, session, wide)


def _load(session: Session) -> Figures:
    session.drop()
    seconds, model = session.board.timed(session.model, torch.bfloat16)
    moved = sum(value.nbytes for value in model.parameters())
    places = {str(value.device) for value in model.parameters()}
    if places != {session.device}:
        raise Fault(f"parameters lie on {places}")
    return {"s": seconds, "GB": moved / 1e9}


def _merge(session: Session, spec: PlateauSpec) -> Figures:
    model = session.model(torch.bfloat16)
    named = set(dict(session.values_named(spec)))
    others = {name: checksum_of(value) for name, value in model.named_parameters() if decoder_tensor(name) not in named}
    seconds, report = session.board.timed(merge_in_place, model, spec, checkpoint=session.pair.mllm)
    again, _ = session.board.timed(merge_in_place, model, spec)
    merged = session.compare_with_cpu(model, spec, torch.bfloat16)
    changed = [name for name, value in model.named_parameters() if others.get(name, 0) not in (0, checksum_of(value))]
    if changed or report.tensors != len(named):
        raise Fault(f"{report.tensors} of {len(named)} tensors merged, and {changed[:4]} changed, which nobody named")
    rates = {name: session.board.machine.get(f"host to device GB/s, {name}") for name in ("pageable", "pinned")}
    ideal = {f"ideal s, {name}": report.bytes_read / 1e9 / rate for name, rate in rates.items() if rate}
    return {"s": seconds, "again s": again, "GB read": report.bytes_read / 1e9, **ideal, **merged}


def _remerge(session: Session, one: PlateauSpec, other: PlateauSpec) -> Figures:
    model = session.model(torch.bfloat16)
    merge_in_place(model, one, checkpoint=session.pair.mllm)
    seconds, report = session.board.timed(merge_in_place, model, other)
    session.compare_with_cpu(model, other, torch.bfloat16)
    back, _ = session.board.timed(merge_in_place, model, None)
    plain = session.compare_with_cpu(model, None, torch.bfloat16)
    return {"s": seconds, "restored": report.restored, "back to plain s": back, **plain}


class _Halted(Exception):
    pass


@contextmanager
def _failing(rule: str, after: int) -> Iterator[None]:
    """While it lasts, a rule of the package raises once it has merged so many tensors."""
    stock, calls = rules.FUNCTIONS[rule], [0]

    def fails(*given: Any) -> Tensor:
        calls[0] += 1
        if calls[0] > after:
            raise _Halted
        return stock(*given)

    rules.FUNCTIONS[rule] = fails
    try:
        yield
    finally:
        rules.FUNCTIONS[rule] = stock


def _undo(session: Session, spec: PlateauSpec) -> Figures:
    """From plain, whose values are read again, and from a merge, which is made again."""
    half = session.layers // 2
    other = session.spec(half - 1, session.layers, "all", rule="self_scale")
    figures: Figures = {}
    for name, before in (("plain", None), ("merged", spec)):
        model = session.model(torch.bfloat16)
        merge_in_place(model, before, checkpoint=session.pair.mllm)
        state = {key: checksum_of(value) for key, value in decoder_parameters(model).items()}
        with _failing("self_scale", after=9):
            try:
                merge_in_place(model, other)
            except _Halted:
                pass
            else:
                raise Fault("the merge did not fail")
        wrong = [key for key, value in decoder_parameters(model).items() if checksum_of(value) != state[key]]
        if wrong:
            raise Fault(f"from {name}: {len(wrong)} tensors are not what they were, {wrong[:4]}")
        figures[f"from {name}, tensors"] = len(state)
    session.compare_with_cpu(model, spec, torch.bfloat16)
    return figures


def _bits(session: Session, spec: PlateauSpec, dtype: torch.dtype) -> Figures:
    model = session.model(dtype)
    merge_in_place(model, spec, checkpoint=session.pair.mllm)
    return session.compare_with_cpu(model, spec, dtype, spec.layers)


def _stream(session: Session, spec: PlateauSpec) -> Figures:
    """As vLLM's loader has it, were its tensors on the device."""
    checkpoint = Checkpoint.open(session.pair.mllm)
    keys = {name: key for name in checkpoint.names() if (key := decoder_tensor(name)) and key[0] in spec.layers}
    stream = ((name, checkpoint.tensor(name).to(session.device)) for name in keys)
    own = {keys[name]: value for name, value in merged_weights(stream, spec, None, torch.bfloat16)}
    if {str(value.device) for value in own.values()} != {session.device}:
        raise Fault("the merged tensors left the device")
    expected = ((key, value) for key, value in session.values_on_cpu(spec, torch.bfloat16) if key in own)
    return same_bits(own, expected)


def _auto(session: Session, spec: PlateauSpec) -> Figures:
    session.drop()
    model = load(session.pair, "auto", torch.bfloat16)
    places = sorted({str(value.device) for value in model.parameters()})
    if session.board.is_cuda and not any(place.startswith("cuda") for place in places):
        raise Fault(f"parameters lie on {places}")
    merge_in_place(model, spec, checkpoint=session.pair.mllm)
    return {"on": " ".join(places), **session.compare_with_cpu(model, spec, torch.bfloat16)}


def _several(session: Session, spec: PlateauSpec) -> Figures:
    cards = torch.cuda.device_count() if session.board.is_cuda else 0
    if cards < 2:
        raise Skipped(f"there are {cards} cards" if cards != 1 else "there is one card")
    session.drop()
    model = load(session.pair, "balanced", torch.bfloat16)
    places = sorted({str(value.device) for value in model.parameters()})
    if len(places) < 2:
        raise Skipped(f"accelerate put all of it on {places[0]}")
    merge_in_place(model, spec, checkpoint=session.pair.mllm)
    session.compare_with_cpu(model, spec, torch.bfloat16)
    merge_in_place(model, None)
    return {"on": " ".join(places), **session.compare_with_cpu(model, None, torch.bfloat16)}


def _offloaded(session: Session, spec: PlateauSpec) -> Figures:
    """The upper half on the CPU, from where accelerate moves it for each call: the parameters hold nothing."""
    if not session.board.is_cuda:
        raise Skipped("the device is the CPU, to which layers would be offloaded")
    session.drop()
    towers = ("visual",) if session.pair.family != "llava" else ("vision_tower", "multi_modal_projector")
    language = "model.language_model"
    stems = ["lm_head", *(f"model.{tower}" for tower in towers)]
    stems += [f"{language}.{stem}" for stem in ("embed_tokens", "norm", "rotary_emb")]
    places: dict[str, Any] = dict.fromkeys(stems, 0)
    places |= {f"{language}.layers.{i}": "cpu" if i in spec.layers else 0 for i in range(session.layers)}
    model = load(session.pair, places, torch.bfloat16)
    state = {name: checksum_of(value) for name, value in model.named_parameters() if not value.is_meta}
    offloaded = sum(value.is_meta for value in model.parameters())
    try:
        merge_in_place(model, spec, checkpoint=session.pair.mllm)
    except MergeError as error:
        said = str(error)
    else:
        raise Fault(f"a model with {offloaded} offloaded parameters was merged")
    if f"layers.{spec.layers[0]}." not in said:
        raise Fault(f"the message names no layer that is offloaded: {said[:200]}")
    if any(checksum_of(value) != state[name] for name, value in model.named_parameters() if name in state):
        raise Fault("parameters changed although the merge was refused")
    return {"offloaded parameters": offloaded, "said": "'" + said.split(";")[0].splitlines()[-1].strip()[:120] + "'"}


def _export(session: Session, spec: PlateauSpec) -> Figures:
    folder, free = session.scratch / "export", shutil.disk_usage(session.scratch).free
    if free < session.pair.nbytes * 0.6:
        raise Skipped(f"{free / 1e9:.0f} GB are free in {session.scratch}")
    model = session.model(torch.bfloat16)
    merge_in_place(model, spec, checkpoint=session.pair.mllm)
    try:
        seconds, export = session.board.timed(export_checkpoint, session.pair.mllm, spec, folder)
        checkpoint = Checkpoint.open(folder)
        stored = ((key, checkpoint.tensor(name)) for name in checkpoint.names() if (key := decoder_tensor(name)))
        same = same_bits(decoder_parameters(model), stored)
        json.loads((folder / "config.json").read_text(encoding="utf-8"))
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return {"s": seconds, "GB written": export.bytes / 1e9, **same}


def check_rates(board: Board) -> Figures:
    """What the machine moves, which is the ideal that merging is held against: GB/s, the best of five.

    Args:
        board: with the device.
    """
    if not board.is_cuda:
        raise Skipped("the device is the CPU")
    size = 1 << 30
    target = torch.empty(size, dtype=torch.uint8, device=board.device)
    pageable = torch.ones(size, dtype=torch.uint8)
    sources = {"pageable": pageable, "pinned": pageable.pin_memory()}
    rates: Figures = {}
    for name, source in sources.items():
        took = min(board.timed(target.copy_, source)[0] for _ in range(5))
        rates[f"host to device GB/s, {name}"] = size / 1e9 / took
    other = torch.empty_like(target)
    took = min(board.timed(other.copy_, target)[0] for _ in range(5))
    rates["on the device GB/s, read and written"] = 2 * size / 1e9 / took
    board.machine |= {name: round(rate, 1) for name, rate in rates.items()}
    return rates
