"""vLLM on merged weights from the start: `load_format="plam"`.

vLLM finds it through the group of entry points `vllm.general_plugins` (`register`, in every process).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Generator
from pathlib import Path
from typing import Any

from torch import Tensor, nn
from vllm import envs
from vllm.logger import init_logger
from vllm.model_executor.model_loader import register_model_loader
from vllm.model_executor.model_loader.default_loader import DefaultModelLoader

from plam_eval import hub
from plam_eval.errors import MergeError
from plam_eval.merging.checkpoint import Checkpoint
from plam_eval.merging.merge import merged_weights
from plam_eval.merging.plan import plan_merge
from plam_eval.merging.report import MergeReport
from plam_eval.merging.spec_checkpoints import SpecCheckpoints
from plam_eval.patching import wrap_once
from plam_eval.serving import versions
from plam_eval.serving.options import (
    LOAD_FORMAT,
    SPEC_FILES,
    SpecFiles,
    open_engine_model,
    open_spec_files,
    spec_files,
    split_options,
)
from plam_eval.serving.state import ModelState, ReadFiles, named_report, set_state
from plam_eval.serving.worker import EXTENSION
from plam_eval.spec import load_spec

# In vLLM's own namespace: its logging is configured for that one alone.
logger = init_logger("vllm.plam_eval")


class PlamModelLoader(DefaultModelLoader):
    """vLLM's default loader on merged weights.

    `model_loader_extra_config` takes `plateau` (name, path, mapping or "none") and the overrides of the wrappers, next
    to the default loader's own keys. Tensors are merged as they stream from the checkpoint, before vLLM fuses and
    shards them, so that every tensor-parallel size holds slices of the same bits.

    Args:
        load_config: vLLM's.

    Raises:
        SpecError, MergeError: before the first tensor is loaded where headers show it.
        LayoutError: the installed vLLM is another than this was written for.
    """

    def __init__(self, load_config: Any) -> None:
        versions.check_installed(versions.LOADING)
        options, rest = split_options(load_config.model_loader_extra_config)
        self._spec_files: SpecFiles | None = options.pop(SPEC_FILES, None)
        self.spec = load_spec(options.pop("plateau", None), options)
        self._checkpoint: Checkpoint | None = None
        super().__init__(dataclasses.replace(load_config, load_format="auto", model_loader_extra_config=rest))

    def get_all_weights(self, model_config: Any, model: nn.Module) -> Generator[tuple[str, Tensor], None, None]:
        """The checkpoint's (name, tensor) pairs, merged as the spec says, in the dtype the model runs in.

        Args:
            model_config: vLLM's, of the model itself or of a draft model beside it.
            model: what is being loaded.
        """
        weights = super().get_all_weights(model_config, model)
        if getattr(model_config, "runner_type", None) == "draft":  # a speculative draft model has no plateau
            yield from weights
            return
        checkpoint = open_engine_model(model_config)
        checkpoint.check_read_by_vllm()
        self._checkpoint = checkpoint
        files = ReadFiles.of(checkpoint)
        set_state(model, ModelState(model=files))
        if self.spec is None:
            yield from weights
            return
        opened = open_spec_files(self.spec, self._spec_files)
        sources = {name: ReadFiles.of(one) for name, one in opened.by_name(self.spec).items()}
        plan = plan_merge(self.spec, model=checkpoint, base=opened.base, ancestor=opened.ancestor)

        def on_report(report: MergeReport) -> None:
            report = named_report(report, checkpoint, self.spec, plan.warnings)
            set_state(model, ModelState(self.spec, report, files, sources))
            logger.info("%s", report)

        yield from merged_weights(weights, self.spec, opened.base, model_config.dtype, on_report, opened.ancestor)

    def _prepare_weights(self, model_name_or_path: str, *args: Any, **kwargs: Any) -> Any:
        """vLLM's choice of files, which has to be that of `Checkpoint`, through which a re-merge reads the MLLM."""
        chosen = super()._prepare_weights(model_name_or_path, *args, **kwargs)
        checkpoint, self._checkpoint = self._checkpoint, None  # for the model itself, not for encoders beside it
        if checkpoint is not None:
            _check_files(checkpoint, [Path(file).name for file in chosen[1]])
        return chosen


