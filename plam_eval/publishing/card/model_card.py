"""The model card of an exported checkpoint: what was merged, of what, under which licences, and how it scores.

What stands on it was read from checkpoints, cards and runs, so it is written as text: nothing of it becomes markup, and
no path of the machine that made it is told.
"""

from __future__ import annotations

import html
import json
import math
import re
import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

import yaml

from plam_eval import hub
from plam_eval.layer_sets import as_range, tell_layers
from plam_eval.merging.export_record import ExportRecord
from plam_eval.publishing.card.licences import Licence, licence_fields
from plam_eval.rule_parameters import describe_parameters
from plam_eval.rules import RULES
from plam_eval.spec import GROUPS, PlateauSpec, load_spec
from plam_eval.terminal import one_line, shown
from plam_eval.weight_ramps import Ramp
from plam_eval.yaml_reader import Writer

if TYPE_CHECKING:  # pandas stays unimported where a card has no results
    from plam_eval.evaluation.comparison import Comparison
    from plam_eval.evaluation.stats import Paired
    from plam_eval.publishing.card.results import CardResults

TAGS = ("merge", "plam-eval", "plateau")

_YAML: dict[str, Any] = {"sort_keys": False, "allow_unicode": True, "width": 110, "default_flow_style": None}
_SNAPSHOT = re.compile(r"models--([^/]+)/snapshots/[0-9a-f]{40}")
_PATH = re.compile(r"(?<![\w:/.~])(?:~[\w.-]*/|/|[A-Za-z]:[\\/])[^\s,;:'\"()<>|]+")
_QUOTED_PATH = re.compile(r"(['\"])((?:/|~|[A-Za-z]:[\\/])[^'\"\n]*)\1")
_SPECIAL = re.compile(r"([\\`*_\[\]|#~$])")


# --- text as it was written, in Markdown ------------------------------------------------------------------------------


def markdown(value: object) -> str:
    """`value` as text in a line or a table's cell: no markup, no line ends, no control characters."""
    return _SPECIAL.sub(r"\\\1", html.escape(one_line(value), quote=False))


def fenced(text: str, language: str) -> str:
    """A block of code.

    Args:
        text: what stands in it, of any content.
        language: that it is in.
    """
    fence = "`" * max(3, 1 + max(map(len, re.findall("`+", text)), default=0))
    return f"{fence}{language}\n{shown(text).rstrip()}\n{fence}"


@dataclass
class Table:
    """A table of the card.

    Attributes:
        headers: of its columns; those after the first `words` hold numbers.
        rows: their cells, as they are to be read.
        words: columns of words, at the left.
        title: above it.
    """

    headers: Sequence[str]
    rows: list[tuple[object, ...]] = field(default_factory=list)
    words: int = 1
    title: str = ""


def _table(table: Table) -> str:
    def line(cells: Iterable[str]) -> str:
        return f"| {' | '.join(cells)} |"

    rules = ["---" if number < table.words else "---:" for number in range(len(table.headers))]
    rows = [line(markdown(cell) for cell in row) for row in [table.headers, *table.rows]]
    return "\n".join([rows[0], line(rules), *rows[1:]])


# --- names without paths ----------------------------------------------------------------------------------------------


def hub_id(identity: Mapping[str, Any]) -> str | None:
    """`owner/name` of a recorded checkpoint that came from the hub; None for a folder of the user's own.

    Args:
        identity: as `provenance.describe_checkpoint` gives it.
    """
    name = str(identity.get("hub") or hub.split_revision(str(identity.get("name", "")))[0])
    if "folder" not in identity:
        return name if hub.is_repository(name) else None
    cached = _SNAPSHOT.search(str(identity["folder"])) if identity.get("commit") else None
    name = cached[1].replace("--", "/", 1) if cached else ""
    return name if hub.is_repository(name) else None


def _called(identity: Mapping[str, Any]) -> str:
    """What the card calls a checkpoint: its hub id and commit, or a folder's own name."""
    if name := hub_id(identity):
        commit = identity.get("commit")
        return f"{name} (commit {str(commit)[:12]})" if commit else name
    return _last(str(identity.get("folder") or identity.get("name") or "an unnamed checkpoint"))


def _last(path: str) -> str:
    return PurePosixPath(path.replace("\\", "/").rstrip("/")).name or path


