"""A wrapper whose merge takes a third checkpoint: what names its answers, and what is recorded."""

from __future__ import annotations

from collections.abc import Callable

from plam_eval.harness.wrapper import GenerationRecord
from tests.helpers.pico import PicoPair


def test_the_ancestor_is_recorded_and_names_the_answers(pico: Callable[[str], PicoPair]) -> None:
    from plam_eval.model_wrappers.llava import PlamLlava

    pair = pico("llava")
    given = {"base": str(pair.base), "ancestor": str(pair.base), "layers": "0+2", "rule": "ties"}
    wrapper = PlamLlava(pretrained=str(pair.mllm), device="cpu", device_map="cpu", parameters="density:0.5", **given)
    names = [wrapper.cache_fingerprint()]
    record = wrapper.run_record([GenerationRecord().to_dict()])["provenance"]
    assert record["ancestor"]["name"] == str(pair.base) and record["merge"]["task_vectors"]["base_model"] == 0
    assert record["spec"]["layers"] == [0, 2] and record["spec"]["parameters"] == {"density": 0.5}
    for options in ({"parameters": "density:0.4"}, {"rule": "task_arithmetic"}, {"rule": "weighted_sum"}):
        wrapper.merge("none", **{**given, **options})
        names.append(wrapper.cache_fingerprint())
    assert len(set(names)) == len(names)
    record = wrapper.run_record([GenerationRecord().to_dict()])["provenance"]
    assert "ancestor" not in record, "this rule has read none"
