"""The re-merge of a real engine: against fresh engines, and what is left when it fails."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

pytest.importorskip("vllm", reason="vLLM is not installed")

from plam_eval.errors import MergeError
from plam_eval.merging.merge import merge_in_place
from plam_eval.serving import versions, worker
from plam_eval.serving.engine import (
    EngineBrokenError,
    EngineError,
    MixedWeightsError,
    check_answered_by,
    label_engine,
    merge_engine,
    outcome_of,
)
from plam_eval.serving.worker import PlateauWorker
from plam_eval.spec import SpecError, load_spec
from tests.helpers.engines import engine, inputs
from tests.helpers.paths import PAIR
from tests.helpers.served_pair import ANCESTRAL, BASE, DEMO, LONG, PAIR_PROMPTS, STARTED, SWITCHES, detailed, hf_answers

pytestmark = pytest.mark.vllm


@pytest.fixture(scope="module")
def resident(fresh: Callable[..., Any]) -> Iterator[Any]:
    for options in STARTED:  # while no other engine is alive: one process holds one world of workers
        fresh(options)
    with engine(PAIR / "mllm", DEMO) as llm:
        yield llm


# Tests with `resident` come first: an engine that another test shuts down takes the process's world of workers along.


def test_switches_of_one_engine_each_equal_a_fresh_engine_or_model(resident, fresh):
    from transformers import AutoModelForImageTextToText

    assert versions.remerge_way()[0] == "layers"
    found = set()
    for options in SWITCHES:
        merge_engine(resident, **options)
        told = detailed(resident)
        if options in STARTED:
            assert told == fresh(options), options
        model = AutoModelForImageTextToText.from_pretrained(PAIR / "mllm", dtype=torch.float32).eval()
        rest = {key: value for key, value in options.items() if key != "plateau"}
        if (spec := load_spec(options["plateau"], rest)) is not None:
            merge_in_place(model, spec, checkpoint=PAIR / "mllm")
        for expected, (tokens, _) in zip(hf_answers(model, PAIR / "mllm", PAIR_PROMPTS, 16), told, strict=True):
            assert tokens[: len(expected)] == expected, options  # HF ends where the engine was told to go on
        found.add(json.dumps(told))
    assert len(found) == 10  # plain comes twice


def checksums(llm: Any) -> dict[str, str]:
    (sums,) = [state["checksums"] for state in llm.collective_rpc("plam_state", args=(True,))]
    assert list(sums) == [*(f"layer {number}" for number in range(8)), "rest"], "and nothing that cannot be read"
    return dict(sums)


@pytest.mark.parametrize("way", ["layers", "all"])
def test_checksums_tell_the_layers_that_were_merged_and_come_back_with_plain(way, resident, monkeypatch):
    monkeypatch.setattr(versions, "remerge_way", lambda: (way, "for this test"))
    merge_engine(resident, "none")
    plain = checksums(resident)
    merge_engine(resident, **{**DEMO, "layers": "2:5", "modules": "mlp"})
    merged = checksums(resident)
    assert {place for place in plain if merged[place] != plain[place]} == {"layer 2", "layer 3", "layer 4"}
    merge_engine(resident, "none")
    assert checksums(resident) == plain
    merge_engine(resident, **{**DEMO, "layers": "2:5", "modules": "mlp"})
    assert checksums(resident) == merged
    # vLLM's own are of parameters, which are empty where its CPU build has packed the weights.
    own = resident.collective_rpc("compute_weight_checksums")[0]
    merge_engine(resident, "none")
    assert resident.collective_rpc("compute_weight_checksums")[0] == own


def test_a_request_that_a_merge_catches_half_way_does_not_pass_for_one_version(resident):
    from vllm import SamplingParams

    merge_engine(resident, "none")
    digest, core = load_spec("demo", {"base": BASE}).digest(), resident.llm_engine
    settings = SamplingParams(temperature=0, max_tokens=12, ignore_eos=True)
    given = inputs(PAIR_PROMPTS[2:])

    def finish() -> Any:
        done: list[Any] = []
        while core.has_unfinished_requests():
            done += core.step()
        (answer,) = [output for output in done if output.finished]
        return answer

    core.add_request("whole", given[0], settings)
    whole = finish()
    check_answered_by(whole, "plain")
    with pytest.raises(MixedWeightsError, match=f"tokens 0 to 12 by plain; expected all by {digest}"):
        check_answered_by(whole, digest)

    core.add_request("caught", given[0], settings)
    for _ in range(5):
        core.step()
    with pytest.raises(EngineError, match="unfinished requests"):
        merge_engine(resident, **DEMO)
    assert label_engine(resident) == "plain", "nothing has changed"
    # Round the check, as a request goes on that was preempted when a server of before was re-merged.
    outcome_of(resident.collective_rpc("plam_merge", args=(load_spec("demo", {"base": BASE}).to_dict(),)))
    assert label_engine(resident) == digest
    caught = finish()
    assert caught.outputs[0].token_ids[:5] == whole.outputs[0].token_ids[:5]
    for one in ("plain", digest):
        with pytest.raises(MixedWeightsError, match=f"tokens 0 to 5 by plain, tokens 5 to 12 by {digest}; expected"):
            check_answered_by(caught, one)
    # The cached keys and values are of both; a merge drops them.
    merge_engine(resident, **DEMO)
    assert resident.get_weight_version() == digest


@pytest.mark.parametrize("way", ["layers", "all"])
def test_switches_between_rules_with_an_ancestor_and_back(way, resident, fresh, ancestor, monkeypatch):
    from transformers import AutoModelForImageTextToText

    monkeypatch.setattr(versions, "remerge_way", lambda: (way, "for this test"))
    found = set()
    for options in ANCESTRAL if way == "layers" else ANCESTRAL[1:2]:
        given = {**DEMO, **options, "ancestor": str(ancestor)}
        report = merge_engine(resident, **given)
        spec = load_spec("demo", {key: value for key, value in given.items() if key != "plateau"})
        model = AutoModelForImageTextToText.from_pretrained(PAIR / "mllm", dtype=torch.float32).eval()
        expected = merge_in_place(model, spec, checkpoint=PAIR / "mllm")
        assert report.ancestor == str(ancestor) and report.warnings == () == expected.warnings
        assert report.relative_change == expected.relative_change, "the very same tensors"
        told = detailed(resident)
        for answer, (tokens, _) in zip(hf_answers(model, PAIR / "mllm", PAIR_PROMPTS, 16), told, strict=True):
            assert tokens[: len(answer)] == answer, options
        found.add(json.dumps(told))
    assert len(found) == (3 if way == "layers" else 1)
    merge_engine(resident, "none")
    assert detailed(resident) == fresh({"plateau": "none"})
    merge_engine(resident, **DEMO)
    assert detailed(resident) == fresh(DEMO)


def test_a_fault_of_the_ancestor_leaves_the_old_weights(resident, fresh, ancestor, tmp_path):
    old = shutil.copytree(ancestor, tmp_path / "old")
    given = {**DEMO, **ANCESTRAL[0], "modules": "all"}
    merge_engine(resident, **{**given, "ancestor": str(old)})
    before = detailed(resident)
    for spoil, says in (
        (
            lambda tensors, name: tensors[name].__setitem__((3, 5), float("nan")),
            r"layers\.7\.mlp\.up_proj.* NaN or Inf",
        ),
        (lambda tensors, name: tensors.pop(name), r"layer 7, mlp.up_proj.weight: missing"),
        (lambda tensors, name: tensors.update({name: torch.zeros(3, 4)}), r"\[3, 4\].*expected equal shapes"),
        (
            lambda tensors, name: tensors.update({name: tensors[name].to(torch.int8)}),
            r"is torch.int8; expected float32",
        ),
    ):
        bad = tmp_path / f"bad{len(list(tmp_path.iterdir()))}"
        shutil.copytree(ancestor, bad)
        tensors = load_file(bad / "model.safetensors")
        spoil(tensors, "model.layers.7.mlp.up_proj.weight")
        save_file(tensors, bad / "model.safetensors", metadata={"format": "pt"})
        with pytest.raises(MergeError, match=says):
            merge_engine(resident, **{**given, "ancestor": str(bad)})
        assert detailed(resident) == before, says
    with pytest.raises(MergeError, match=r"(?s)base=/nowhere/base: no such.*ancestor=/nowhere/old: no such"):
        merge_engine(resident, **{**given, "base": "/nowhere/base", "ancestor": "/nowhere/old"})
    os.utime(old / "model.safetensors", ns=(1, 1))
    with pytest.raises(MergeError, match="old: changed since the engine loaded it"):
        merge_engine(resident, **{**given, "ancestor": str(old), "layers": "0:4"})
    merge_engine(resident, **DEMO)  # whose rule reads no ancestor
    assert detailed(resident) == fresh(DEMO)
    with pytest.raises(MergeError, match="old: changed since the engine loaded it"):
        merge_engine(resident, **{**given, "ancestor": str(old)})


def test_switches_through_vllms_own_reload_of_all_weights(resident, fresh, monkeypatch):
    monkeypatch.setattr(versions, "remerge_way", lambda: ("all", "for this test"))
    for options in (SWITCHES[2], SWITCHES[0], SWITCHES[1]):
        merge_engine(resident, **options)
        assert detailed(resident) == fresh(options), options


@pytest.mark.parametrize("way", ["layers", "all"])
def test_a_fault_in_the_data_leaves_the_old_weights(way, resident, fresh, monkeypatch, tmp_path):
    monkeypatch.setattr(versions, "remerge_way", lambda: (way, "for this test"))
    merge_engine(resident, **DEMO)
    bad = tmp_path / "base"
    shutil.copytree(BASE, bad)
    tensors = load_file(bad / "model.safetensors")
    tensors["model.layers.7.self_attn.v_proj.weight"][3, 5] = float("nan")  # the last block but one to be reloaded
    save_file(tensors, bad / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(MergeError, match=r"layers\.7\.self_attn\.v_proj\.weight .*NaN"):
        merge_engine(resident, **{**DEMO, "base": str(bad), "layers": "0:8", "modules": "all"})
    assert detailed(resident) == fresh(DEMO)
    assert resident.collective_rpc("plam_state")[0]["digest"] == load_spec("demo", {"base": BASE}).digest()


@pytest.mark.parametrize(
    ("options", "error", "says"),
    [
        ({**DEMO, "layers": "4:9"}, MergeError, r"\[4, 9\) does not fit"),
        ({**DEMO, "base": "/nowhere/base"}, MergeError, "no such folder"),
        ({**DEMO, "layer": "4:8"}, SpecError, "did you mean 'layers'"),
    ],
)
def test_a_bad_spec_changes_nothing(options, error, says, resident, fresh):
    merge_engine(resident, **DEMO)
    with pytest.raises(error, match=says):
        merge_engine(resident, **options)
    assert detailed(resident) == fresh(DEMO)


def test_blocks_that_vllm_names_otherwise_are_not_passed_over(resident, fresh, monkeypatch):
    merge_engine(resident, **DEMO)
    model = resident.llm_engine.model_executor.driver_worker.worker.get_model()
    renamed = [(name.replace(".6.self_attn", ".6.attention"), module) for name, module in model.named_modules()]
    monkeypatch.setattr(model, "named_modules", lambda: iter(renamed))
    with pytest.raises(MergeError, match="no module of its own for self_attn of layer 6"):
        merge_engine(resident, "none")
    monkeypatch.undo()
    assert detailed(resident) == fresh(DEMO)


def test_a_checkpoint_that_changed_under_the_engine_is_refused(fresh, tmp_path):
    copies = {name: shutil.copytree(PAIR / name, tmp_path / name) for name in ("mllm", "base")}
    options = {**DEMO, "base": str(copies["base"])}
    with engine(copies["mllm"], options) as llm:
        stamp = (copies["base"] / "model.safetensors").stat()
        os.utime(copies["base"] / "model.safetensors", ns=(1, 1))
        with pytest.raises(MergeError, match="base: changed since the engine loaded it"):
            merge_engine(llm, **options, layers="0:4")
        assert stamp.st_mtime_ns != 1 and detailed(llm) == fresh(DEMO)
        merge_engine(llm, "none")  # needs no base
        with pytest.raises(MergeError, match="base: changed since the engine loaded it"):
            merge_engine(llm, **options)
        os.utime(copies["mllm"] / "model.safetensors", ns=(1, 1))
        with pytest.raises(MergeError, match="mllm: changed since the engine loaded it"):
            merge_engine(llm, **DEMO)


def fail_in_the_third_block(llm: Any, error: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    model = llm.llm_engine.model_executor.driver_worker.worker.get_model()
    real, calls = model.load_weights, []

    def load_weights(weights: Any) -> Any:
        calls.append(1)
        if len(calls) > 2:
            raise error
        return real(weights)

    monkeypatch.setattr(model, "load_weights", load_weights)


def test_neither_old_nor_new_weights_stop_the_engine(monkeypatch):
    with engine(PAIR / "mllm", DEMO) as llm:
        fail_in_the_third_block(llm, OSError("no space left on device"), monkeypatch)
        with pytest.raises(EngineBrokenError, match=r"neither the old nor the new weights; start it again.*no space"):
            merge_engine(llm, "none")
        with pytest.raises(RuntimeError, match="neither the old nor the new weights"):
            detailed(llm)
        assert "start it again" in llm.collective_rpc("plam_state")[0]["broken"]
        monkeypatch.undo()
        assert llm.collective_rpc("plam_merge", args=(None,))[0]["broken"]  # and stays so


def test_an_interrupt_half_way_stops_the_engine(monkeypatch):
    with engine(PAIR / "mllm", DEMO) as llm:
        fail_in_the_third_block(llm, KeyboardInterrupt, monkeypatch)
        with pytest.raises(KeyboardInterrupt):
            merge_engine(llm, "none")
        with pytest.raises(RuntimeError, match="interrupted half-way"):
            detailed(llm)


def test_the_way_back_wants_the_base_it_came_from(fresh, tmp_path, monkeypatch):
    base = tmp_path / "base"
    shutil.copytree(BASE, base)
    with engine(PAIR / "mllm", {**DEMO, "base": str(base)}) as llm:
        tensors = load_file(base / "model.safetensors")
        tensors["model.layers.7.self_attn.v_proj.weight"] *= 2
        save_file(tensors, base / "model.safetensors", metadata={"format": "pt"})
        bad = tmp_path / "bad"
        shutil.copytree(BASE, bad)
        tensors["model.layers.7.self_attn.v_proj.weight"][0, 0] = float("nan")
        save_file(tensors, bad / "model.safetensors", metadata={"format": "pt"})
        with pytest.raises(EngineBrokenError, match="changed since the engine loaded it"):
            merge_engine(llm, **{**DEMO, "base": str(bad)})


def test_vllm_finds_the_worker_by_its_name():
    from vllm.utils.import_utils import resolve_obj_by_qualname

    assert resolve_obj_by_qualname(worker.EXTENSION) is PlateauWorker


SPEC = {"modules": ["q_proj"], "weights": {"model": 0.9, "base_model": 0.3}}


def test_a_range_longer_than_any_model_is_not_written_out(pico, monkeypatch):
    pair = pico("llava")
    config = SimpleNamespace(
        model_config=SimpleNamespace(model=str(pair.mllm), revision=None),
        parallel_config=SimpleNamespace(data_parallel_size=1),
        lora_config=None,
    )

    class Worker(PlateauWorker):
        vllm_config = config
        model = torch.nn.Module()

        def get_model(self) -> torch.nn.Module:
            return self.model

    monkeypatch.setattr(worker, "_of_all_workers", lambda faults: faults)
    spec = {**SPEC, "base_model": str(pair.base), "layer_range": [0, 10**12]}
    try:
        faults = Worker().plam_merge(spec)["faults"]
    except ValueError as error:  # of the spec itself
        faults = [str(error)]
    assert any("1000000000000" in fault for fault in faults)


@pytest.mark.long
def test_of_queued_and_preempted_requests_none_passes_for_the_wrong_weights():
    """Round the check that nothing is unfinished, as requests of a server go on that nobody has waited for."""
    from vllm import SamplingParams

    settings = SamplingParams(temperature=0, max_tokens=200, ignore_eos=True)
    spec = load_spec("demo", {"base": BASE})
    # Room for two requests at a time, and for the keys and values of little more than one.
    small = {"max_num_seqs": 2, "max_model_len": 640, "num_gpu_blocks_override": 6}
    with engine(PAIR / "mllm", {"plateau": "none"}, **small) as llm:
        core = llm.llm_engine
        scheduler = core.engine_core.engine_core.scheduler
        label_engine(llm)
        for number, name in enumerate(("first", "second", "queued")):
            core.add_request(name, {"prompt": f"{number} {LONG}"}, settings)
        done: list[Any] = []
        waiting: dict[str, int] = {}
        while not any(waiting.values()):
            done += core.step()
            assert not any(output.finished for output in done), "nothing had to give way"
            waiting = {each.request_id.split("-")[0]: each.num_output_tokens for each in scheduler.waiting}
        assert waiting.pop("queued") == 0
        ((preempted, tokens),) = waiting.items()
        outcome_of(llm.collective_rpc("plam_merge", args=(spec.to_dict(),)))
        assert label_engine(llm) == spec.digest()
        while core.has_unfinished_requests():
            done += core.step()
    ended = {output.request_id: output for output in done if output.finished}
    check_answered_by(ended["queued"], spec.digest())
    with pytest.raises(MixedWeightsError):
        check_answered_by(ended["queued"], "plain")
    for name in ("first", "second"):
        for one in ("plain", spec.digest()):
            with pytest.raises(MixedWeightsError, match=rf"by plain, tokens \d+ to 200 by {spec.digest()};"):
                check_answered_by(ended[name], one)
    with pytest.raises(MixedWeightsError, match=f"tokens 0 to {tokens} by plain"):
        check_answered_by(ended[preempted], spec.digest())
