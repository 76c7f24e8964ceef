"""`plam_vllm` through the harness, beside `plam_llava` on the same checkpoint."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from plam_eval.demo.scene_text import write_scene_text
from plam_eval.errors import ArgumentError, MergeError
from plam_eval.harness.errors import EvaluationError, GenerationError
from plam_eval.harness.evaluate import evaluate
from plam_eval.harness.run_files import samples_file
from plam_eval.spec import digest_of, load_spec
from tests.helpers import recipes
from tests.helpers.engines import FAST
from tests.helpers.offline_text import write_text_tasks
from tests.helpers.paths import PAIR
from tests.helpers.planted import plant

pytestmark = pytest.mark.needs("vllm")

NINE = "plam9"
LIMIT = 6


def make(mode: str = "chat", **given: Any) -> Any:
    from lmms_eval.models import get_model

    cls = get_model("plam_vllm", force_simple=mode == "simple")
    settings = {key: value for key, value in FAST.items() if key != "disable_log_stats"}
    return cls(**(settings | {"pretrained": str(PAIR / "mllm"), "batch_size": 16} | given))


@pytest.fixture(scope="module")
def merged() -> Iterator[Any]:
    lm = make(plateau="demo", base=str(PAIR / "base"))
    yield lm
    lm.client.llm_engine.engine_core.shutdown()


def table(run: Any) -> dict[tuple[str, int], tuple[str, Any]]:
    return {
        (task, row["doc_id"]): (row["filtered_resps"][0], row["arguments"][0])
        for task, rows in run.samples.items()
        for row in rows
    }


def digests(run: Any) -> Counter[str]:
    return Counter(row["digest"] for rows in run.samples.values() for row in rows)


def test_answers_are_those_of_the_hf_wrapper_on_all_nine_tasks(merged, in_suite):
    """Merged and plain, on one resident engine and on one resident HF model."""
    from lmms_eval.models import get_model

    hf = get_model("plam_llava")(pretrained=str(PAIR / "mllm"), device="cpu", dtype="float32")
    spec = load_spec("demo", {"base": str(PAIR / "base")})
    seen = []
    for plateau in (spec, None):
        hf.merge(plateau)
        merged.merge(plateau)
        expected, found = (evaluate(lm, NINE, limit=LIMIT, batch_size=size) for lm, size in ((hf, 1), (merged, 16)))
        assert table(found) == table(expected)
        assert len(table(found)) == 9 * LIMIT
        assert found.results["results"] == expected.results["results"]
        seen.append(found.results["plam_eval"])
        assert digests(found) == digests(expected) == {digest_of(plateau): 9 * LIMIT}
    merged.merge(spec)
    one, other = seen
    assert one["provenance"]["digest"] == spec.digest() and other["plain"]
    assert one["folder"] == f"plam-{spec.digest()[:12]}" and other["folder"] == "plam-plain"
    assert one["provenance"]["merge"]["tensors"] == 16 and one["wraps"] == "vllm" and one["dtype"] == "float32"
    assert one["generation"]["calls"] == 9 * LIMIT and one["engine"]["remerge"].startswith("layers")
    # MME allows 16 tokens, MMStar sets no limit and stops at an empty line.
    settings = {(entry["max_tokens"], *entry["stop"]) for entry in one["generation"]["settings"]}
    assert {(16, "\n\n"), (128, "\n\n"), (1024, "\n\n"), (16, "ASSISTANT:")} <= settings


def test_text_alone_is_asked_and_scored_as_by_the_hf_wrapper(merged, tmp_path, monkeypatch):
    """Answers, prompts and likelihoods of documents without an image; prompts are noted before any is answered."""
    from lmms_eval.models import get_model

    write_scene_text(tmp_path, scenes=2)
    write_text_tasks(tmp_path, 3)
    monkeypatch.chdir(tmp_path)
    hf = get_model("plam_llava")(pretrained=str(PAIR / "mllm"), device="cpu", dtype="float32")
    hf.merge(merged.spec)
    counted = []
    stock = merged.get_format_metrics

    def count() -> Any:
        counted.append(1)
        return stock()

    monkeypatch.setattr(merged, "get_format_metrics", count)
    runs = []
    for lm in (hf, merged):
        monkeypatch.setattr(lm, "notes_prompts", True)
        runs.append(evaluate(lm, "plam_scene_text,arc_easy"))
    assert len(counted) == 1, "once for the answers, not for each prompt that is noted: there may be none to divide by"
    scenes = [[row["filtered_resps"] for row in run.samples["plam_scene_text"]] for run in runs]
    assert len(scenes[0]) == 8 and scenes[0] == scenes[1]
    noted = [run.results["plam_eval"]["prompts"]["documents"] for run in runs]
    prompts = [sorted(rows, key=lambda row: (row["task"], row["doc_id"])) for rows in noted]
    ids = [[(row["task"], row["doc_id"], row["ids"]) for row in rows] for rows in prompts]
    assert len(ids[0]) == 8 + 3 and ids[0] == ids[1]
    likelihoods = [
        [float(value[0]) for row in run.samples["arc_easy"] for value in row["filtered_resps"]] for run in runs
    ]
    assert len(likelihoods[0]) >= 3 * 3 and likelihoods[0] == pytest.approx(likelihoods[1], abs=1e-3)


def test_an_interrupted_merge_leaves_no_wrong_name(merged, monkeypatch):
    """The engine went on to the new weights although the caller was interrupted."""
    real, digest = merged._serving.merge_engine, merged.spec.digest()

    def merge_engine(llm: Any, spec: Any) -> Any:
        real(llm, spec)
        raise KeyboardInterrupt

    monkeypatch.setattr(merged._serving, "merge_engine", merge_engine)
    with pytest.raises(KeyboardInterrupt):
        merged.merge("demo", base=str(PAIR / "base"), layers="5:8")
    assert merged.spec.layer_range == (5, 8) and merged.merge_report.tensors == 12
    monkeypatch.undo()
    merged.merge("demo", base=str(PAIR / "base"))
    assert merged.spec.digest() == digest


def test_an_interrupt_that_breaks_the_engine_stays_one(monkeypatch):
    """An error in its place would be that of one cell of a sweep, which would go on with the next."""
    from plam_eval.model_wrappers.vllm import VLLMPlateauMixin
    from plam_eval.serving import engine

    def merge_engine(llm: Any, spec: Any) -> Any:
        raise KeyboardInterrupt

    monkeypatch.setattr(engine, "merge_engine", merge_engine)
    state = {"spec": None, "digest": None, "report": None, "broken": "a re-merge was interrupted half-way"}
    noted: list[Any] = []
    model: Any = SimpleNamespace(
        _serving=engine,
        client=SimpleNamespace(collective_rpc=lambda method: [state]),
        _merged=lambda *given: noted.append(given),
        _report=lambda: None,
    )
    with pytest.raises(KeyboardInterrupt):
        VLLMPlateauMixin.bring_weights_to(model, None, None)
    assert noted == [(None, None, None)]


def test_a_sweep_on_one_engine_equals_one_on_the_hf_model(merged, in_suite, tmp_path):
    from lmms_eval.models import get_model

    from plam_eval.evaluation.sweep import job, runner
    from plam_eval.evaluation.sweep.config import SweepConfig
    from plam_eval.evaluation.sweep.findings import read_findings

    hf = get_model("plam_llava")(pretrained=str(PAIR / "mllm"), device="cpu", dtype="float32")
    plateau = merged.spec
    found = []
    for lm, size in ((hf, 1), (merged, 16)):
        config = SweepConfig.load(
            model=lm.model_id,
            model_args=f"pretrained={PAIR}/mllm,dtype=float32,plateau=demo,base={PAIR}/base",
            tasks="gqa,pope",
            limit=10,
            layers="6:8,early",
            weights="0.3+1.2",
            controls="self_scale,noise",
            batch_size=size,
        )
        done = runner.run(job.Job.plan(config, tmp_path / lm.model_id), lm)
        assert [record["status"] for record in done.values()] == ["finished"] * 7
        found.append(read_findings(tmp_path / lm.model_id))
    merged.merge(plateau)
    one, other = found
    own = other.cells.set_index("cell")["digest"].fillna(digest_of(None))
    assert own.nunique() == 7
    for name, run in one.runs.items():
        assert list(run.samples["answer"]) == list(other.runs[name].samples["answer"]), name
        for task in ("gqa", "pope"):
            lines = samples_file(other.runs[name].file, task).read_text(encoding="utf-8").splitlines()
            assert [json.loads(line)["digest"] for line in lines] == [own[name]] * 10, name
    assert len({tuple(run.samples["answer"]) for run in one.runs.values()}) > 2
    assert one.cells["p"].equals(other.cells["p"])


def test_a_task_limit_and_its_stop_strings_hold(merged):
    build, select = merged._build_sampling_params_dict, merged._select_max_new_tokens
    assert select(5) == 5 and select(None) == 1024
    given = {"max_new_tokens": 5, "temperature": 0, "top_p": 1, "until": ["\n\n", ""]}
    assert build(given)["stop"] == ["\n\n"] and build(given)["max_tokens"] == 5
    assert build({**given, "until": "END"})["stop"] == ["END"]
    assert "stop" not in build({**given, "until": None})
    assert "repetition_penalty" not in build(given)
    merged._penalty = 1.05  # as Qwen2.5-VL's generation_config says
    try:
        assert build(given)["repetition_penalty"] == 1.05
        assert build({**given, "repetition_penalty": 1.2})["repetition_penalty"] == 1.2
    finally:
        merged._penalty = 1.0
    assert merged._resolve_sampling_params({"until": ["x"]})["stop"] == ["x"]


def test_a_refused_conversation_costs_itself_only(merged, in_suite):
    """A prompt that does not fit the engine: an error by default, an empty answer where a share of them is allowed."""
    real, long = merged._chat, "word " * 4000

    def chat(*, messages: Any, **kwargs: Any) -> Any:
        for message in messages:
            if "left of" in str(message):
                message[0]["content"] = long
        return real(messages=messages, **kwargs)

    merged._chat = chat
    try:
        with pytest.raises(GenerationError, match="max_error_share=0"):
            evaluate(merged, "mmstar", limit=30, batch_size=16)
        merged.max_error_share = 0.9
        run = evaluate(merged, "mmstar", limit=30, batch_size=16)
    finally:
        merged._chat, merged.max_error_share = real, 0.0
    generation = run.results["plam_eval"]["generation"]
    empty = [row["doc_id"] for row in run.samples["mmstar"] if row["filtered_resps"][0] == ""]
    assert generation["calls"] == 30 and 0 < generation["failed"] == len(empty) < 30
    assert "maximum" in generation["errors"][0]


def test_answers_that_a_merge_caught_half_way_are_none(merged, in_suite, monkeypatch):
    """The engine's workers go to other weights after the first token, behind the back of what could refuse it."""
    plateau, core, switched = merged.spec, merged.client.llm_engine, list[int]()

    def step() -> Any:
        outputs = stock()
        if core.has_unfinished_requests() and not switched:
            switched.append(1)
            merged._serving.outcome_of(merged.client.collective_rpc("plam_merge", args=(None,)))
            merged._serving.label_engine(merged.client)
        return outputs

    evaluate(merged, "mmstar", limit=1)  # the first asks the tokenizer's ways by a request of its own
    stock = core.step
    with monkeypatch.context() as patched:
        patched.setattr(core, "step", step)
        with pytest.raises(GenerationError, match=f"tokens 0 to 1 by {plateau.digest()}, tokens 1 to . by plain"):
            evaluate(merged, "mmstar", limit=6, batch_size=16)
    assert switched
    merged.merge(plateau)
    assert digests(evaluate(merged, "mmstar", limit=6, batch_size=16)) == {plateau.digest(): 6}


