from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from tests.pico import PicoPair

# Wrapper of each family, and the modes it has.
WRAPPER = {
    "llava": ("plam_llava", ("chat", "simple")),
    "llava_next": ("plam_llava", ("chat", "simple")),
    "llava_onevision": ("plam_llava", ("chat", "simple")),
    "qwen2_vl": ("plam_qwen2_vl", ("simple",)),
    "qwen2_5_vl": ("plam_qwen2_5_vl", ("chat", "simple")),
    "qwen3_vl": ("plam_qwen3_vl", ("chat", "simple")),
    "internvl": ("plam_internvl", ("chat",)),
}
CASES = [(family, mode) for family, (_, modes) in WRAPPER.items() for mode in modes]


def arguments(pair: PicoPair, **given: Any) -> str:
    """model_args of a pico checkpoint on CPU in float32; the Qwen wrappers would enlarge small images otherwise."""
    settings: dict[str, Any] = {"pretrained": pair.mllm, "device": "cpu", "dtype": "float32"}
    if pair.family.startswith("qwen"):
        settings |= {"min_pixels": 28 * 28, "max_pixels": 112 * 112}
    return ",".join(f"{key}={value}" for key, value in (settings | given).items() if value is not None)


@pytest.fixture(scope="session")
def load(pico: Callable[[str], PicoPair]) -> Callable[..., Any]:
    """`load(family, mode, key=value, ...)` makes a wrapper the way lmms-eval's command line does."""
    from lmms_eval.models import get_model

    def make(family: str, mode: str = "chat", **given: Any) -> Any:
        model_id, _ = WRAPPER[family]
        cls = get_model(model_id, force_simple=mode == "simple")
        return cls.create_from_arg_string(arguments(pico(family), **given), {"batch_size": 1})

    return make