class _Private:
    """Takes paths of the machine out of texts.

    Args:
        record: whose sources' names and folders are replaced by what anybody can call them.
    """

    def __init__(self, record: ExportRecord) -> None:
        self._names: dict[str, str] = {}
        fields = {"model": "model", "base": "base_model", "ancestor": "ancestor"}
        for side, identity in record.sides.items():
            written = record.spec.get(fields[side])
            if "folder" not in identity:
                continue
            repository, commit = hub_id(identity), identity.get("commit")
            name = f"{repository}@{commit}" if repository else _last(str(identity["folder"]))
            for path in (identity["folder"], identity.get("name"), written):
                if isinstance(path, str) and re.search(r"[/\\]", path):
                    self._names[path] = name
        roots = {Path.home(), Path.cwd(), *(Path(path).parent for path in self._names if Path(path).is_absolute())}
        self._roots = sorted((f"{root}/" for root in roots if len(root.parts) > 2), key=len, reverse=True)

    def __call__(self, text: str) -> str:
        for path in sorted(self._names, key=len, reverse=True):
            text = text.replace(path, self._names[path])
        for root in self._roots:  # a path with spaces in it ends nowhere that could be seen
            text = text.replace(root, "")
        text = _QUOTED_PATH.sub(lambda match: f"{match[1]}{_last(match[2])}{match[1]}", text)
        return _PATH.sub(lambda match: _last(match.group()), text)

    def all_of(self, value: Any) -> Any:
        """`value`, of anything that JSON holds, with every text in it changed so."""
        if isinstance(value, Mapping):
            return {str(key): self.all_of(inner) for key, inner in value.items()}
        if isinstance(value, (list, tuple)):
            return [self.all_of(inner) for inner in value]
        return self._piece(value) if isinstance(value, str) else value

    def command(self, command: str) -> str:
        """A `command` whose words, and the values in them, hold names in place of paths."""
        try:
            words = shlex.split(command)
        except ValueError:
            return self(command)
        return shlex.join("".join(map(self._piece, re.split("([=,])", word))) for word in words)

    def _piece(self, piece: str) -> str:
        if piece in self._names:
            return self._names[piece]
        return _last(piece) if re.match(r"/|~|[A-Za-z]:[\\/]", piece) else self(piece)


def without_paths(record: ExportRecord) -> ExportRecord:
    """A record that names folders of this machine without their paths.

    Args:
        record: of an export.
    """
    private = _Private(record)
    fields = record.to_dict()
    kept = {key: fields[key] for key in ("format", "digest", "inputs", "files", "versions", "created")}
    changed = {key: private.all_of(value) for key, value in fields.items() if key not in kept}
    changed |= {"command": private.command(record.command), "notes": tuple(changed["notes"])}
    return ExportRecord.model_validate({**kept, **changed})


# --- the card ---------------------------------------------------------------------------------------------------------


def model_card(
    record: ExportRecord,
    *,
    model_config: Mapping[str, Any],
    licences: Mapping[str, Licence],
    results: Iterable[Path] = (),
    repository: str | None = None,
) -> str:
    """The card of an export, as the text of its README.md.

    Args:
        record: of the export.
        model_config: content of the MLLM's config.json.
        licences: of "model", "base" and "ancestor", as `licences.read_licence` gives them.
        results: folders of runs, of `plam compare` or `plam sweep`, whose scores go onto the card.
        repository: owner/name on the hub that it is made for; None where that is not known.

    Raises:
        ResultsError: a run that is not of this export, its source, or a control of it; every one is named.
    """
    from huggingface_hub import ModelCard, ModelCardData

    spec = load_spec(record.spec)
    assert spec is not None  # a record's spec is a mapping
    private = _Private(record)
    ids = [name for identity in record.sides.values() if (name := hub_id(identity))]
    more: dict[str, Any] = {**({"base_model_relation": "merge"} if ids else {}), **licence_fields(licences)}
    data = ModelCardData(
        base_model=list(dict.fromkeys(ids)) or None,
        library_name="transformers",
        pipeline_tag="image-text-to-text",
        tags=list(TAGS),
        **more,
    )
    called = {side: _called(identity) for side, identity in record.sides.items()}
    named = {key: content for key in ("base_model", "ancestor") if (content := record.spec.get(key))}
    remote = bool(model_config.get("auto_map"))
    target = repository or "path/to/this/folder"
    values = {
        "title": repository or f"{_short(record.model)} merged with {_short(record.base)}",
        "model": called["model"],
        "base": called["base"],
        "ancestor": called.get("ancestor"),
        "unnamed": _unnamed(record),
        "layers": _layers(spec.layers),
        "modules": _modules(spec.modules),
        "formula": _formula(spec),
        "notes": [private(note) for note in (*record.notes, *_warnings(record))] or ["None."],
        "repository": json.dumps(target),
        "trust": ", trust_remote_code=True" if remote else "",
        "serve": _serve(target, _stored_dtype(model_config), remote),
        "licences": Table(
            ("source", "licence"),
            [(name, private(str(licences.get(side, Licence())))) for side, name in called.items()],
            words=2,
        ),
        "spec": yaml.dump(private.all_of(record.spec), Dumper=Writer, **_YAML),
        "digest": record.digest,
        "renamed": private.all_of(named) != named,
        "merged": _merged(record),
        "command": private.command(record.command),
        "inputs": _inputs(record, called),
        "outputs": _outputs(record),
        "created": record.created,
        "versions": ", ".join(f"{name} {version}" for name, version in record.versions.items()),
        **_results_values(_read(results, record), private),
    }
    template = resources.files("plam_eval.publishing.card") / "card.md.j2"
    text = template.read_text(encoding="utf-8")
    card = ModelCard.from_template(data, template_str=text, md=markdown, table=_table, fenced=fenced, **values)
    return re.sub(r"\n{3,}", "\n\n", str(card)).rstrip() + "\n"


