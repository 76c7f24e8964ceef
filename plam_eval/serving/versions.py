"""What plam-eval uses of vLLM: which functions and classes, with which parameters and fields, each of them once.

vLLM promises to keep few of them. A version in which one is missing, or takes something else, is refused by its name
before an engine is started or a tensor replaced. Imports no vLLM until it is asked to look at one.
"""

from __future__ import annotations

import dataclasses
import importlib
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache

from plam_eval.errors import PlamError
from plam_eval.versions import VLLM_READ, VLLM_TESTED

ENGINE_MODULE = "vllm.entrypoints.llm"
"""Importing it loads the engine, and what a build got wrong with it; `import vllm` loads nothing."""

ENTRY_POINT_GROUPS = {"vllm.general_plugins": "load_format=plam", "vllm.endpoint_plugins": "POST /plam/merge"}
"""Where vLLM looks for plugins, and what plam-eval registers in each."""

_LOADER = "vllm.model_executor.model_loader.default_loader:DefaultModelLoader"
_WORKER = "vllm.v1.worker.gpu_worker:Worker"
_ASYNC = "vllm.v1.engine.async_llm:AsyncLLM"
_ENGINE = "vllm.v1.engine.llm_engine:LLMEngine"
_LLM = f"{ENGINE_MODULE}:LLM"
_LAYERWISE = "vllm.model_executor.model_loader.reload.layerwise"

# "module:name" -> parameters that we pass or are passed, or fields that we set; of others only that they are there.
LOADING: dict[str, tuple[str, ...]] = {
    "vllm.model_executor.model_loader:register_model_loader": ("load_format",),
    f"{_LOADER}.__init__": ("self", "load_config"),
    f"{_LOADER}.get_all_weights": ("self", "model_config", "model"),
    f"{_LOADER}._prepare_weights": (
        *("self", "model_name_or_path", "subfolder"),
        *("revision", "fall_back_to_pt", "allow_patterns_overrides"),
    ),
    "vllm.config.load:LoadConfig": ("load_format", "model_loader_extra_config"),
    "vllm.engine.arg_utils:EngineArgs": (
        *("model", "revision", "load_format", "model_loader_extra_config", "worker_extension_cls"),
    ),
    "vllm.engine.arg_utils:EngineArgs.create_engine_config": ("self",),
    "vllm.transformers_utils.repo_utils:get_model_path": ("model", "revision"),
}
"""To load merged weights (`load_format="plam"`)."""

REMERGING: dict[str, tuple[str, ...]] = {
    f"{_WORKER}.get_model": ("self",),
    f"{_WORKER}.update_config": ("self", "overrides"),
    f"{_WORKER}.reload_weights": ("self",),
    "vllm.config:set_current_vllm_config": ("vllm_config",),
    "vllm.distributed.parallel_state:get_world_group": (),
}
"""In a worker, to give a running engine other weights."""

LAYERWISE: dict[str, tuple[str, ...]] = {
    f"{_LAYERWISE}:initialize_layerwise_reload": ("model",),
    f"{_LAYERWISE}:finalize_layerwise_reload": (),  # which hands on whatever it is given
}
"""To reload single layers; without these all of a model is reloaded."""

OFFLINE: dict[str, tuple[str, ...]] = {
    f"{_LLM}.collective_rpc": ("self", "method", "args"),
    f"{_ENGINE}.has_unfinished_requests": ("self",),
    f"{_ENGINE}.reset_prefix_cache": ("self", "reset_running_requests", "reset_connector"),
    f"{_ENGINE}.reset_encoder_cache": ("self",),
    f"{_LLM}.update_weight_version": ("self", "new_version"),
    "vllm.v1.engine.exceptions:EngineDeadError": (),
}
"""From outside, to re-merge a `vllm.LLM`."""

SERVING: dict[str, tuple[str, ...]] = {
    "vllm.plugins.endpoint_plugins.interface:EndpointPlugin.attach_router": ("self", "app"),
    "vllm.plugins.endpoint_plugins.interface:EndpointPlugin.init_state": ("self", "engine_client", "state", "args"),
    f"{_ASYNC}.collective_rpc": ("self", "method", "args"),
    f"{_ASYNC}.pause_generation": ("self", "mode", "clear_cache"),
    f"{_ASYNC}.resume_generation": ("self",),
    f"{_ASYNC}.reset_prefix_cache": ("self", "reset_running_requests", "reset_connector"),
    f"{_ASYNC}.reset_encoder_cache": ("self",),
    f"{_ASYNC}.errored": (),
    f"{_ASYNC}.generate": (),  # which is handed on whatever it is given
    f"{_ASYNC}.get_weight_version": ("self",),
    f"{_ASYNC}.update_weight_version": ("self", "new_version"),
}
"""The routes of an API server."""