def test_simple_mode(in_suite):
    lm = make("simple", plateau="demo", base=str(PAIR / "base"))
    try:
        run = evaluate(lm, "pope,mme,seedbench_2_plus", limit=4, batch_size=16, force_simple=True)
    finally:
        lm.client.llm_engine.engine_core.shutdown()
    record = run.results["plam_eval"]
    assert record["mode"] == "simple"
    # Requests of all tasks come in one batch, and each keeps its task's settings.
    settings = {(entry["max_tokens"], *entry["stop"]): entry["calls"] for entry in record["generation"]["settings"]}
    assert settings == {(128, "\n\n"): 4, (16, "\n\n"): 4, (16, "ASSISTANT:"): 4}
    assert [row["doc_id"] for row in run.samples["mme"]] == [0, 1, 2, 3]
    assert {row["filtered_resps"][0].strip().lower() for row in run.samples["pope"]} <= {"yes", "no"}


def test_code_in_a_checkpoint_does_not_run(tmp_path):
    """A whole engine: config, tokenizer, processor and model are loaded by several parts of vLLM."""
    folder, marker = tmp_path / "mllm", tmp_path / "ran"
    shutil.copytree(PAIR / "mllm", folder)
    plant(folder, marker)
    lm = make(pretrained=str(folder))
    lm.client.llm_engine.engine_core.shutdown()
    assert not marker.exists()


