"""The image hidden, all cuts and all merges at once, attention rows and depth, on the device."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers.utils import is_flash_attn_2_available

from plam_eval.decoding.all_cuts import generate_all_cuts
from plam_eval.decoding.all_merges import Merges, generate_all_merges
from plam_eval.merging.merge import merge_in_place
from plam_eval.probing.attention import AttentionRows, attention_rows, tokens_behind_images
from plam_eval.probing.decoder import ProbeError
from plam_eval.probing.depth import describe, hidden_states, layer_contribution, similarity
from plam_eval.probing.masking import ClosedTo, mask_vision
from tools.gpu_check.board import Fault, Figures, Skipped
from tools.gpu_check.pairs import answering, load, prompts
from tools.gpu_check.session import Session

NEW = {"7b": 8, "pico": 3}
"""Tokens of each answer, by the size of the pairs."""
CLOSED: tuple[ClosedTo, ...] = ("text", "question", "last")
TIES = 4.0
"""Times what rounding changes (`_noise`): two tokens that are nearer than that are a tie, and both are right. Each of
two logits moves by as much, apart from each other, and `_noise` has seen few prompts: hence twice two."""
MOST_STEPS = {torch.bfloat16: 16.0, torch.float32: 4096.0}
"""Steps of the dtype at the largest logit that rounding may be found to change a logit by. On an H200, 28 layers: 2 and
23 were seen. More is a kernel, or a batch, that computes something else, and would widen every bound made of it."""
ROWS_APART = {torch.bfloat16: 0.05, torch.float32: 1e-4}
"""By how much a weight of an attention row may differ from eager attention's. Seen there: 0.0056 and 1.3e-6."""


def check_probes(session: Session, dtype: torch.dtype) -> None:
    """All of one pair in one dtype.

    Args:
        session: the pair's.
        dtype: of the model.
    """
    board, group, name = session.board, session.pair.family, str(dtype).removeprefix("torch.")
    for attention in ("sdpa", "eager"):
        board.check(group, f"mask under {attention}, {name}", _mask, session, dtype, attention)
    if dtype == torch.float32:
        board.check(group, "mask under sdpa and eager alike, float32", _backends_alike, session)
    else:
        for kernel in (SDPBackend.MATH, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.CUDNN_ATTENTION):
            board.check(
                group, f"mask under sdpa's {kernel.name.lower()} kernel, {name}", _kernel, session, dtype, kernel
            )
        board.check(group, "mask under flash_attention_2 and flex_attention: refused by name", _refused, session)
    for closed_to in CLOSED:
        board.check(group, f"all cuts, image closed to {closed_to}, {name}", _all_cuts, session, dtype, closed_to)
    board.check(group, f"all merges, {name}", _all_merges, session, dtype)
    for attention in ("sdpa", "eager"):
        board.check(group, f"attention rows under {attention}, {name}", _rows, session, dtype, attention)
    if dtype != torch.float32:
        board.check(group, f"attention rows under flash_attention_2, {name}", _flash_rows, session, dtype)
    board.check(group, f"attention rows inside the mask, {name}", _masked_rows, session, dtype)
    board.check(group, f"depth, {name}", _depth, session, dtype)


# ---- the mask --------------------------------------------------------------------------------------------------------


@torch.no_grad()
def _logits(model: Any, inputs: dict[str, Tensor], cut: int | None = None, closed_to: ClosedTo = "text") -> Tensor:
    with nullcontext() if cut is None else mask_vision(model, cut, closed_to):
        logits: Tensor = model(**inputs).logits[:, -1].float()
    return logits


