"""Our wrappers as lmms-eval loads them, on pico checkpoints, and what their evaluations answered."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tests.helpers.pico import PicoPair

if TYPE_CHECKING:
    from plam_eval.harness.evaluate import Evaluation as Run

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
# Families and modes beside LLaVA's: one of each way to place an image among the tokens.
MASKED = [("qwen2_5_vl", "chat"), ("qwen2_5_vl", "simple"), ("qwen2_vl", "simple"), ("internvl", "chat")]
MASKED += [("qwen3_vl", "chat"), ("llava_next", "simple"), ("llava_onevision", "chat")]
NINE = (
    *("mmstar", "mmbench_en_dev_static", "mmbench_cn_dev_static", "mme", "mmmu_val"),
    *("gqa", "pope", "realworldqa", "seedbench_2_plus"),
)


def arguments(pair: PicoPair, **given: Any) -> str:
    """model_args of a pico checkpoint on CPU in float32; the Qwen wrappers would enlarge small images otherwise."""
    settings: dict[str, Any] = {"pretrained": pair.mllm, "device": "cpu", "dtype": "float32"}
    if pair.family.startswith("qwen"):
        settings |= {"min_pixels": 28 * 28, "max_pixels": 112 * 112}
    return ",".join(f"{key}={value}" for key, value in (settings | given).items() if value is not None)


def answers(run: Run | None) -> dict[tuple[str, int], str]:
    """What was answered, by task and document."""
    assert run is not None
    return {(task, row["doc_id"]): row["filtered_resps"][0] for task, rows in run.samples.items() for row in rows}