def _check_files(checkpoint: Checkpoint, loaded: list[str]) -> None:
    """Raises MergeError when vLLM loads other weight files than `checkpoint` holds."""
    expected = {checkpoint.file(name) for name in checkpoint.names()}
    if set(loaded) == expected:
        return
    mine, theirs = sorted(expected - set(loaded)), sorted(set(loaded) - expected)
    raise MergeError(
        f"{checkpoint.name}: holds more than one set of weights: only vLLM loads {', '.join(theirs) or 'nothing'}, "
        f"only transformers loads {', '.join(mine) or 'nothing'}. Keep one set in the folder"
    )


def register() -> None:
    """Make `load_format="plam"` known to vLLM, which calls this in every one of its processes, any number of times."""
    from vllm.engine import arg_utils
    from vllm.engine.arg_utils import EngineArgs
    from vllm.model_executor import model_loader

    if getattr(model_loader, "_LOAD_FORMAT_TO_MODEL_LOADER", {}).get(LOAD_FORMAT) is not PlamModelLoader:
        register_model_loader(LOAD_FORMAT)(PlamModelLoader)
    wrap_once(EngineArgs, "create_engine_config", _create_engine_config)
    if hasattr(arg_utils, "get_model_path"):  # else it is looked up elsewhere, and only names without a revision work
        wrap_once(arg_utils, "get_model_path", _get_model_path)


def _create_engine_config(stock: Callable[..., Any], arguments: Any, *args: Any, **kwargs: Any) -> Any:
    if arguments.load_format == LOAD_FORMAT:
        prepare_arguments(arguments)
    return stock(arguments, *args, **kwargs)


def _get_model_path(stock: Callable[..., Any], model: Any, revision: str | None = None) -> Any:
    """While offline vLLM looks a model's name up before `prepare_arguments` sees it, and knows no revisions in it."""
    repository, named = hub.split_revision(str(model))
    if named is None or Path(model).exists():
        return stock(model, revision)
    if problem := hub.revision_problem(named):
        raise MergeError(f"model={model}: {problem}")
    if revision not in (None, named):
        raise MergeError(f"model={model}: names another revision than revision={revision}; give one of them")
    return stock(repository, named)


def prepare_arguments(arguments: Any) -> None:
    """Check the spec in the process the user started: what fails in a worker ends with vLLM's message, not ours.

    The workers get the spec itself, which need not exist as a file where they run.

    Args:
        arguments: vLLM's EngineArgs; changed in place.

    Raises:
        SpecError, MergeError: the spec cannot be merged into this model.
        LayoutError: the installed vLLM is another than this was written for.
    """
    versions.check_installed(versions.LOADING)
    options, rest = split_options(arguments.model_loader_extra_config)
    options.pop(SPEC_FILES, None)  # of an earlier start with the same arguments
    spec = load_spec(options.pop("plateau", None), options)
    model = open_engine_model(arguments)
    model.check_read_by_vllm()
    files: SpecFiles | None = None
    if spec is not None:
        opened = SpecCheckpoints.open(spec)
        opened.announce(plan_merge(spec, model=model, base=opened.base, ancestor=opened.ancestor))
        files = spec_files(opened)
    if model.commit is not None:
        if envs.VLLM_USE_MODELSCOPE:
            raise MergeError(
                f"{arguments.model}: vLLM would load it from ModelScope (VLLM_USE_MODELSCOPE is set), and merging "
                "reads the Hugging Face hub; download it and pass the folder, or unset VLLM_USE_MODELSCOPE"
            )
        # A branch may move before vLLM, or a worker, looks where it leads; and vLLM knows no revisions behind a name.
        arguments.model, arguments.revision = model.loaded_by, model.commit
    model.announce()
    arguments.model_loader_extra_config = {
        **rest,
        "plateau": spec.to_dict() if spec is not None else None,
        SPEC_FILES: files,
    }
    if arguments.worker_extension_cls not in ("", EXTENSION):
        logger.warning("worker_extension_cls=%s: this engine cannot be re-merged", arguments.worker_extension_cls)
    else:
        arguments.worker_extension_cls = EXTENSION
    if not versions.is_tested():
        logger.warning("%s", versions.untested())