def _mask(session: Session, dtype: torch.dtype, attention: str) -> Figures:
    model, layers = session.model(dtype, attention), session.layers
    inputs = session.prompts(dtype, blind=True)
    plain, noise = _logits(model, inputs), _noise(model, inputs)
    figures: Figures = {}
    for closed_to in CLOSED:
        if not torch.equal(_logits(model, inputs, layers, closed_to), plain):
            raise Fault(f"closed to {closed_to}, c = L gives other bits than the plain model")
        moved = []
        for cut in (0, layers // 2, layers - 1):
            logits = _logits(model, inputs, cut, closed_to)
            if not bool(logits.isfinite().all()):
                raise Fault(f"closed to {closed_to}, c = {cut} gives numbers that are not finite")
            apart = (logits - plain).abs().amax(-1)
            moved.append(float(apart[:-1].max()))
            if float(apart[-1]) > noise:
                raise Fault(f"closed to {closed_to}, c = {cut} moves a document without images by {float(apart[-1])}")
        if (closed_to != "question" and not all(moved)) or not moved[0]:
            raise Fault(f"closed to {closed_to}, cuts {0, layers // 2, layers - 1} move logits by {moved}")
        figures[f"{closed_to}: moved at c = 0"] = moved[0]
    with mask_vision(model, layers // 2):
        masked = model.generate(**inputs, **answering(session.pair, 2))
    if not torch.equal(_logits(model, inputs), plain):
        raise Fault("the model is another after the mask")
    return {**figures, "answers": len(masked), "c = L": "equal to the bit"}


def _backends_alike(session: Session) -> Figures:
    logits: dict[str, list[Tensor]] = {}
    cuts = (0, session.layers // 2, session.layers - 1)
    for attention in ("sdpa", "eager"):
        model, inputs = session.model(torch.float32, attention), session.prompts(torch.float32)
        logits[attention] = [_logits(model, inputs, cut, closed_to) for closed_to in CLOSED for cut in cuts]
    apart = _most((x - y).abs().max() for x, y in zip(*logits.values(), strict=True))
    limit = TIES * _noise(session.model(torch.float32), inputs)
    if not apart <= max(limit, 1e-3):
        raise Fault(f"logits are {apart:.2g} apart; rounding makes {limit / TIES:.2g}")
    return {"logits apart": apart, "largest logit": float(logits["sdpa"][0].abs().max())}


def _kernel(session: Session, dtype: torch.dtype, kernel: SDPBackend) -> Figures:
    model, inputs, cut = session.model(dtype), session.prompts(dtype), session.layers // 2
    default = _logits(model, inputs, cut)
    try:
        with sdpa_kernel(kernel):
            logits, whole = _logits(model, inputs, cut), _logits(model, inputs, session.layers)
            plain = _logits(model, inputs)
    except RuntimeError as error:
        if "No available kernel" in str(error) or "no viable backend" in str(error).lower():
            raise Skipped(f"torch has no such kernel for this mask here ({str(error).splitlines()[0]})") from error
        raise
    apart, limit = float((logits - default).abs().max()), TIES * _noise(model, inputs)
    if not torch.equal(whole, plain):
        raise Fault("c = L gives other bits than the plain model")
    if not apart <= max(limit, 1e-3):
        raise Fault(f"logits are {apart:.2g} from the default kernel's; rounding makes {limit / TIES:.2g}")
    unmasked = float((logits - plain).abs().max())
    if not apart < unmasked:
        raise Fault(f"logits are {apart:.2g} from the default kernel's, {unmasked:.2g} from those without a mask")
    return {"logits from the default kernel's": apart, "from those without a mask": unmasked}


@contextmanager
def _named_backend(model: Any, name: str) -> Iterator[None]:
    """The config says that this implementation runs, which need not be installed."""
    config = model.config.get_text_config(decoder=True)
    key = "_attn_implementation"
    before = getattr(config, key)
    setattr(config, key, name)
    try:
        yield
    finally:
        setattr(config, key, before)


def _refused(session: Session) -> Figures:
    model, said = session.model(torch.bfloat16), Figures()
    inputs: dict[str, Any] = session.prompts(torch.bfloat16)
    for name in ("flash_attention_2", "flex_attention"):
        with _named_backend(model, name):
            for work in (
                lambda: _logits(model, inputs, 0),
                lambda: generate_all_cuts(model, **inputs, **answering(session.pair, 1)),
            ):
                try:
                    work()
                except ProbeError as error:
                    if name not in str(error):
                        raise Fault(f"refused without naming {name}: {error}") from error
                    said[name] = "refused"
                else:
                    raise Fault(f"a mask under {name} was not refused")
    return said


@torch.no_grad()
def _noise(model: Any, inputs: dict[str, Tensor]) -> float:
    """By how much rounding moves a logit: another batch size, another kernel, one step of the dtype.

    Raises Fault above `MOST_STEPS`.
    """
    together, alone = _logits(model, inputs), _logits(model, _first(model, inputs))
    with sdpa_kernel(SDPBackend.MATH):
        otherwise = _logits(model, inputs)
    step = float(together.abs().max()) * torch.finfo(model.dtype).eps
    noise = _most([(alone - together[:1]).abs().max(), (otherwise - together).abs().max()])
    if not noise <= MOST_STEPS[model.dtype] * step:
        raise Fault(
            f"another batch size or kernel moves a logit by {noise:.2g}; rounding explains "
            f"{MOST_STEPS[model.dtype] * step:.2g} at most ({MOST_STEPS[model.dtype]:g} steps of {model.dtype})"
        )
    return max(step, noise)


def _most(values: Iterable[Any]) -> float:
    """The largest of some numbers; nan where one is, which Python's max may pass over."""
    return float(torch.tensor([float(value) for value in values]).max())


def _first(model: Any, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    documents = len(inputs["input_ids"])
    pictures = max(1, documents - int((~(inputs["input_ids"] == _image(model)).any(-1)).sum()))
    return {
        name: value[:1] if len(value) in (documents, pictures) else value[: len(value) // pictures]
        for name, value in inputs.items()
    }


def _image(model: Any) -> int:
    return int(getattr(model.config, "image_token_id", None) or model.config.image_token_index)


# ---- many answers in one generation ----------------------------------------------------------------------------------


def _alone(model: Any, inputs: dict[str, Tensor], settings: dict[str, Any]) -> tuple[Tensor, Tensor]:
    """Tokens and logits of one generation: (documents, new) and (documents, new, vocabulary)."""
    out = model.generate(**inputs, **settings, output_logits=True, return_dict_in_generate=True)
    return out.sequences[:, inputs["input_ids"].shape[1] :], torch.stack(out.logits, 1).float()


def _flips(ours: Tensor, theirs: Tensor, logits: Tensor, noise: float) -> Figures:
    """How many answers differ, and whether each first differing token was a tie; raises Fault for one that was not.

    Args:
        ours: (settings, documents, new) tokens of one generation.
        theirs: of a generation each.
        logits: theirs, (settings, documents, new, vocabulary).
        noise: what rounding does to a logit.
    """
    differs = ours != theirs
    flipped = differs.any(-1)
    gaps = [0.0]
    for setting, document in flipped.nonzero().tolist():
        step = int(differs[setting, document].int().argmax())
        row = logits[setting, document, step]
        gaps.append(float(row[theirs[setting, document, step]] - row[ours[setting, document, step]]))
    gap = _most(gaps)
    figures: Figures = {"answers": flipped.numel(), "differing answers": int(flipped.sum())}
    figures["differing first tokens"] = int(differs[..., 0].sum())
    figures |= {"widest gap at a flip": gap, "rounding moves a logit by": noise}
    if not gap <= max(TIES * noise, 1e-4):
        raise Fault(f"an answer differs where its token leads by {gap:.3g}: {figures}")
    return figures


def _all_cuts(session: Session, dtype: torch.dtype, closed_to: ClosedTo) -> Figures:
    model, inputs, layers = session.model(dtype), session.prompts(dtype), session.layers
    cuts = range(layers + 1) if closed_to == "text" else sorted({0, 1, layers // 2, layers - 1, layers})
    settings = answering(session.pair, NEW[session.board.size])
    generate_all_cuts(model, list(cuts), closed_to=closed_to, **inputs, **settings)  # both ways start warm
    with mask_vision(model, 0, closed_to):
        _alone(model, inputs, settings)

    def separate() -> list[tuple[Tensor, Tensor]]:
        answers = []
        for cut in cuts:
            with mask_vision(model, cut, closed_to):
                answers.append(_alone(model, inputs, settings))
        return answers

    alone, expected = session.board.timed(separate)
    tokens, logits = (torch.stack(each) for each in zip(*expected, strict=True))
    peak, (together, answers) = session.board.peak_of(
        session.board.timed, generate_all_cuts, model, list(cuts), closed_to=closed_to, **inputs, **settings
    )
    log_p = logits[:, :, 0].log_softmax(-1)
    kl = (log_p[-1:].exp() * (log_p[-1:] - log_p)).sum(-1).clamp(min=0)
    apart = float((kl - answers.kl.to(kl.device)).abs().max())
    noise = _noise(model, inputs)
    if not apart <= max(noise, 1e-3):  # a mean over tokens of what moves each by so much at most
        raise Fault(f"KL differs by {apart:.3g} nats from that of one cut alone; rounding moves a logit by {noise:.2g}")
    if not bool((kl[0] > 0).all()):
        raise Fault("hiding the image from every layer changes nothing")
    figures = _flips(answers.tokens, tokens, logits, noise)
    times = {"one by one s": alone, "together s": together, "ratio": alone / together, "together GiB": peak}
    return {"cuts": len(cuts), **figures, "KL apart": apart, **times}


def _all_merges(session: Session, dtype: torch.dtype) -> Figures:
    model, inputs, layers = session.model(dtype), session.prompts(dtype), session.layers
    quarter = max(1, layers // 4)
    specs = [None, session.spec(layers - quarter, layers), session.spec(layers - quarter, layers, model=0.6)]
    specs += [session.spec(0, quarter), session.spec(layers - quarter, layers, rule="self_scale")]
    settings, board = answering(session.pair, NEW[session.board.size]), session.board
    making, merges = board.timed(Merges.of, model, specs, checkpoint=session.pair.mllm)
    generate_all_merges(model, merges, **inputs, **settings)  # both ways start warm
    _alone(model, inputs, settings)
    peak, (together, answers) = board.peak_of(board.timed, generate_all_merges, model, merges, **inputs, **settings)
    expected, alone = [], 0.0
    for index, spec in enumerate(specs):
        with merges.applied(index):
            applied = _logits(model, inputs)
        if spec is not None:
            merge_in_place(model, spec, checkpoint=session.pair.mllm)
        took, answer = board.timed(_alone, model, inputs, settings)
        alone += took
        expected.append(answer)
        if not torch.equal(applied, _logits(model, inputs)):
            raise Fault(f"merge {index} put under the model by pointer gives other bits than merged in place")
        merge_in_place(model, None, checkpoint=session.pair.mllm)
    tokens, logits = (torch.stack(each) for each in zip(*expected, strict=True))
    if torch.equal(logits[0], logits[1]):
        raise Fault("a merge changes nothing")
    figures = _flips(answers.tokens, tokens, logits, _noise(model, inputs))
    times = {"one by one s": alone, "together s": together, "ratio": alone / together, "together GiB": peak}
    return {"settings": len(specs), **figures, "merged tensors s": making, **times}


# ---- descriptions ----------------------------------------------------------------------------------------------------


def _rows(session: Session, dtype: torch.dtype, attention: str) -> Figures:
    """Against what eager attention returns, which needs memory for every pair of tokens."""
    board, inputs = session.board, session.prompts(dtype)
    model = session.model(dtype, "eager")
    with torch.no_grad():
        all_pairs, out = board.peak_of(model, **inputs, output_attentions=True, use_cache=False)
    queries = tokens_behind_images(model, inputs)
    whole = torch.stack([each.float().cpu() for each in out.attentions])
    del out
    model = session.model(dtype, attention)
    with torch.no_grad():
        prefill, _ = board.peak_of(model, **inputs, use_cache=False, logits_to_keep=1)
    peak, (seconds, rows) = board.peak_of(board.timed, attention_rows, model, inputs, queries, heads="each")
    lean, (_, mean) = board.peak_of(board.timed, attention_rows, model, inputs, massive=True)
    apart = _most(
        (torch.from_numpy(rows.rows_of(d)) - whole[:, d][:, :, queries[d]]).abs().max() for d in range(len(queries))
    )
    last = float((mean.weights[:, :, 0, 0] - whole[:, :, :, -1].mean(2)).abs().max())
    limit = ROWS_APART[dtype]
    if not (apart <= limit and last <= limit):
        raise Fault(f"rows differ from eager attention's by {apart:.2g}, means over heads by {last:.2g}")
    sums = rows.weights.sum(-1)[rows.weights.sum(-1) > 0]
    if float((sums - 1).abs().max()) > 1e-4:
        raise Fault(f"rows sum to {float(sums.min())} to {float(sums.max())}")
    memory = {"rows of heads GiB": peak, "one row each GiB": lean, "prefill GiB": prefill, "all pairs GiB": all_pairs}
    shown = {"rows": sum(map(len, queries)), "apart": apart, "means apart": last, "s": seconds}
    return shown | (memory if board.is_cuda else {})


def _flash_rows(session: Session, dtype: torch.dtype) -> Figures:
    if not (session.board.is_cuda and is_flash_attn_2_available()):
        raise Skipped("flash_attn is not installed")
    return _rows(session, dtype, "flash_attention_2")


def _masked_rows(session: Session, dtype: torch.dtype) -> Figures:
    model, inputs, cut = session.model(dtype), session.prompts(dtype), session.layers // 2
    with mask_vision(model, cut):
        rows = attention_rows(model, inputs)
    image = [rows.weights[:, d, 0, 0][:, rows.vision[d]].sum(-1) for d in range(len(rows.vision))]
    above, below = (_most(each[part].max() for each in image) for part in (slice(cut, None), slice(cut)))
    if above != 0 or not below > 0:
        raise Fault(f"on the image lie {above:.2g} of attention behind the cut, {below:.2g} before it")
    return {"on the image before the cut, at most": below, "behind it": above}


def _depth(session: Session, dtype: torch.dtype) -> Figures:
    model, inputs, board = session.model(dtype), session.prompts(dtype, blind=True), session.board
    seconds, described = board.timed(describe, model, inputs)
    own = _logits(model, inputs).argmax(-1).cpu()
    assert described.lens is not None
    lens = described.lens
    if not torch.equal(lens.top[:, -1].cpu(), own) or bool((lens.rank[:, -1] != 0).any()):
        raise Fault(f"the lens at the end says {lens.top[:, -1].tolist()}, the model {own.tolist()}")
    for name in ("image_drift", "text_drift", "image_text", "image_image", "text_text"):
        values = getattr(described, name)[:-1]
        if not bool(values.isfinite().all()) or float(values.abs().max()) > 1.001:
            raise Fault(f"{name} is {values.tolist()!s:.100}")
    tried = [0, session.layers // 2, session.layers - 1]
    took, contribution = board.timed(layer_contribution, model, inputs, tried)
    if not bool(contribution.kl[:-1].isfinite().all()) or bool(contribution.kl[-1].isfinite().any()):
        raise Fault(f"layer contribution is {contribution.kl.tolist()}")
    states = hidden_states(model, inputs)
    same = similarity(model, inputs, states)
    spec = session.spec(session.layers // 2, session.layers)
    merge_in_place(model, spec, checkpoint=session.pair.mllm)
    merged = similarity(model, inputs, states)
    merge_in_place(model, None)
    if not float((same.text_cosine - 1).abs().max()) < 1e-3 or not float((same.text_cka - 1).abs().max()) < 1e-3:
        raise Fault(f"a model is not like itself: {same.text_cosine.tolist()}, {same.text_cka.tolist()}")
    if not float(merged.text_cosine[:, -1].max()) < 0.9999:
        raise Fault("a merged model is like the plain one")
    below = merged.text_cosine[:, : session.layers // 2 + 1]
    if not float((below - 1).abs().max()) < 1e-3:
        raise Fault("a merge changes the stream below its layers")
    return {
        "describe s": seconds,
        "contribution s a layer": took / len(tried),
        "cosine, merged": float(merged.text_cosine[0, -1]),
    }


# ---- one small pair on two devices -----------------------------------------------------------------------------------


def check_against_cpu(session: Session) -> None:
    """Everything in float32 on the device and on the CPU, of a pair small enough for both.

    Args:
        session: the pair's.
    """
    works: dict[str, Callable[[Session, Any, dict[str, Tensor], str], dict[str, Tensor]]] = {
        "mask": _masks_of,
        "all cuts": _cuts_of,
        "all merges": _merges_of,
        "attention rows": _rows_of,
        "depth": _depth_of,
    }
    for name, work in works.items():
        title = f"{name}: on the device as on the CPU, float32"
        session.board.check(f"{session.pair.family}, pico", title, _against_cpu, session, work)
    session.drop()


def _against_cpu(session: Session, work: Callable[..., dict[str, Tensor]]) -> Figures:
    if not session.board.is_cuda:
        raise Skipped("the device is the CPU")
    results = []
    with torch.backends.cudnn.flags(allow_tf32=False):  # or a vision tower's convolution keeps ten bits on a GPU
        for device in (session.device, "cpu"):
            model = load(session.pair, device, torch.float32)
            inputs = prompts(session.pair, device, torch.float32, documents=3, blind=True)
            results.append({name: value.cpu() for name, value in work(session, model, inputs, device).items()})
    figures: Figures = {}
    for name, expected in results[1].items():
        own = results[0][name]
        if own.shape != expected.shape or own.dtype != expected.dtype:
            raise Fault(f"{name}: {list(own.shape)} of {own.dtype} for {list(expected.shape)} of {expected.dtype}")
        if not expected.is_floating_point():
            if not torch.equal(own, expected):
                raise Fault(f"{name}: {int((own != expected).sum())} of {own.numel()} differ")
            figures[name] = f"{own.numel()} equal"
            continue
        apart = float((own.nan_to_num() - expected.nan_to_num()).abs().max())
        if not torch.equal(own.isnan(), expected.isnan()) or not apart <= 1e-4:
            raise Fault(f"{name}: {apart:.2g} apart")
        figures[name] = apart
    return figures


def _masks_of(session: Session, model: Any, inputs: dict[str, Tensor], device: str) -> dict[str, Tensor]:
    return {
        f"{closed_to} {cut}": _logits(model, inputs, cut, closed_to)
        for closed_to in CLOSED
        for cut in range(session.layers)
    }


def _cuts_of(session: Session, model: Any, inputs: dict[str, Any], device: str) -> dict[str, Tensor]:
    results: dict[str, Tensor] = {}
    for closed_to in CLOSED:
        answers = generate_all_cuts(model, closed_to=closed_to, **inputs, **answering(session.pair, NEW["7b"]))
        results |= {f"{closed_to}, tokens": answers.tokens, f"{closed_to}, KL": answers.kl}
    return results


def _merges_of(session: Session, model: Any, inputs: dict[str, Tensor], device: str) -> dict[str, Tensor]:
    specs = [None, *(session.spec(first, first + 2, model=0.7) for first in range(session.layers - 1))]
    merges = Merges.of(model, specs, checkpoint=session.pair.mllm)
    return {"tokens": generate_all_merges(model, merges, **inputs, **answering(session.pair, NEW["7b"])).tokens}


def _rows_of(session: Session, model: Any, inputs: dict[str, Tensor], device: str) -> dict[str, Tensor]:
    rows: AttentionRows = attention_rows(model, inputs, tokens_behind_images(model, inputs), heads="each", massive=True)
    assert rows.massive is not None
    return {"weights": rows.weights, "queries": rows.queries, "vision": rows.vision, "massive": rows.massive}


def _depth_of(session: Session, model: Any, inputs: dict[str, Tensor], device: str) -> dict[str, Tensor]:
    described, contribution = describe(model, inputs), layer_contribution(model, inputs)
    assert described.lens is not None
    states = hidden_states(model, inputs)
    merge_in_place(model, session.spec(1, 3), checkpoint=session.pair.mllm)
    merged = similarity(model, inputs, states)
    found = {name: value for name, value in vars(described).items() if isinstance(value, Tensor)}
    found |= {f"similarity, {name}": value for name, value in vars(merged).items()}
    found |= {"lens, log_prob": described.lens.log_prob, "lens, top": described.lens.top}
    return found | {"contribution": contribution.kl, "flips": contribution.flips}
