"""The re-merge of a running engine, inside each of its workers.

Only the attention and MLP blocks whose weights change are loaded again where the installed vLLM is a tested version;
else vLLM's own reload of every tensor is used. All workers of an engine change together or not at all.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from vllm.config import set_current_vllm_config
from vllm.logger import init_logger

from plam_eval.errors import MergeError
from plam_eval.merging.merge import merged_weights
from plam_eval.merging.names import decoder_tensor
from plam_eval.merging.plan import plan_merge
from plam_eval.merging.report import MergeReport
from plam_eval.merging.spec_checkpoints import SpecCheckpoints
from plam_eval.serving import versions
from plam_eval.serving.checksums import weight_checksums
from plam_eval.serving.options import (
    LOAD_FORMAT,
    SPEC_FILES,
    SpecFiles,
    open_engine_model,
    open_spec_files,
    spec_files,
    split_options,
)
from plam_eval.serving.state import ModelState, ReadFiles, named_report, set_state, state_of
from plam_eval.spec import MODULES, PlateauSpec

# In vLLM's own namespace: its logging is configured for that one alone.
logger = init_logger("vllm.plam_eval")


class PlateauWorker:
    """What `worker_extension_cls` adds to vLLM's workers; called by name through `collective_rpc`."""

    def plam_state(self, checksums: bool = False) -> dict[str, Any]:
        """Spec and merge report of this worker's model (None and None when plain), what it was merged from, and why it
        is broken, if it is.

        Args:
            checksums: whether with those of its weights, for which all of them are read.
        """
        state = state_of(self.get_model())  # type: ignore[attr-defined]
        return {
            "spec": state.spec.to_dict() if state.spec else None,
            "digest": state.spec.digest() if state.spec else None,
            "report": state.report.to_dict() if state.report else None,
            "merged_from": state.merged_from(),
            "broken": state.broken,
            **({"checksums": weight_checksums(self.get_model())} if checksums else {}),  # type: ignore[attr-defined]
        }

    def plam_merge(self, spec: dict[str, Any] | None, files: SpecFiles | None = None) -> dict[str, Any]:
        """Bring the model to `spec` (None: back to plain), on all workers or on none.

        The caller sees to it that no request is running, and resets the prefix cache: `merge_engine` does both.

        Args:
            spec: as `PlateauSpec.to_dict` gives it.
            files: those that the spec's base and ancestor were found to be; None: each worker looks for them by name.

        Returns:
            {"report": ...}, or {"faults": [...]} with the old weights in place. After a failure that left neither the
            old nor the new weights, also {"broken": why}: this engine refuses to generate from then on.
        """
        old = state_of(self.get_model())  # type: ignore[attr-defined]
        if old.broken:
            return {"faults": [old.broken], "broken": old.broken}
        problems = versions.problems(versions.REMERGING, versions.installed)
        problems = [f"vLLM {versions.vllm_version()}: {problem}" for problem in problems]
        problems = problems or why_not_remerged(self.vllm_config)  # type: ignore[attr-defined]
        if problems:
            return {"faults": problems}
        wanted = PlateauSpec.model_validate(spec) if spec is not None else None
        reload = _Reload(self, old, wanted, files)
        try:
            problems, new = reload.run()
            problems = _of_all_workers(problems)
            if not problems:
                set_state(self.get_model(), new)  # type: ignore[attr-defined]
                return {"report": new.report.to_dict() if new.report else None}
            of_way_back = ["a module is half loaded"] if reload.torn else list[str]()
            if reload.touched and not reload.torn:
                of_way_back, _ = _Reload(self, old, old.spec, None, reload.blocks).run()
            of_way_back = _of_all_workers(of_way_back)
        except BaseException:  # Ctrl-C, in an engine that runs in the user's process
            if reload.touched:
                _break(self, "plam-eval: a re-merge was interrupted half-way; start the engine again")
            raise
        if not of_way_back:
            return {"faults": problems}
        why = (
            "plam-eval: a re-merge failed and so did the way back, so this engine holds neither the old nor the new "
            f"weights; start it again. Failed: {'; '.join(problems)}. Way back: {'; '.join(of_way_back)}"
        )
        _break(self, why)
        return {"faults": problems, "broken": why}


