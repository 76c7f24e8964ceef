"""What plam-eval registers with lmms-eval: its models, its tasks, and whose prompts its models get.

`manifests` is the entry point of the group `lmms_eval.models`. Imports nothing heavy: lmms-eval loads all entry points
in one try block, so a manifest module that fails to import removes every other package's models without a word.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from importlib import resources
from typing import Any

from plam_eval.harness.loading import patch_dataset_loading, patch_yaml_loading
from plam_eval.patching import wrap_once

_PACKAGE = "plam_eval.model_wrappers"


@dataclass(frozen=True)
class Wrapper:
    """One of our model ids: the stock id it wraps, whose prompts it uses, and its classes."""

    model_id: str
    wrapped_id: str
    chat: str | None
    simple: str | None


WRAPPERS: dict[str, Wrapper] = {
    wrapper.model_id: wrapper
    for wrapper in (
        Wrapper("plam_llava", "llava_hf", f"{_PACKAGE}.llava.PlamLlavaChat", f"{_PACKAGE}.llava.PlamLlava"),
        Wrapper("plam_qwen2_vl", "qwen2_vl", None, f"{_PACKAGE}.qwen2_vl.PlamQwen2VL"),
        Wrapper(
            "plam_qwen2_5_vl",
            "qwen2_5_vl",
            f"{_PACKAGE}.qwen2_5_vl.PlamQwen25VLChat",
            f"{_PACKAGE}.qwen2_5_vl.PlamQwen25VL",
        ),
        Wrapper(
            "plam_qwen3_vl", "qwen3_vl", f"{_PACKAGE}.qwen3_vl.PlamQwen3VLChat", f"{_PACKAGE}.qwen3_vl.PlamQwen3VL"
        ),
        Wrapper("plam_vllm", "vllm", f"{_PACKAGE}.vllm.PlamVLLMChat", f"{_PACKAGE}.vllm.PlamVLLM"),
        Wrapper("plam_internvl", "internvl_hf", f"{_PACKAGE}.internvl.PlamInternVLChat", None),
        Wrapper("plam_hf", "huggingface", f"{_PACKAGE}.generic.PlamHFChat", None),
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
    """Our tasks without `--include_path`, the wrapped model's prompts for our model ids, and tasks loaded faster."""
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

    wrap_once(TaskManager, "__init__", init)


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
