"""What plam-eval uses of vLLM, held against the installed version and the recorded signatures of another one."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import pytest

from plam_eval.serving import versions
from plam_eval.serving.versions import Signature
from tools.vllm_signatures import look_up

RECORDED = {
    file.stem: {name: Signature(*map(tuple, found.values())) for name, found in json.loads(file.read_text()).items()}
    for file in Path(__file__).parent.glob("vllm-*.json")
}


@pytest.mark.parametrize("version", RECORDED)
def test_versions_that_were_only_read_have_all_that_is_used(version: str) -> None:
    assert versions.problems(versions.EVERYTHING, RECORDED[version].get) == []


def test_what_another_version_lacks_is_named() -> None:
    found = dict(RECORDED["vllm-0.33.0"])
    chat, loader = "vllm.entrypoints.llm:LLM.chat", "vllm.model_executor.model_loader.default_loader:DefaultModelLoader"
    found[chat] = Signature(("self", "messages", "params"), ("self", "messages"))
    found[f"{loader}.get_all_weights"] = Signature(("self", "model_config", "model", "rank"), ("self", "rank"))
    del found[f"{loader}._prepare_weights"]
    problems = versions.problems(versions.EVERYTHING, found.get)
    assert f"{loader}._prepare_weights is missing" in problems
    assert f"{loader}.get_all_weights also wants rank" in problems
    assert any(problem.startswith(f"{chat} has no sampling_params, use_tqdm") for problem in problems)
    assert len(problems) == 3


@pytest.mark.needs("vllm")
def test_the_installed_version_and_the_reader_of_sources_agree() -> None:
    import vllm

    assert versions.problems(versions.EVERYTHING, versions.installed) == []
    root = Path(vllm.__file__).parent.parent
    for name, needed in versions.EVERYTHING.items():
        mine, theirs = versions.installed(name), look_up(root, name)
        assert mine is not None and theirs is not None, name
        if len(mine.names) > 20:
            assert set(needed) <= set(mine.names) & set(theirs.names), name
        else:
            assert (mine.names, mine.required) == (theirs.names, theirs.required), name
    assert versions.installed("vllm.no_such:thing") is None and look_up(root, "vllm.no_such:thing") is None


@pytest.mark.needs("vllm")
def test_an_unknown_layout_is_refused_before_anything_is_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    from plam_eval.serving import engine, loader, worker

    def other(name: str) -> Signature | None:
        lacks = ("get_all_weights", "update_config", "finalize_layerwise", "LLM.collective_rpc")
        return None if any(part in name for part in lacks) else versions.Signature(versions.EVERYTHING[name])

    monkeypatch.setattr(versions, "installed", other)
    config = SimpleNamespace(model_loader_extra_config={}, load_format="plam")
    for call in (lambda: loader.PlamModelLoader(config), lambda: loader.prepare_arguments(config)):
        with pytest.raises(versions.LayoutError, match=r"get_all_weights is missing\. Install a version"):
            call()
    with pytest.raises(versions.LayoutError, match=r"LLM\.collective_rpc is missing"):
        engine.merge_engine(None, "none")
    assert versions.remerge_way()[0] == "all"

    model = SimpleNamespace()
    holder = SimpleNamespace(get_model=lambda: model)
    outcome = worker.PlateauWorker.plam_merge(holder, None)  # type: ignore[arg-type]
    assert "update_config is missing" in outcome["faults"][0] and not vars(model)


@pytest.mark.needs("vllm")
def test_an_untested_version_takes_vllms_own_reload(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(versions, "vllm_version", lambda: "0.33.1+cpu")
    way, why = versions.remerge_way()
    assert way == "all" and "0.33.1" in why


@pytest.mark.needs("vllm")
def test_doctor_says_how_vllm_would_be_used(monkeypatch: pytest.MonkeyPatch) -> None:
    from plam_eval import doctor
    from plam_eval.terminal import Terminal

    console = Terminal(record=True, width=200)
    assert doctor.check_vllm(console)
    assert "only the attention and MLP blocks" in console.export_text()
    monkeypatch.setattr(versions, "vllm_version", lambda: "0.40.0")
    assert doctor.check_vllm(console)
    said = console.export_text()
    assert "warning" in said and "every tensor is read and loaded again" in said