EXTENSION = f"{PlateauWorker.__module__}.{PlateauWorker.__qualname__}"
"""The name by which vLLM finds `PlateauWorker` in every worker process."""


def why_not_remerged(vllm_config: Any) -> list[str]:
    """Why an engine of this kind cannot be re-merged, problem by problem; empty where it can.

    Args:
        vllm_config: the engine's.
    """
    problems = []
    replicas = vllm_config.parallel_config.data_parallel_size
    if replicas > 1:  # vLLM reports the outcome of the first one only
        problems.append(f"this engine has {replicas} data-parallel replicas; start it with the new spec instead")
    if vllm_config.lora_config is not None:
        problems.append("this engine has LoRA enabled, which wraps the layers; start it with the new spec instead")
    return problems


def _of_all_workers(problems: list[str]) -> list[str]:
    """The problems of all workers of this engine, on each of them: they go on together, or back together."""
    from torch import distributed
    from vllm.distributed.parallel_state import get_world_group

    group = get_world_group()
    if group.world_size == 1:
        return problems
    gathered: list[Any] = [None] * group.world_size
    distributed.all_gather_object(gathered, problems, group=group.cpu_group)
    return list(dict.fromkeys(problem for of_worker in gathered for problem in of_worker))


def _break(worker: Any, why: str) -> None:
    def execute_model(*args: Any, **kwargs: Any) -> Any:
        raise RuntimeError(why)

    worker.model_runner.execute_model = execute_model
    model = worker.get_model()
    set_state(model, dataclasses.replace(state_of(model), broken=why))


Block = tuple[int, str]
"""A decoder layer's attention or MLP, such as (3, "self_attn"): what vLLM keeps under one module of the same name."""


def _block(name: str) -> Block | None:
    """Block of a tensor or module, by its name in a checkpoint or in vLLM; None outside the decoder layers."""
    key = decoder_tensor(name)
    return (key[0], key[1].split(".")[0]) if key else None


def _changed_blocks(*specs: PlateauSpec | None) -> set[Block]:
    return {
        (layer, MODULES[module].split(".")[0])
        for spec in specs
        if spec is not None
        for layer in spec.layers
        for module in spec.modules
    }


