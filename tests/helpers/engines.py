"""vLLM engines for tests: in this process, in float32, started in a few seconds."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from PIL import Image

FAST: dict[str, Any] = {
    "dtype": "float32",
    "enforce_eager": True,
    "max_model_len": 1024,
    "max_num_seqs": 16,
    "limit_mm_per_prompt": {"image": 2, "video": 0},
    "skip_mm_profiling": True,
    "disable_log_stats": True,
}
"""Engine settings that leave out what costs start-up time and changes no answer."""


@contextmanager
def engine(model: Path | str, plateau: dict[str, Any] | None = None, **given: Any) -> Iterator[Any]:
    """A `vllm.LLM` with `load_format="plam"`; `plateau` holds our loader's options."""
    from vllm import LLM

    settings = FAST | {"load_format": "plam", "model_loader_extra_config": plateau or {}} | given
    llm = LLM(str(model), **settings)
    try:
        yield llm
    finally:
        llm.llm_engine.engine_core.shutdown()  # now, and not when a test's last reference happens to go


def answers(llm: Any, prompts: Sequence[tuple[str, Sequence[Image.Image]]], tokens: int = 12) -> list[list[int]]:
    """Greedy token ids for (text with image placeholders, images)."""
    from vllm import SamplingParams

    done = llm.generate(inputs(prompts), SamplingParams(temperature=0, max_tokens=tokens), use_tqdm=False)
    return [list(output.outputs[0].token_ids) for output in done]


def picture(seed: int, size: tuple[int, int] = (56, 56)) -> Image.Image:
    import numpy as np

    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8))


def inputs(prompts: Sequence[tuple[str, Sequence[Image.Image]]]) -> list[dict[str, Any]]:
    return [{"prompt": text, "multi_modal_data": {"image": list(images)} if images else {}} for text, images in prompts]
