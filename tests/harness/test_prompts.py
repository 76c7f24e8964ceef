"""Our model ids get the prompts and generation settings of the ids they wrap, document by document."""

from __future__ import annotations

from typing import Any

import pytest

from plam_eval.harness.registry import WRAPPERS, prompt_id
from tests.helpers.wrappers import NINE


@pytest.fixture(scope="module")
def manager():
    import lmms_eval.models  # noqa: F401  (loads our entry point, which extends the task manager)
    from lmms_eval.tasks import TaskManager

    return TaskManager("ERROR")


def test_our_tasks_are_found_without_include_path(manager):
    assert {"plam9", "mmbench_cn_dev_static"} <= set(manager.all_tasks)


@pytest.mark.parametrize("wrapper", WRAPPERS.values(), ids=WRAPPERS)
def test_an_id_of_ours_stands_for_the_one_it_wraps(wrapper, monkeypatch):
    from lmms_eval.models import get_model_manifest
    from lmms_eval.tasks import TaskManager

    stock = get_model_manifest(wrapper.wrapped_id)
    assert bool(wrapper.chat) == bool(stock.chat_class_path)
    # The stock wrapper of LLMs has no simple mode; a base is asked as its MLLM was, which may be in simple mode.
    assert bool(wrapper.simple) == (bool(stock.simple_class_path) or wrapper.text)
    monkeypatch.setattr(TaskManager, "initialize_tasks", lambda *args, **kwargs: {})  # indexing takes seconds
    assert TaskManager(model_name=wrapper.model_id).model_name == wrapper.wrapped_id
    assert TaskManager(model_name="llava_hf").model_name == "llava_hf"


def _requests(manager: Any, model_id: str, mode: str, names: tuple[str, ...]) -> dict[tuple[str, int], Any]:
    from lmms_eval.evaluator_utils import get_task_list
    from lmms_eval.tasks import get_task_dict

    manager.model_name = prompt_id(model_id)
    manager.task_group_map.clear()
    found = {}
    for output in get_task_list(get_task_dict(list(names), manager, mode)):
        task = output.task
        task.build_all_requests(limit=4, rank=0, world_size=1)
        for request in task.instances:
            messages = task.doc_to_messages(task.eval_docs[request.doc_id]) if mode == "chat" else None
            text = (
                [part for message in messages for part in message["content"] if part["type"] == "text"]
                if messages
                else []
            )
            settings = next(part for part in request.args if isinstance(part, dict))
            found[output.task_name, request.doc_id] = (request.args[0], settings, text)
    return found


@pytest.mark.parametrize(
    ("model_id", "mode"), [("plam_llava", "chat"), ("plam_llava", "simple"), ("plam_qwen3_vl", "chat")]
)
def test_requests_equal_the_wrapped_models_for_all_nine_tasks(model_id, mode, manager, in_suite):
    ours = _requests(manager, model_id, mode, NINE)
    assert len(ours) == 4 * len(NINE)
    assert ours == _requests(manager, WRAPPERS[model_id].wrapped_id, mode, NINE)


def test_a_new_id_would_get_other_prompts(manager, in_suite):
    """The comparison above can fail: under an id lmms-eval does not know, MMMU's prompts are not Qwen3-VL's."""
    ours = _requests(manager, "plam_qwen3_vl", "chat", ("mmmu_val",))
    assert ours != _requests(manager, "no_such_model", "chat", ("mmmu_val",))