class _Reload:
    """Loads the weights of `spec` into blocks of a worker's model, whatever they hold: those that change, unless given.

    Attributes:
        touched: whether a block may hold other weights than before.
        torn: whether vLLM was stopped while it loaded into a module, from which there is no way back.
    """

    def __init__(
        self,
        worker: Any,
        old: ModelState,
        spec: PlateauSpec | None,
        files: SpecFiles | None,
        blocks: set[Block] | None = None,
    ) -> None:
        self.worker, self.old, self.spec, self.files = worker, old, spec, files
        self.blocks = blocks or set[Block]()
        self.touched = self.torn = False

    def run(self) -> tuple[list[str], ModelState]:
        """What went wrong, and the state that the model is in if nothing did."""
        try:
            return [], self._run()
        except MergeError as error:
            return error.problems, self.old
        except Exception as error:
            logger.exception("loading other weights into the running engine failed")
            return [f"{type(error).__name__}: {error}"], self.old

    def _run(self) -> ModelState:
        model_config = self.worker.vllm_config.model_config
        # There is no old one where another load_format than ours has loaded it.
        checkpoint = self.old.model.open() if self.old.model is not None else open_engine_model(model_config)
        opened, warnings = None, tuple[str, ...]()
        sources = dict(self.old.sources)
        if self.spec is not None:
            opened = self._open(self.spec)
            for name, one in opened.by_name(self.spec).items():
                if name in sources:
                    sources[name].verify(one)
                sources[name] = ReadFiles.of(one)
            plan = plan_merge(self.spec, model=checkpoint, base=opened.base, ancestor=opened.ancestor)
            warnings, self.files = plan.warnings, spec_files(opened)
        # Not before the plan: it is what finds a range that is longer than any model.
        self.blocks = self.blocks or _changed_blocks(self.old.spec, self.spec)
        reports: list[MergeReport] = []

        def stream() -> Iterator[tuple[str, Tensor]]:
            names = sorted((block, name) for name in checkpoint.names() if (block := _block(name)) in self.blocks)
            stored = ((name, checkpoint.tensor(name)) for _, name in names)
            base, ancestor = opened or (None, None)
            return merged_weights(stored, self.spec, base, model_config.dtype, reports.append, ancestor)

        with set_current_vllm_config(self.worker.vllm_config), torch.inference_mode():
            if versions.remerge_way()[0] == "layers":
                self._load_blocks(stream())
            else:
                for _ in stream():  # vLLM's own reload cannot stop half-way, so what may fail here has to fail before
                    pass
                self._load_all()
        report = named_report(reports[0], checkpoint, self.spec, warnings) if reports else None
        return ModelState(self.spec, report, ReadFiles.of(checkpoint), sources)

    def _open(self, spec: PlateauSpec) -> SpecCheckpoints:
        """Base and ancestor: on the way back those that were read before, else those that the caller has found."""
        if spec is not self.old.spec:
            return open_spec_files(spec, self.files)
        read = self.old.sources
        ancestor = read[str(spec.ancestor)].open() if spec.needs_ancestor else None
        return SpecCheckpoints(read[spec.base_model].open(), ancestor)

    def _load_blocks(self, stream: Iterable[tuple[str, Tensor]]) -> None:
        """Load a stream that is ordered by block, one block at a time.

        All of a block is merged before the block is touched: a fault in the data leaves it as it was.
        """
        from vllm.model_executor.model_loader.reload.layerwise import (
            finalize_layerwise_reload,
            initialize_layerwise_reload,
        )

        model, model_config = self.worker.get_model(), self.worker.vllm_config.model_config
        modules = self._modules_of_blocks()
        for block, pairs in itertools.groupby(stream, key=lambda pair: _block(pair[0])):
            tensors = list(pairs)
            if block not in modules:
                continue
            name, module = modules[block]
            self.touched = self.torn = True
            # All but such as the rotary embedding, which every block shares and no checkpoint holds.
            with_weights = [
                inner
                for inner in module.modules()
                if any(True for _ in inner.parameters(recurse=False)) or hasattr(inner, "process_weights_after_loading")
            ]
            for inner in with_weights:
                initialize_layerwise_reload(inner)
            loaded = model.load_weights(iter(tensors))
            for inner in with_weights:
                finalize_layerwise_reload(inner, model_config)
            missing = [
                parameter
                for parameter, tensor in module.named_parameters()
                if tensor.is_meta or (loaded is not None and f"{name}.{parameter}" not in loaded)
            ]
            if missing:
                raise RuntimeError(f"{name}: vLLM took {len(tensors)} tensors, but loaded no {', '.join(missing)}")
            self.torn = False

    def _modules_of_blocks(self) -> dict[Block, tuple[str, nn.Module]]:
        """The modules of this worker that are blocks, with their names; with pipeline parallelism, not of all blocks.

        Raises MergeError where vLLM has none for one that is to be loaded.
        """
        model = self.worker.get_model()
        modules = {
            block: (name, module)
            for name, module in model.named_modules()
            if (block := _block(name)) is not None and name.endswith(f".{block[0]}.{block[1]}")
        }
        absent = sorted(self.blocks - modules.keys())
        if self.worker.vllm_config.parallel_config.pipeline_parallel_size == 1 and absent:
            named = ", ".join(f"{kind} of layer {layer}" for layer, kind in absent)
            raise MergeError(f"{type(model).__name__}: vLLM has no module of its own for {named}")
        return modules

    def _load_all(self) -> None:
        _, extra = split_options(self.worker.vllm_config.load_config.model_loader_extra_config)
        extra["plateau"] = self.spec.to_dict() if self.spec is not None else None
        extra[SPEC_FILES] = self.files
        overrides = {"load_format": LOAD_FORMAT, "model_loader_extra_config": extra}
        self.touched = self.torn = True
        self.worker.update_config({"load_config": overrides})
        self.worker.reload_weights()
        self.torn = False