def _read(folders: Iterable[Path], record: ExportRecord) -> CardResults | None:
    if not (folders := list(folders)):
        return None
    from plam_eval.evaluation.exported_merge import ExportedMerge
    from plam_eval.publishing.card.results import read_results

    return read_results(folders, ExportedMerge.of_record(record))


def _short(identity: Mapping[str, Any]) -> str:
    return _last(hub_id(identity) or _called(identity))


def _unnamed(record: ExportRecord) -> list[str]:
    """What to say of sources that the hub's metadata cannot name."""
    words = {"model": "MLLM", "base": "base LLM", "ancestor": "ancestor"}
    return [
        f"The {words[side]} was a folder ({_called(identity)}), so no hub id is given for it; its files' hashes are "
        "below."
        for side, identity in record.sides.items()
        if hub_id(identity) is None
    ]


def _modules(modules: Sequence[str]) -> str:
    group = next((name for name, members in GROUPS.items() if set(members) == set(modules)), None)
    return f"{', '.join(modules)}{f' ({group})' if group else ''}"


def _layers(layers: Sequence[int]) -> str:
    return f"{layers[0]} to {layers[-1]}" if as_range(layers) else tell_layers(layers)


def _formula(spec: PlateauSpec) -> str:
    meaning = RULES[spec.rule].meaning
    weights = "weights {} (MLLM) and {} (base)".format(*spec.weights.written)
    if isinstance(spec.weights, Ramp):
        weights += ", from the first of these layers to the last, linear in the layer's number"
    return f"rule {spec.rule}{f' ({meaning})' if meaning else ''}, {weights}{describe_parameters(spec.parameters)}"


def _warnings(record: ExportRecord) -> list[str]:
    return [str(warning) for warning in record.merge.get("warnings") or ()]


def _merged(record: ExportRecord) -> str:
    changes = [
        value for value in (record.merge.get("relative_change") or {}).values() if isinstance(value, (int, float))
    ]
    text = f"{record.merge.get('tensors', 'An unknown number of')} tensors were merged"
    if changes:
        text += f"; their relative change is {min(changes):.3f} to {max(changes):.3f} by layer (Frobenius norm)"
    return f"{text}."


def _stored_dtype(config: Mapping[str, Any]) -> str | None:
    inner = config.get("text_config")
    for fields in (config, inner if isinstance(inner, Mapping) else {}):
        for key in ("dtype", "torch_dtype"):
            if isinstance(name := fields.get(key), str) and re.fullmatch(r"[a-z]+\d+", name):
                return name
    return None


def _serve(target: str, dtype: str | None, remote: bool) -> str:
    words = [
        "vllm",
        "serve",
        target,
        *(["--dtype", dtype] if dtype else []),
        *(["--trust-remote-code"] if remote else []),
    ]
    return shlex.join(words)


def _inputs(record: ExportRecord, names: Mapping[str, str]) -> Table:
    rows: list[tuple[object, ...]] = [
        (names.get(side, side), file, digest)
        for side, hashes in record.inputs.items()
        for file, digest in hashes.items()
    ]
    return Table(("of", "file", "SHA-256"), rows, words=3)


def _outputs(record: ExportRecord) -> Table:
    rows: list[tuple[object, ...]] = [
        (name, file.how, file.sha256, f"{file.bytes:,}") for name, file in record.files.items()
    ]
    return Table(("file", "made", "SHA-256", "bytes"), rows, words=3)