ANSWERING: dict[str, tuple[str, ...]] = {
    f"{_LLM}.chat": ("self", "messages", "sampling_params", "use_tqdm", "tokenization_kwargs"),
    f"{_LLM}.get_default_sampling_params": ("self",),
    f"{_LLM}.get_tokenizer": ("self",),
    "vllm.sampling_params:SamplingParams": (
        *("temperature", "max_tokens", "top_p", "top_k", "repetition_penalty", "stop"),
    ),
    "vllm.exceptions:VLLMClientError": (),
    "vllm.outputs:CompletionOutput": ("weight_versions",),
    "vllm.outputs:WeightVersionSpan": ("version",),
}
"""What the wrapper `plam_vllm` asks of an engine."""

EVERYTHING = {**LOADING, **REMERGING, **LAYERWISE, **OFFLINE, **SERVING, **ANSWERING}


class LayoutError(PlamError, RuntimeError):
    """A vLLM that is laid out otherwise than those that plam-eval knows; nothing was started or changed."""


@dataclass(frozen=True)
class Signature:
    """Parameters of a function or fields of a class, and those among them that a caller has to give."""

    names: tuple[str, ...]
    required: tuple[str, ...] = ()


def problems(needed: Mapping[str, tuple[str, ...]], look_up: Callable[[str], Signature | None]) -> list[str]:
    """How a vLLM differs from what is needed of it, by name.

    Args:
        needed: one of the tables of this module.
        look_up: what a vLLM has under a name; None where it has nothing.
    """
    differences = []
    for name, expected in needed.items():
        signature = look_up(name)
        if signature is None:
            differences.append(f"{name} is missing")
            continue
        lacking = [parameter for parameter in expected if parameter not in signature.names]
        # A parameter more that has no default would be missing from our calls, and from those of what we override.
        more = [parameter for parameter in signature.required if parameter not in expected] if expected else []
        if lacking:
            differences.append(f"{name} has no {', '.join(lacking)} (it has {', '.join(signature.names[:12])})")
        if more:
            differences.append(f"{name} also wants {', '.join(more)}")
    return differences


@lru_cache(maxsize=256)
def installed(name: str) -> Signature | None:
    """What the installed vLLM has under a name; None where it has nothing.

    Args:
        name: "module:name".
    """
    module, _, path = name.partition(":")
    try:
        value = importlib.import_module(module)
        for attribute in path.split("."):
            value = getattr(value, attribute)
    except (ImportError, AttributeError):
        return None
    if inspect.isclass(value):
        fields = dataclasses.fields(value) if dataclasses.is_dataclass(value) else ()
        return Signature(tuple(field.name for field in fields) or tuple(getattr(value, "__struct_fields__", ())))
    if not callable(value):
        return Signature(())
    parameters = inspect.signature(value).parameters.values()
    variable = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    named = [parameter for parameter in parameters if parameter.kind not in variable]
    required = [parameter.name for parameter in named if parameter.default is inspect.Parameter.empty]
    return Signature(tuple(parameter.name for parameter in named), tuple(required))


def check_installed(*tables: Mapping[str, tuple[str, ...]]) -> None:
    """Refuse an installed vLLM that has not what is needed of it.

    Args:
        *tables: of this module, such as `LOADING`.

    Raises:
        LayoutError: naming all that is missing or takes something else.
    """
    differences = [difference for table in tables for difference in problems(table, installed)]
    if differences:
        raise LayoutError(
            f"vLLM {vllm_version()} is laid out otherwise than plam-eval expects, so nothing was loaded: "
            f"{'; '.join(differences)}. Install a version that `plam doctor --vllm` knows"
        )


def vllm_version() -> str:
    """The version of the installed vLLM."""
    from vllm.version import __version__

    return str(__version__)


def is_tested() -> bool:
    """Whether the installed vLLM, whatever its build, is a version that was run here."""
    return vllm_version().split("+")[0] in VLLM_TESTED


def untested() -> str:
    """What is known of an installed version that was never run here, in a sentence."""
    tested = f"plam-eval was tested with vLLM {', '.join(VLLM_TESTED)} (CPU build), not with {vllm_version()}"
    read = vllm_version().split("+")[0] in VLLM_READ
    return f"{tested}, of which what is used was compared in the source" if read else tested


def remerge_way() -> tuple[str, str]:
    """How a running engine is re-merged under the installed vLLM: "layers" or "all", and why.

    "layers" reloads only the attention and MLP blocks whose weights change, through functions that vLLM does not
    promise to keep. "all" is vLLM's own `reload_weights`: every tensor is read and loaded again.
    """
    if differences := problems(LAYERWISE, installed):
        return "all", f"vLLM {vllm_version()} has another layerwise reload: {'; '.join(differences)}"
    if not is_tested():
        return "all", f"vLLM {vllm_version()} was never tested here ({', '.join(VLLM_TESTED)} was)"
    return "layers", f"vLLM {vllm_version()} is a tested version"
