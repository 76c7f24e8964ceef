"""Where it comes from: checkpoints, versions, commands."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping
from typing import Any

from plam_eval.evaluation.records import Run
from plam_eval.evaluation.scan_folder import Scan, read_settings
from plam_eval.evaluation.sweep.findings import Findings
from plam_eval.evaluation.sweep.grid import describe_cell
from plam_eval.report.blocks import Listing, Row, Section, TableBlock, records_of
from plam_eval.report.sections.head import bases_of, model_of
from plam_eval.report.sources import Look, Sources
from plam_eval.report.text import identity_of, pairs_of, text_or_empty


def _content(findings: Findings, what: str, name: str | None = None) -> dict[str, str]:
    """The content hash of a sweep's model or base, which its runs have in their records and its settings have not."""
    for run in findings.runs.values():
        stored = (run.block.get("provenance") or {}).get(what) or {}
        if "files" in stored and "sha256" in stored and name in (None, stored.get("name")):
            return {"sha256": stored["sha256"]}
    return {}


def provenance_section(sources: Sources) -> Section:
    """Checkpoints with their hashes, versions and digests of all `sources`, and commands that make their runs again."""
    rows: list[tuple[str, str]] = []
    blocks: list[Any] = []
    alone = len(sources.sweeps) + len(sources.scans) + len(sources.looks) + len(sources.runs) == 1

    def of(name: str, what: str) -> str:
        return what if alone else f"{name}: {what}"

    for name, findings in sources.sweeps.items():
        settings = findings.plan["settings"]
        model = {**(settings.get("checkpoint") or {}), **_content(findings, "checkpoint")}
        rows.append((of(name, "model"), f"{model_of(findings)} ({identity_of(model)})"))
        for base, identity in (settings.get("bases") or {}).items():
            what = "base LLM" if base in bases_of(findings) else "ancestor"
            content = _content(findings, "base" if what == "base LLM" else what, base)
            rows.append((of(name, what), f"{base} ({identity_of({**identity, **content})})"))
        rows.append((of(name, "versions"), pairs_of(settings.get("versions"))))
        if commits := sorted({str(c) for run in findings.runs.values() if (c := run.summary()["commit"])}):
            rows.append((of(name, "plam-eval commit"), ", ".join(commits)))
        command = findings.plan.get("command") or []
        folder = findings.plan.get("working_directory")
        lines = (*((f"cd {shlex.quote(folder)}",) if folder else ()), shlex.join(map(str, command)))
        blocks.append(Listing(f"The command of {name}", lines, open=True))
        if findings.runs:
            config = {key: findings.plan["config"].get(key) for key in ("tasks", "include_path", "force_simple")}
            commands = tuple(_command(run, config) for run in findings.runs.values())
            blocks.append(Listing(f"Each cell of {name} as an lmms-eval command ({len(commands)})", commands))
        digests = [
            f"{row['digest']}  {describe_cell(row)}"
            for row in records_of(findings.cells)
            if text_or_empty(row["digest"])
        ]
        blocks.append(Listing(f"Digests of the specs of {name} ({len(digests)})", tuple(digests)))
    for name, scanned in sources.scans.items():
        rows += [(of(name, what), value) for what, value in _rows_of_scan(scanned)]
    for name, look in sources.looks.items():
        rows += [(of(name, what), value) for what, value in _rows_of_look(look)]
        blocks.append(_settings_of(name, look))
    for name, run in sources.runs.items():
        rows += [(of(name, what), value) for what, value in _rows_of_run(run)]
    if sources.runs:
        commands = tuple(_command(run, {}) for run in sources.runs.values())
        blocks.append(Listing(f"The runs as lmms-eval commands ({len(commands)})", commands, open=len(commands) < 5))
    table = TableBlock(
        "Who made these figures, from what", ("of", "what"), tuple(Row(row) for row in rows), frozenset({1})
    )
    return Section("Where it comes from", (table, *blocks))


def _rows_of_scan(scan: Scan) -> list[tuple[str, str]]:
    settings = read_settings(scan.folder)
    return [
        ("model", f"{settings['pretrained']}, {settings['wrapper']}, {settings['mode']}, {settings['dtype']}"),
        ("weights and arguments", str(settings.get("weights and arguments", "not recorded"))),
        ("versions", pairs_of(settings["versions"])),
        ("curve digest", scan.stages.curve_digest),
    ]


def _rows_of_look(look: Look) -> list[tuple[str, str]]:
    made_with = look.attended.made_with
    model = ", ".join(str(made_with[key]) for key in ("pretrained", "wrapper", "mode", "dtype"))
    return [("model", model), ("versions", pairs_of(made_with.get("versions")))]


def _settings_of(name: str, look: Look) -> Listing:
    specs = look.attended.made_with["settings"].items()
    lines = tuple(f"{setting}: {json.dumps(spec, ensure_ascii=False)}" for setting, spec in specs if spec)
    return Listing(f"Settings of {name} ({len(lines)} beside the plain model)", lines)


def _rows_of_run(run: Run) -> list[tuple[str, str]]:
    provenance, summary = run.block.get("provenance") or {}, run.summary()
    rows = []
    for key, what in (("checkpoint", "model"), ("base", "base LLM"), ("ancestor", "ancestor")):
        if identity := provenance.get(key):
            rest = {name: value for name, value in identity.items() if name != "name"}
            rows.append((what, f"{identity.get('name')} ({identity_of(rest)})"))
    if provenance.get("digest"):
        rows.append(("spec digest", str(provenance["digest"])))
    rows.append(("versions", pairs_of(provenance.get("versions") or {"lmms-eval": summary["lmms_eval"]})))
    return [*rows, ("file", summary["file"])]


def _command(run: Run, overrides: Mapping[str, Any]) -> str:
    """The command line of a run. `overrides` goes over what the results say: they log defaults for runs in process."""
    config = run.results.get("config") or {}
    line = config.get("resolved_cli_args") or {}
    settings = run.results.get("gen_kwargs") or config.get("gen_kwargs") or line.get("gen_kwargs")
    if isinstance(settings, Mapping):
        settings = ",".join(f"{key}={value}" for key, value in settings.items())
    tasks = overrides.get("tasks") or line.get("tasks") or run.tasks
    limit = config.get("limit")
    words = {
        "--model": run.block.get("wrapper") or line.get("model") or config.get("model"),
        "--model_args": config.get("model_args"),
        "--tasks": tasks if isinstance(tasks, str) else ",".join(tasks),
        "--batch_size": config.get("batch_size"),
        "--limit": int(limit) if isinstance(limit, float) and limit == int(limit) else limit,
        "--offset": config.get("offset") or None,
        "--gen_kwargs": settings or None,
        "--include_path": overrides.get("include_path") or line.get("include_path"),
    }
    options = [str(word) for key, value in words.items() if value is not None and value != "" for word in (key, value)]
    simple = ["--force_simple"] if overrides.get("force_simple") or line.get("force_simple") else []
    drawn = "  # on all documents: samples are drawn by the commands of plam alone" if config.get("documents") else ""
    return shlex.join(["lmms-eval", *options, *simple, "--log_samples", "--output_path", "OUTPUT"]) + drawn