# --- results ----------------------------------------------------------------------------------------------------------


def _results_values(results: CardResults | None, private: _Private) -> dict[str, Any]:
    """What the template shows of results."""
    if results is None:
        return {"results": {"runs": ()}}
    controls = Table(("merge", "control", "tasks", "n", "merge scores", "control scores", *_DIFFERENCE), words=3)
    for comparison in results.against_controls:
        row = comparison.rows[-1]
        tasks = ", ".join(one.task for one in comparison.rows[:-1])
        first = (comparison.names[1], comparison.names[0], tasks, f"{row.documents:,}", _number(row.second))
        controls.rows.append((*first, _number(row.first), *_difference(row)))
    rules = {str(entry.run.summary()["rule"]) for entry in results.runs if entry.role == "control"}
    return {
        "results": {"runs": results.runs, "notes": [private(note) for note in results.notes]},
        "scores": _scores(results),
        "against_plain": [_against_plain(comparison) for comparison in results.against_plain],
        "controls": controls,
        "meanings": [f"{name}: {RULES[name].meaning}." for name in RULES if name in rules],
        "ran": _ran(results),
    }


_DIFFERENCE = ("difference", "95 % interval", "gained", "lost", "p")


def _difference(row: Paired) -> tuple[str, ...]:
    from plam_eval.evaluation.stats import format_p

    ends = f"{row.low:+.3f} to {row.high:+.3f}" if not math.isnan(row.low) else "–"
    return f"{row.difference:+.3f}", ends, f"{row.gained:,}", f"{row.lost:,}", format_p(row.p)


def _number(value: float) -> str:
    return "–" if math.isnan(value) else f"{value:.3f}"


def _scores(results: CardResults) -> Table:
    from plam_eval.evaluation.records import tables

    rows = tables({entry.label: entry.run for entry in results.runs}).tasks
    falling = {task for entry in results.runs for task, sign in entry.run.directions.items() if sign < 0}
    table = Table(("task", "run", "documents", "clusters", "score", "95 % interval"), words=2)
    order = {task: number for number, task in enumerate(dict.fromkeys(rows["task"]))}
    for row in sorted(rows.to_dict("records"), key=lambda row: order[row["task"]]):
        ends = "–" if math.isnan(row["low"]) else f"{row['low']:.3f} to {row['high']:.3f}"
        task = f"{row['task']} (lower is better)" if row["task"] in falling else row["task"]
        counts = f"{row['documents']:,}", f"{row['groups']:,}"
        table.rows.append((task, row["run"], *counts, _number(row["accuracy"]), ends))
    return table


def _against_plain(comparison: Comparison) -> Table:
    from plam_eval.evaluation.stats import OVERALL

    first, second = comparison.names
    table = Table(("task", "n", first, second, *_DIFFERENCE), title=f"{second} against {first}")
    rows = comparison.rows if len(comparison.rows) > 2 else comparison.rows[:-1]
    for row in rows:
        task = "mean over tasks" if row.task == OVERALL else row.task
        table.rows.append((task, f"{row.documents:,}", _number(row.first), _number(row.second), *_difference(row)))
    return table


def _ran(results: CardResults) -> Table:
    table = Table(("run", "of", "wrapper", "mode", "dtype", "limit", "date", "versions"), words=8)
    for entry in results.runs:
        row = entry.run.summary()
        of = "the exported files" if entry.exported else "the source" if entry.role == "plain" else "a merge in memory"
        shown_versions = [f"{name} {row[key]}" for name, key in _VERSIONS.items() if row[key]]
        facts = [row["model"], row["mode"], row["dtype"], _limits(row), _day(row["date"])]
        table.rows.append(
            (entry.label, of, *("–" if fact is None else fact for fact in facts), ", ".join(shown_versions))
        )
    return table


_VERSIONS = {"lmms-eval": "lmms_eval", "plam-eval": "plam_eval", "transformers": "transformers", "torch": "torch"}


def _day(date: Any) -> str | None:
    """The day in a date as lmms-eval writes it, such as "20260301_120000"; what is none is shown as it is."""
    stamp = re.fullmatch(r"(\d{4})(\d\d)(\d\d)_\d{6}", str(date))
    return "-".join(stamp.groups()) if stamp else date and str(date)


def _limits(row: Mapping[str, Any]) -> str | None:
    words = [f"{key} {row[key]:g}" for key in ("limit", "offset", "sample") if row[key]]
    return ", ".join(words) or None
