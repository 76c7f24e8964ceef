"""Which runs may stand on the card of an exported checkpoint, and how they compare with plain runs and controls."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from plam_eval.errors import InputError, ProblemsError
from plam_eval.evaluation import comparable, records
from plam_eval.evaluation.comparable import IncomparableError
from plam_eval.evaluation.comparison import Comparison, compare_runs
from plam_eval.evaluation.exported_merge import CONTROL, EXPORTED, MERGED, ExportedMerge
from plam_eval.evaluation.records import Run
from plam_eval.evaluation.sweep import findings
from plam_eval.evaluation.sweep.folder import PLAN
from plam_eval.evaluation.sweep.grid import PLAIN
from plam_eval.files import inside
from plam_eval.harness.errors import EvaluationError, RecordError
from plam_eval.harness.run_files import is_hidden, result_files, sample_logs
from plam_eval.rules import LAYER_CONTROLS, RULES


class ResultsError(ProblemsError, ValueError):
    """Runs that cannot stand on a card of this export; `problems` names each with the reason."""

    def _heading(self) -> str:
        return "these results cannot stand on the card of this export:"


@dataclass(frozen=True)
class CardRun:
    """A run of the card.

    Attributes:
        label: what the card calls it: "plain", "merged", the rule of a control, with a number where there are several.
        role: "plain", "merged" or "control". A run of the exported files themselves counts as merged.
        run: the run itself, with the documents that may be reported.
        folder: of the sweep or comparison that it is a cell of, else what was given; runs of one belong together.
        exported: whether it ran the exported files, and not the merge in memory.
    """

    label: str
    role: str
    run: Run
    folder: Path
    exported: bool = False


@dataclass(frozen=True)
class CardResults:
    """The runs of a card, compared.

    Attributes:
        runs: plain ones first, then merged ones and controls.
        against_plain: each merged run against the plain one of its folder, or else those of the others, on the tasks
            that both have; merged minus plain.
        against_controls: likewise against controls; merged minus control.
        notes: what a reader of the figures has to know.
    """

    runs: tuple[CardRun, ...] = ()
    against_plain: tuple[Comparison, ...] = ()
    against_controls: tuple[Comparison, ...] = ()
    notes: tuple[str, ...] = ()


# --- reading ----------------------------------------------------------------------------------------------------------


def read_results(folders: Iterable[Path], export: ExportedMerge) -> CardResults:
    """The runs in some folders, each checked against an export, and compared.

    Args:
        folders: of runs, or results files; of `plam compare` and `plam sweep`, whose cells of this merge, its controls
            and the plain one count.
        export: what they have to be of.

    Raises:
        ResultsError: a run that is of something else, or cannot be read or compared; every one is named.
    """
    problems: list[str] = []
    notes: list[str] = []
    by_role: dict[str, list[tuple[Run, Path, bool]]] = {}
    seen: set[Path] = set()
    for folder in folders:
        for where, group, run in _runs_in(Path(folder), export, problems, notes):
            if run.file.resolve() in seen:
                continue
            seen.add(run.file.resolve())
            problem, role = export.problem_or_role(run)
            if problem:
                problems.append(f"{where}: {problem}")
                continue
            exported = role == EXPORTED
            by_role.setdefault(MERGED if exported else role, []).append((run, group, exported))
    runs = [entry for role in (PLAIN, MERGED, CONTROL) for entry in _labelled(role, by_role.get(role, []))]
    against = {role: _compared(runs, role, problems) for role in (PLAIN, CONTROL)}
    if problems:
        raise ResultsError(*problems)
    notes += comparable.notes_of({entry.label: entry.run for entry in runs})
    notes += [warning for comparisons in against.values() for one in comparisons for warning in one.warnings]
    notes += [
        f"{entry.label}: {task} has no score per document ({why})"
        for entry in runs
        for task, why in entry.run.unscored.items()
    ]
    return CardResults(tuple(runs), tuple(against[PLAIN]), tuple(against[CONTROL]), tuple(dict.fromkeys(notes)))


def _runs_in(
    folder: Path, export: ExportedMerge, problems: list[str], notes: list[str]
) -> Iterator[tuple[str, Path, Run]]:
    """Each run in a folder, with words and the sweep that name it; what cannot be read goes into `problems`."""
    if not folder.exists():
        problems.append(f"{folder}: no such folder")
        return
    sweeps = (
        sorted({file.parent for file in folder.rglob(PLAN) if not _hidden(file, folder)}) if folder.is_dir() else []
    )
    for sweep in sweeps:
        try:
            yield from ((where, sweep, run) for where, run in _cells(sweep, export, problems, notes))
        except (ValueError, EvaluationError, OSError) as error:
            problems.append(f"{sweep}: {error}")
    files = result_files(folder) if folder.is_dir() else [folder]
    files = [file for file in files if not any(sweep in file.parents for sweep in sweeps) and not _hidden(file, folder)]
    if not files and not sweeps:
        problems.append(f"{folder}: no *_results.json in it; expected runs of lmms-eval with --log_samples")
    for file in files:
        try:
            if folder.is_dir():
                for one in (file, *sample_logs(file)):
                    inside(folder, one.relative_to(folder).as_posix(), str(folder))
            run = records.read_run(file)
        except (ValueError, EvaluationError, OSError) as error:
            problems.append(f"{file}: {error}")
        else:
            yield str(file), folder, run


def _cells(folder: Path, export: ExportedMerge, problems: list[str], notes: list[str]) -> Iterator[tuple[str, Run]]:
    """The plain cell of a sweep, that of this merge, and its controls."""
    evaluated = findings.read_findings(folder)
    cells = evaluated.cells
    merged = [str(name) for name in cells.loc[cells["digest"] == export.digest, "cell"] if name in evaluated.runs]
    if not merged:
        problems.append(f"{folder}: has no finished cell of this merge (digest {export.digest[:16]})")
        return
    beside = evaluated.plan["grid"]["controls"].get(merged[0], {})
    # Draws of random layers are merges of other layers; what they say together is a note.
    controls = [name for rule, cells in beside.items() if rule not in LAYER_CONTROLS for name in cells]
    names = [PLAIN, merged[0], *controls]
    for name in dict.fromkeys(name for name in names if name in evaluated.runs):
        yield f"{folder}, cell {name}", evaluated.runs[name]
    if drawn := evaluated.random_layers_in_words(merged[0]):
        notes.append(f"The merge beside the same in other layers. {drawn}")
    chosen = evaluated.selection
    if chosen is not None and chosen.tried > 1 and chosen.cell == merged[0]:
        where = (
            f"on other documents than those reported here ({_counted(chosen.chosen_on)})"
            if chosen.held_out
            else "on the very documents reported here, so its difference looks better than it is"
        )
        notes.append(f"The merge is the best of {chosen.tried} that a sweep tried, chosen {where}.")


def _counted(documents: Mapping[str, int]) -> str:
    return ", ".join(f"{count:,} of {task}" for task, count in documents.items())


def _hidden(file: Path, folder: Path) -> bool:
    return folder.is_dir() and is_hidden(file, folder)


def _labelled(role: str, runs: Sequence[tuple[Run, Path, bool]]) -> list[CardRun]:
    """Runs of one role with names that no two of them share."""
    entries, taken = [], dict[str, int]()
    for run, folder, exported in runs:
        name = _control_name(run) if role == CONTROL else "export" if exported else role
        taken[name] = taken.get(name, 0) + 1
        entries.append(CardRun(name if taken[name] == 1 else f"{name} ({taken[name]})", role, run, folder, exported))
    return entries


def _control_name(run: Run) -> str:
    spec = run.block["provenance"]["spec"]
    return f"{spec['rule']} {spec.get('seed', 0)}" if RULES[spec["rule"]].draws else str(spec["rule"])


def _compared(runs: Sequence[CardRun], role: str, problems: list[str]) -> list[Comparison]:
    """Merged runs minus runs of a role, on the tasks that both score; one that fits no other goes into `problems`."""
    comparisons, compared, failed = [], set[str](), list[tuple[CardRun, CardRun, str]]()
    for merged, other in _pairs(runs, role):
        tasks = [task for task in merged.run.tasks if task in other.run.tasks]
        scored = [task for task in tasks if not {task} & {*merged.run.unscored, *other.run.unscored}]
        if not scored:
            continue
        names = (other.label, merged.label)
        try:
            comparisons.append(compare_runs(other.run.only(scored), merged.run.only(scored), names))
            compared |= {*names}
        except IncomparableError as error:
            failed.append((merged, other, "; ".join(error.problems)))
        except (RecordError, InputError) as error:
            failed.append((merged, other, str(error)))
    problems += [
        f"{other.label} ({other.run.file}) and {merged.label} ({merged.run.file}): {why}"
        for merged, other, why in failed
        if not {merged.label, other.label} <= compared
    ]
    return comparisons


def _pairs(runs: Sequence[CardRun], role: str) -> Iterator[tuple[CardRun, CardRun]]:
    """Merged runs and those of a role beside them.

    A sweep and a comparison leave out different documents, so runs of two folders are paired only where one of them is
    alone in its own: a merged or a plain run without the other, a control without a merge.
    """
    merges, others = ([entry for entry in runs if entry.role == wanted] for wanted in (MERGED, role))
    with_merge, with_other = ({entry.folder for entry in entries} for entries in (merges, others))
    for merged in merges:
        for other in others:
            alone = other.folder not in with_merge or (role == PLAIN and merged.folder not in with_other)
            if alone or merged.folder == other.folder:
                yield merged, other
