"""What plam-eval registers with lmms-eval: its models, its tasks, and whose prompts its models get.

`manifests` is the entry point of the group `lmms_eval.models`. Imports nothing heavy: lmms-eval loads all entry points
in one try block, so a manifest module that fails to import removes every other package's models without a word.
"""

from __future__ import annotations

import importlib.util
import sys
from dataclasses import dataclass
from importlib import resources
from typing import Any

from plam_eval import test_sets
from plam_eval.harness.loading import patch_dataset_loading, patch_yaml_loading
from plam_eval.patching import wrap_once

_PACKAGE = "plam_eval.model_wrappers"


@dataclass(frozen=True)
class Wrapper:
    """One of our model ids.

    Attributes:
        model_id: under which lmms-eval knows it.
        wrapped_id: the stock id it wraps, whose prompts it uses.
        chat, simple: paths of its classes, by mode; None where it has no such mode.
        model_types: what config.json calls the models that its stock class loads; none: it finds out by itself.
        batched: whether a scan may answer several documents at a time: its stock loop takes batches, and pads prompts
            on the left (Qwen2-VL's pads on the right).
        hf: whether its model is one of transformers in this process (`harness.wrapper.HFWrapper`): only then can many
            variants of it be answered for at once, as scans and sweeps that answer together do.
        text: whether its model reads text alone: a base LLM, which has no image to look at.
    """

    model_id: str
    wrapped_id: str
    chat: str | None
    simple: str | None
    model_types: tuple[str, ...] = ()
    batched: bool = False
    hf: bool = True
    text: bool = False


WRAPPERS: dict[str, Wrapper] = {
    wrapper.model_id: wrapper
    for wrapper in (
        Wrapper(
            "plam_llava",
            "llava_hf",
            chat=f"{_PACKAGE}.llava.PlamLlavaChat",
            simple=f"{_PACKAGE}.llava.PlamLlava",
            model_types=("llava", "llava_next", "llava_onevision"),
        ),
        Wrapper(
            "plam_qwen2_vl",
            "qwen2_vl",
            chat=None,
            simple=f"{_PACKAGE}.qwen2_vl.PlamQwen2VL",
            model_types=("qwen2_vl",),
        ),
        Wrapper(
            "plam_qwen2_5_vl",
            "qwen2_5_vl",
            chat=f"{_PACKAGE}.qwen2_5_vl.PlamQwen25VLChat",
            simple=f"{_PACKAGE}.qwen2_5_vl.PlamQwen25VL",
            model_types=("qwen2_5_vl",),
            batched=True,
        ),
        Wrapper(
            "plam_qwen3_vl",
            "qwen3_vl",
            chat=f"{_PACKAGE}.qwen3_vl.PlamQwen3VLChat",
            simple=f"{_PACKAGE}.qwen3_vl.PlamQwen3VL",
            model_types=("qwen3_vl", "qwen3_vl_moe"),
            batched=True,
        ),
        Wrapper(
            "plam_vllm",
            "vllm",
            chat=f"{_PACKAGE}.vllm.PlamVLLMChat",
            simple=f"{_PACKAGE}.vllm.PlamVLLM",
            hf=False,
        ),
        Wrapper(
            "plam_internvl",
            "internvl_hf",
            chat=f"{_PACKAGE}.internvl.PlamInternVLChat",
            simple=None,
            model_types=("internvl",),
        ),
        Wrapper("plam_hf", "huggingface", chat=f"{_PACKAGE}.generic.PlamHFChat", simple=None),
        Wrapper(
            "plam_text",
            "huggingface",
            chat=f"{_PACKAGE}.text.PlamTextChat",
            simple=f"{_PACKAGE}.text.PlamText",
            text=True,
        ),
    )
}


def prompt_id(model: Any) -> Any:
    """The id under which lmms-eval looks up prompts and generation settings.

    Args:
        model: a model's id or an instance; whatever is not one of our wrappers is returned as it is.
    """
    if isinstance(model, str):
        return WRAPPERS[model].wrapped_id if model in WRAPPERS else model
    return getattr(model, "wrapped_id", model)


def task_folder() -> str:
    """Folder of our task YAMLs."""
    return str(resources.files("plam_eval.tasks"))


def extend_task_manager() -> None:
    """Our tasks without `--include_path`, the wrapped model's prompts for our model ids, and tasks loaded faster.

    The file of a released test set is looked at when its task is named on lmms-eval's command line, which is before the
    model is loaded; its datasets come after it.
    """
    from lmms_eval.tasks import TaskManager

    patch_yaml_loading()
    patch_dataset_loading()

    def init(
        stock: Any,
        self: Any,
        verbosity: str = "INFO",
        include_path: str | list[str] | None = None,
        include_defaults: bool = True,
        model_name: Any = None,
    ) -> None:
        paths = [include_path] if isinstance(include_path, str) else list(include_path or [])
        if include_defaults:  # last: a user's own folder wins over ours
            paths.append(task_folder())
        stock(self, verbosity, paths or None, include_defaults, prompt_id(model_name))

    def match_tasks(stock: Any, self: Any, task_list: Any) -> Any:
        names = stock(self, task_list)
        for name in names:
            test_sets.prepare(name)
        return names

    wrap_once(TaskManager, "__init__", init)
    wrap_once(TaskManager, "match_tasks", match_tasks)


def import_problem() -> str | None:
    """What the installed lmms-eval imports that is not there, and the remedy; None where it can evaluate.

    Its evaluator imports this as it starts, long after `import lmms_eval` has gone well.
    """
    if importlib.util.find_spec("filelock._api") is None:
        return "it imports filelock._api; pip install 'filelock<4.3'"
    return None


def manifests() -> list[Any]:
    """`ModelManifest`s of our wrappers. Called by lmms-eval; also adds our task folder to its task manager."""
    from lmms_eval.models.registry_v2 import ModelManifest
    from loguru import logger

    try:
        extend_task_manager()
    except (ImportError, AttributeError, TypeError) as error:
        # The models still work without it, but an exception here would remove everybody's models in silence.
        logger.error(
            f"plam-eval: this lmms-eval's TaskManager could not be extended ({error!r}); "
            "name the tasks folder with --include_path"
        )
    _list_in_lmms_eval()
    return [
        ModelManifest(model_id=w.model_id, simple_class_path=w.simple, chat_class_path=w.chat)
        for w in WRAPPERS.values()
    ]


def _list_in_lmms_eval() -> None:
    """Our ids into the tables that `lmms-eval models` prints, as lmms-eval puts those of its old plugins there."""
    models = sys.modules.get("lmms_eval.models")  # it is being imported: this runs at its end
    for table, kind in (("AVAILABLE_CHAT_TEMPLATE_MODELS", "chat"), ("AVAILABLE_SIMPLE_MODELS", "simple")):
        names = getattr(models, table, None)
        if isinstance(names, dict):
            names.update({w.model_id: path for w in WRAPPERS.values() if (path := getattr(w, kind)) is not None})