@pytest.mark.parametrize(
    ("given", "error", "says"),
    [
        ({"trust_remote_code": "yes"}, ArgumentError, "expected true or false"),
        ({"max_new_tokens": "many"}, ArgumentError, "max_new_tokens is 'many'; expected int"),
        ({"plateau": "demo", "base": "/nowhere/base"}, MergeError, "no such folder"),
        ({"platau": "demo"}, TypeError, "did you mean plateau"),
        ({"tensor_paralel_size": 2}, TypeError, "did you mean tensor_parallel_size"),
        ({"model": "x/y"}, TypeError, "takes no argument model"),
        ({"load_format": "auto"}, TypeError, "takes no argument load_format"),
        ({"device": "cuda:0"}, ValueError, "the installed vLLM runs on cpu"),
        ({"max_error_share": 2}, ValueError, "expected a share"),
    ],
)
def test_bad_arguments_are_refused_before_the_engine_starts(given, error, says):
    with pytest.raises(error, match=says):
        make(**given)


def test_by_name_and_from_arguments_as_the_command_line_does(in_suite, tmp_path):
    given = {"MODEL": f"{PAIR}/mllm", "SPEC": f"demo,base={PAIR}/base", "TASKS": "pope", "GPUS": "1"}
    words = recipes.words_of("tensor parallel", "lmms-eval", **given)  # of docs/multi-gpu.md, on one worker
    assert words[:3] == ["--model", "plam_vllm", "--model_args"] and "tensor_parallel_size=1" in words[3]
    arguments = f"{words[3]},dtype=float32,enforce_eager=True,max_model_len=1024,skip_mm_profiling=True,device=cpu"
    run = evaluate("plam_vllm", "pope", model_args=arguments, limit=2, output=tmp_path / "out")
    assert run.results_file.exists() and "plam-" in str(run.results_file)
    with pytest.raises(EvaluationError, match="did you mean"):
        evaluate("plam_vllm", "poppe", model_args=arguments, limit=2)
