"""A premise check before it runs: what is asked of which model, checked before anything is loaded or written.

Its folder is that of a comparison (`sweep.json`, `cells/plain`, `cells/merged`), with the base LLM's run in a folder of
the same kind below it, `base/`. Plain comes first, because the base is asked in its words: the chat template around
the documents is taken from what the MLLM was asked (`template.jinja`), and afterwards the prompts of all documents are
compared by digests that both runs have noted.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from plam_eval import files
from plam_eval.arguments import split_words, write_words
from plam_eval.errors import DamagedFileError, InputError, hint
from plam_eval.evaluation.premise.prompts import MLLM, OWN, limits_of, template_of
from plam_eval.evaluation.records import Run
from plam_eval.evaluation.sweep.config import SweepConfig, SweepError, split_arguments
from plam_eval.evaluation.sweep.folder import read_plan, read_state
from plam_eval.evaluation.sweep.grid import PLAIN, Cell, Grid, pair_grid
from plam_eval.evaluation.sweep.job import Job
from plam_eval.harness.evaluate import check_model, parse_model_args
from plam_eval.harness.registry import WRAPPERS
from plam_eval.harness.text_tasks import check_text_tasks
from plam_eval.merging.checkpoint import Checkpoint
from plam_eval.spec import OVERRIDE_KEYS

PREMISE, BASE, TEMPLATE = "premise.json", "base", "template.jinja"
_PLACING = ("device", "device_map", "trust_remote_code", "attn_implementation")
_ENGINE = (
    *("tensor_parallel_size", "pipeline_parallel_size", "data_parallel_size", "gpu_memory_utilization"),
    *("max_model_len", "max_num_seqs", "enforce_eager", "disable_log_stats", "trust_remote_code", "device"),
    *("max_new_tokens", "until", "dtype"),
)


class PremiseError(SweepError):
    """A premise check that cannot start, go on or be read; finished runs are kept."""


@dataclass(frozen=True)
class PremiseJob:
    """What is to be evaluated.

    Attributes:
        pair: plain, and merged where a merge is given: as of `plam compare`.
        base: the base LLM, folder or hub id.
        template: whose chat template the base is asked in, MLLM or OWN.
    """

    pair: Job
    base: str
    template: str

    @property
    def folder(self) -> Path:
        """The --output of the command."""
        return self.pair.folder

    @classmethod
    def plan(cls, config: SweepConfig, folder: str | Path, template: str = MLLM) -> PremiseJob:
        """Check everything that can be known before a model is loaded.

        Args:
            config: tasks, model and model_args as for a comparison; `base_model` goes over the base of the plateau. A
                base without a plateau leaves the merge out.
            folder: for the runs; it may hold some of this check.
            template: MLLM or OWN.

        Raises:
            InputError: the template, or a base without a tokenizer. PremiseError: no base, or a folder of another
                check. EvaluationError: tasks that are not of text alone. What `Job.plan` raises: a base of another
                geometry, for one.
        """
        if template not in (MLLM, OWN):
            raise InputError(f"template is {template!r}; {hint(template, (MLLM, OWN))}")
        if config.together > 1 or config.select:
            raise InputError("a premise check answers for one model at a time, on all documents")
        folder = Path(folder)
        config, grid, base = _with_base(config)
        files.check_writable(folder)
        files.check_free(folder, (TEMPLATE, f"{BASE}/sweep.json"), PREMISE)
        _check_same_premise(folder, base, template)
        check_text_tasks(
            config.tasks,
            limit=config.limit,
            offset=config.offset,
            include_path=config.include_path,
            model=config.model,
        )
        pair = Job.plan(config, folder, grid)
        _check_base(config, base)
        return cls(pair, base, template)

    def write(self) -> None:
        """Write what is asked, in one step."""
        self.folder.mkdir(parents=True, exist_ok=True)
        files.write_json(self.folder / PREMISE, {"base": self.base, "template": self.template})

    def base_job(self) -> Job:
        """The run of the base LLM, asked as the MLLM was: known once plain is finished.

        Raises:
            PremiseError: plain is not finished, or its prompts were not noted.
        """
        plain = _run_of(self.folder, Cell(PLAIN, "plain", None))
        if plain is None:
            raise PremiseError(f"{self.folder}: the plain model has not finished")
        arguments = _base_arguments(self.pair.config, self.base, plain)
        if self.template == MLLM:
            around = template_of(plain)
            if around is None:
                raise PremiseError(
                    f"{plain.file}: it does not say how documents were put into prompts, so the base LLM cannot be "
                    f"asked in the same words; name another --output, or give --template {OWN}"
                )
            file = self.folder / TEMPLATE
            files.write_in_one_step(file, lambda partial: partial.write_text(around, encoding="utf-8"))
            arguments["chat_template"] = str(file)
        config = self.pair.config.model_copy(
            update={
                "model": _base_wrapper(self.pair.config.model),
                "model_args": write_words(arguments, "model_args"),
                "base_model": None,
                "force_simple": plain.mode == "simple",
            }
        )
        return Job.plan(config, self.folder / BASE, Grid((Cell(PLAIN, "plain", None),), {}))


# --- what is asked ----------------------------------------------------------------------------------------------------


def _with_base(config: SweepConfig) -> tuple[SweepConfig, Grid, str]:
    """The configuration with the base in its model_args, its cells, and the base."""
    _, given = split_arguments(config.model_args)
    words = split_words(config.model_args)
    if str(given.get("plateau", "none")) == "none" and "layers" not in given:
        base = config.base_model or given.get("base")
        if not base:
            raise PremiseError("no base LLM to hold the MLLM against: give --base, or plateau=SPEC in --model_args")
        words = [word for word in words if word.partition("=")[0] not in ("plateau", *OVERRIDE_KEYS)]
        config = config.model_copy(update={"model_args": ",".join(words)})
        return config, Grid((Cell(PLAIN, "plain", None),), {}), str(base)
    if config.base_model:
        words = [word for word in words if word.partition("=")[0] != "base"]
        config = config.model_copy(update={"model_args": ",".join([*words, f"base={config.base_model}"])})
    grid = pair_grid(config)
    spec = grid.cells[-1].spec
    assert spec is not None
    return config, grid, spec.base_model


def _check_same_premise(folder: Path, base: str, template: str) -> None:
    file = folder / PREMISE
    if not file.is_file():
        return
    before = read_settings(folder)
    if before != (base, template):
        raise PremiseError(
            f"{folder} holds a check against {before[0]} in the template {before[1]}, and this one is against {base} "
            f"in the template {template}; name another --output"
        )


def read_settings(folder: Path) -> tuple[str, str]:
    """The base LLM and the template of the premise check in a folder.

    Args:
        folder: the --output of `plam premise`.

    Raises:
        PremiseError: there is none. DamagedFileError: it is none that we write.
    """
    file = folder / PREMISE
    if not file.is_file():
        raise PremiseError(f"{folder}: no premise check there (no {PREMISE}); expected the --output of `plam premise`")
    stored = files.read_json(files.inside(folder, PREMISE, str(folder)), "name another --output")
    base, template = stored.get("base"), stored.get("template")
    if not isinstance(base, str) or template not in (MLLM, OWN):
        raise DamagedFileError(f"{file}: found {stored!r:.80}, expected base and template; name another --output")
    return base, str(template)


def _base_wrapper(model: str) -> str:
    return model if not WRAPPERS[model].hf else "plam_text"


def _check_base(config: SweepConfig, base: str) -> None:
    """Raises InputError or CheckpointError where the base cannot be asked, as its files show."""
    checkpoint = Checkpoint.open(base, role="base")
    if not any(name.startswith("tokenizer") for name in checkpoint.listing()):
        raise InputError(
            f"base={base}: has no tokenizer (tokenizer.json, tokenizer.model or tokenizer_config.json), so it cannot "
            "be asked anything; put the tokenizer's files into a copy of it"
        )
    trust = parse_model_args(config.model_args).get("trust_remote_code", False)
    check_model(_base_wrapper(config.model), {"pretrained": base, "trust_remote_code": trust})


def _base_arguments(config: SweepConfig, base: str, plain: Run) -> dict[str, Any]:
    """model_args of the base: where the MLLM runs, in its dtype, with its limits."""
    given = parse_model_args(config.model_args)
    if not WRAPPERS[config.model].hf:
        return {"pretrained": base, **{key: given[key] for key in _ENGINE if key in given}}
    limits = limits_of(plain)
    stops = plain.mode == "simple" and WRAPPERS[config.model].wrapped_id.startswith("qwen")
    return {
        "pretrained": base,
        **{key: given[key] for key in _PLACING if key in given},
        "dtype": plain.block.get("dtype"),
        **({"max_new_tokens": max(limits)} if limits else {}),
        **({"until": True} if stops else {}),
    }


def _run_of(folder: Path, cell: Cell) -> Run | None:
    plan = read_plan(folder)
    return read_state(folder, cell, plan["settings"])[1]
