"""`plam demo`: the embedded pair on nine offline benchmarks: scan, look inside, merge, sweep, export, report.

The plateau is found on some documents, and merges are judged on others. Then the trio, a pair in which the base has
something to restore: a sweep, and its best merge once more on images of other scenes.
"""

from __future__ import annotations

import shlex
import shutil
import sys
from collections import Counter
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

from plam_eval.demo import hub
from plam_eval.demo.steps import DemoError, Steps, near, results
from plam_eval.errors import InputError
from plam_eval.evaluation import records
from plam_eval.evaluation.scan_folder import SPEC
from plam_eval.evaluation.sweep.findings import Findings, read_findings
from plam_eval.evaluation.sweep.folder import CELLS, read_run
from plam_eval.files import check_writable, read_json, sha256_of_file, write_in_one_step
from plam_eval.harness import run_files
from plam_eval.layer_sets import layers_of, write_layers
from plam_eval.rules import SELF_SCALE
from plam_eval.terminal import PlainTable, Terminal, text
from plam_eval.weight_ramps import read_weights

if TYPE_CHECKING:
    from collections.abc import Mapping

PACKAGED = "demo"  # the spec that is merged where the scan finds no plateau
# The plateau and two other ranges to hold against it; weights that sum to one merge without scaling.
RANGES, WEIGHTS = "plateau,early,middle", "0.9+0.3,0.7+0.3"
# What is looked into: open answers and letters, of so many documents each.
LOOKED_AT, DOCUMENTS_LOOKED_AT = "gqa,realworldqa", 20
BOARD, QUESTIONS = "seedbench_2_plus", "questions.txt"  # the one of the nine that a board takes a file of
CHECKPOINT = "checkpoint"
# The trio is asked one kind of question, in one task: so many times the documents of each of the pair's nine.
TRIO_TIMES = 4
# Where its MLLM was tuned on images; what this finds is told in docs/trio.md, other ranges too.
TRIO_LAYERS, TRIO_WEIGHTS = "4:8", "0.9+0.3,0.7+0.3,0.5+0.5"


@dataclass(frozen=True)
class TrioPart:
    """Folders of the trio's suite, its sweep, the sweep of the best merge on images of other scenes, and the page."""

    suite: Path
    sweep: Path
    swapped: Path
    page: Path


@dataclass(frozen=True)
class Demo:
    """Folders of the suite (with the pair in it), the scan, the look inside, the sweep, the export, and the page.

    `merged` is the merge through lmms-eval; `submission` what says of the submission that it was checked; `trio` what
    the other models gave.
    """

    suite: Path
    scan: Path
    plateau: str
    attend: Path
    merged: records.Run
    sweep: Path
    export: Path
    submission: Path
    page: Path
    trio: TrioPart


def prepare(folder: Path, documents: int = 120, models: str = "pair", images: str = "own") -> Path:
    """Write the offline suite into `folder` and copy the models beside the datasets, as `pair/mllm` and `pair/base`.

    Args:
        folder: as in `write_hub`.
        documents: of each task, those to scan among them.
        models: "pair", or "trio": then there is also `trio/ancestor`, and GQA asks for reasoning only.
        images: as in `write_hub`.
    """
    gqa = "reasoning" if models == "trio" else "all"
    suite = hub.write_hub(folder, documents_per_task=documents, gqa=gqa, images=images)
    packaged = Path(str(resources.files("plam_eval.demo") / models))
    if not (packaged / "mllm" / "model.safetensors").is_file():
        script = "train_trio" if models == "trio" else "train"
        raise DemoError(f"no embedded {models} in {packaged}: train it with `python -m plam_eval.demo.{script}`")
    for source in packaged.rglob("*"):
        target = suite / models / source.relative_to(packaged)
        if source.is_dir():
            target.mkdir(parents=True, exist_ok=True)
        elif not target.is_file() or sha256_of_file(target) != sha256_of_file(source):
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source, target)
    ids = _question_ids(suite)
    write_in_one_step(suite / QUESTIONS, lambda partial: partial.write_text("\n".join(ids) + "\n", encoding="utf-8"))
    return suite


def _question_ids(suite: Path) -> list[str]:
    """Those of the copy of the benchmark `BOARD`: the questions that a submission has to answer, all of them."""
    import pandas as pd

    table = hub.TABLES[BOARD]
    (file,) = (suite / table.repo / table.config).glob("*.parquet")
    return list(map(str, pd.read_parquet(file, columns=["question_id"])["question_id"]))


def command(plateau: str, output: str, limit: int, offset: int) -> list[str]:
    """The lmms-eval call for one plateau, to be run in the suite's folder.

    Args:
        plateau: name or path of the spec.
        output: folder for results and sample logs.
        limit: documents of each task.
        offset: documents of each task that are passed over before them.
    """
    model_args = f"pretrained=pair/mllm,plateau={plateau},device_map=cpu"
    words = ["lmms-eval", "--model", "plam_llava", "--model_args", model_args, "--tasks", "plam9", "--batch_size", "1"]
    return [*words, "--log_samples", "--output_path", output, "--limit", str(limit), "--offset", str(offset)]


def scan_command(limit: int) -> list[str]:
    """The `plam scan` call for the first `limit` documents of each task, to be run in the suite's folder."""
    words = ["plam", "scan", "--model", "plam_llava", "--model_args", "pretrained=pair/mllm,device_map=cpu"]
    return [*words, "--tasks", "plam9", "--limit", str(limit), "--base", "pair/base", "--output", "../scan"]


def attend_command(plateau: str, limit: int, offset: int, output: str = "../attend") -> list[str]:
    """The `plam attend` call, to be run in the suite's folder: where the pair looks, plain, merged and scaled.

    Args:
        plateau: name or path of the spec.
        limit: documents of each task.
        offset: documents of each task that are passed over before them.
        output: folder of what is found.
    """
    model_args = f"pretrained=pair/mllm,plateau={plateau},device_map=cpu"
    words = ["plam", "attend", "--model", "plam_llava", "--model_args", model_args, "--tasks", LOOKED_AT]
    words += ["--limit", str(limit), "--offset", str(offset), "--depth", "--scan", "../scan"]
    return [*words, "--output", output]


def sweep_command(plateau: str, limit: int, offset: int) -> list[str]:
    """The `plam sweep` call, to be run in the suite's folder; a third of the documents choose the best merge.

    Args:
        plateau: name or path of the spec.
        limit: documents of each task.
        offset: documents of each task that are passed over before them.
    """
    model_args = f"pretrained=pair/mllm,plateau={plateau},device_map=cpu"
    words = ["plam", "sweep", "--model", "plam_llava", "--model_args", model_args, "--tasks", "plam9"]
    words += ["--layers", RANGES, "--weights", WEIGHTS, "--select", str(limit // 6 * 2)]  # whole pairs of MME's
    return [*words, "--limit", str(limit), "--offset", str(offset), "--together", "20", "--output", "../sweep"]


def export_command(plateau: str, sweep: Path) -> list[str]:
    """The `plam export` call for the merge that a sweep chose, to be run in the suite's folder.

    Args:
        plateau: name or path of the spec that the sweep began with.
        sweep: its folder; where it chose nothing, the spec itself is exported.
    """
    words = ["plam", "export", "--model", "pair/mllm", "--plateau", plateau]
    if (spec := _chosen(sweep)) is not None:
        model_weight, base_weight = read_weights(spec["weights"]).written
        words += ["--layers", write_layers(layers_of(spec)), "--modules", "+".join(spec["modules"])]
        words += ["--model-weight", model_weight, "--base-weight", base_weight]
    return [*words, "--results", "../sweep", "--output", f"../export/{CHECKPOINT}"]


def _chosen(sweep: Path) -> dict[str, Any] | None:
    """The spec of the merge that a sweep chose."""
    findings = read_findings(sweep)
    if findings.selection is None:
        return None
    spec: dict[str, Any] = {cell["name"]: cell["spec"] for cell in findings.plan["grid"]["cells"]}[
        findings.selection.cell
    ]
    return spec


def plain_command() -> list[str]:
    """The lmms-eval call for the plain model on all documents of one benchmark, to be run in the suite's folder."""
    words = ["lmms-eval", "--model", "plam_llava", "--model_args", "pretrained=pair/mllm,plateau=none,device_map=cpu"]
    return [*words, "--tasks", BOARD, "--batch_size", "1", "--log_samples", "--output_path", "../plain"]


def submit_command() -> list[str]:
    """The `plam submit` call for the plain model's run, to be run in the suite's folder."""
    return ["plam", "submit", "../plain", "--board", BOARD, "--questions", QUESTIONS]


def trio_command(limit: int) -> list[str]:
    """The `plam sweep` call for the trio, to be run in its suite's folder; a third of the documents choose.

    Args:
        limit: documents of reasoning over images.
    """
    choose = ["--layers", TRIO_LAYERS, "--weights", TRIO_WEIGHTS, "--select", str(limit // 3)]
    return [*_trio_words(), *choose, "--limit", str(limit), "--together", "20", "--output", "../sweep"]


def swapped_command(sweep: Path, limit: int) -> list[str]:
    """The `plam sweep` call for the merge that the trio's sweep chose, on the documents that it is reported on.

    It is to be run where these have images of other scenes.

    Args:
        sweep: the trio's, finished.
        limit: documents of that sweep.

    Raises:
        DemoError: the sweep chose nothing.
    """
    if (spec := _chosen(sweep)) is None:
        raise DemoError(f"{sweep}: no merge of the trio was chosen; delete that folder and run the demo again")
    weights = spec["weights"]
    one = ["--layers", write_layers(layers_of(spec)), "--weights", f"{weights['model']}+{weights['base_model']}"]
    # The same question has the same image's name there, so the same documents are drawn and left out.
    one += ["--controls", SELF_SCALE, "--limit", str(limit), "--select", str(limit // 3)]
    return [*_trio_words(), *one, "--together", "20", "--output", "../sweep-swapped"]


def _trio_words() -> list[str]:
    sides = "pretrained=trio/mllm,base=trio/base,ancestor=trio/ancestor"
    model_args = f"{sides},layers={TRIO_LAYERS},device_map=cpu"
    return ["plam", "sweep", "--model", "plam_llava", "--model_args", model_args, "--tasks", "gqa"]


def run(
    folder: Path,
    *,
    documents: int = 120,
    scanned: int = 120,
    limit: int | None = None,
    fresh: bool = False,
    console: Terminal | None = None,
) -> Demo:
    """Scan the first `scanned` documents of each task; look inside, merge and sweep on those after them; publish.

    Published are an export of the merge that the sweep chose, a submission of the plain model's, and the page. Then
    the trio is swept in `folder`/trio, on `TRIO_TIMES` as many documents of its one task, with a page of its own.

    What is finished for the same suite, pair and versions is not repeated.

    Args:
        folder: for the suite, the results and the page.
        documents: of each task, to merge and sweep on.
        scanned: of each task, to find the plateau on.
        limit: evaluate fewer documents than there are; None for all.
        fresh: whether to repeat what is finished, too.
        console: where to say what happens; by default standard output.

    Raises:
        DemoError: a command fails or writes no results (lmms-eval's exits 0 all the same). InputError: an odd number of
            documents. FolderError: the folder cannot be written, or holds something else where the demo's folders are
            to be.
    """
    for name, count in (("documents", documents), ("scanned", scanned), ("limit", limit or 2)):
        if count % 2:  # known before the scan is paid for
            raise InputError(f"{name} is {count}, but MME asks two questions of an image; give an even number")
    check_writable(folder)
    console = console or Terminal()
    suite = prepare(folder / "suite", scanned + documents)
    limit = limit or documents
    console.say(
        f"Offline suite: nine benchmarks, {scanned} documents each to scan and {limit} others to evaluate, in "
        f"{near(suite)}"
    )
    steps = Steps(suite, fresh, console)
    scan, page = folder / "scan", folder / "report" / "index.html"
    steps.run("scan", scan_command(scanned), scan)
    plateau = "../scan/plateau.yaml" if (scan / SPEC).is_file() else PACKAGED
    attend, looked_at = folder / "attend", min(limit, DOCUMENTS_LOOKED_AT)
    steps.run("attend", attend_command(plateau, looked_at, scanned), attend)
    steps.run("merged", command(plateau, "../merged", limit, scanned), folder / "merged")
    steps.run("sweep", sweep_command(plateau, limit, scanned), folder / "sweep")
    export, plain, submission = (folder / name for name in ("export", "plain", "submission"))
    steps.run("export", export_command(plateau, folder / "sweep"), export)
    steps.run("plain", plain_command(), plain)
    steps.run("submission", submit_command(), submission)
    words = ["plam", "report", "../scan", "../attend", "../sweep", "../export", "--output", "../report"]
    steps.run("report", words, page.parent)
    trio = _run_trio(folder / "trio", TRIO_TIMES * documents, TRIO_TIMES * limit, fresh, console)
    merged = records.read_run(results(folder / "merged"))
    (about,) = results(plain).parent.glob(f"{run_files.date_of(results(plain))}_submission_{BOARD}.about.json")
    return Demo(suite, scan, plateau, attend, merged, folder / "sweep", export / CHECKPOINT, about, page, trio)


def _run_trio(folder: Path, documents: int, limit: int, fresh: bool, console: Terminal) -> TrioPart:
    suite = prepare(folder / "suite", documents, "trio")
    console.say(
        f"\nThe trio, whose base reasons and whose MLLM has unlearned it: {limit} questions of reasoning over images, "
        f"in {near(suite)}"
    )
    steps = Steps(suite, fresh, console)
    steps.run("trio: sweep", trio_command(limit), folder / "sweep")
    swapped = prepare(folder / "suite-swapped", documents, "trio", "swapped")
    words = swapped_command(folder / "sweep", limit)
    Steps(swapped, fresh, console).run("trio: images of other scenes", words, folder / "sweep-swapped")
    steps.run("trio: report", ["plam", "report", "../sweep", "--output", "../report"], folder / "report")
    return TrioPart(suite, folder / "sweep", folder / "sweep-swapped", folder / "report" / "index.html")


def _environment() -> str:
    """How to come by the commands, where `plam` on this terminal is none or another than the one that runs."""
    here, on_path = Path(sys.executable).parent, shutil.which("plam")
    if on_path is not None and Path(on_path).parent == here:
        return ""
    return f"with the environment active (source {near(here / 'activate')}) and "


def same_answers(demo: Demo, findings: Findings) -> tuple[int, int]:
    """Answers of the merge through lmms-eval's command line that differ from the sweep's, and how many there are.

    Args:
        demo: finished.
        findings: of its sweep, in which the same merge is a cell.
    """
    digest = demo.merged.block["provenance"]["digest"]
    cell = findings.cells.loc[findings.cells["digest"] == digest, "cell"].iloc[0]
    resident = read_run(demo.sweep / CELLS / cell).samples
    both = demo.merged.samples.merge(resident, on=["task", "doc_id"], suffixes=("", "_resident"))
    return int((both["answer"] != both["answer_resident"]).sum()), len(both)


def _beside(found: Mapping[str, Findings]) -> PlainTable:
    """The best merge of each sweep against plain and against its scale control, one below the other."""
    from plam_eval.evaluation.stats import format_p

    table = PlainTable(
        caption="the best merge of each, on documents that had no part in the choice", caption_justify="left"
    )
    table.add_column("models", min_width=8)
    for name in ("best merge", "plain", "merge", "difference", "95 %", "p", f"minus {SELF_SCALE}"):
        table.add_column(name, justify="left" if name == "best merge" else "right", no_wrap=True)
    for models, findings in found.items():
        if findings.selection is None:
            table.add_row(models, "none finished")
            continue
        row = findings.cells.set_index("cell").loc[findings.selection.cell]
        of = findings.controls
        of = of[(of["merged"] == findings.selection.cell) & (of["rule"] == SELF_SCALE)]
        merge = f"{row['layers']}, {row['model_weight']:g} + {row['base_weight']:g}"
        figures = [f"{row['first']:.3f}", f"{row['second']:.3f}", f"{row['difference']:+.3f}"]
        between = f"{row['low']:+.3f} to {row['high']:+.3f}"
        minus = f"{of.iloc[0]['difference']:+.3f} (p {format_p(of.iloc[0]['p'])})" if len(of) else ""
        table.add_row(models, merge, *figures, between, format_p(row["p"]), minus)
    return table


def report(demo: Demo, console: Terminal | None = None) -> None:
    """Print the scan, where the pair looks, the merge, the sweep, what was published and what to try next.

    Args:
        demo: finished.
        console: where to; by default standard output.
    """
    from plam_eval.evaluation import scan_folder
    from plam_eval.evaluation.attend import folder as attend_folder
    from plam_eval.evaluation.attend.findings import find, selected
    from plam_eval.merging.export_record import read_export_record
    from plam_eval.merging.report import MergeReport
    from plam_eval.report import tables

    console = console or Terminal(least_width=150)
    console.print()
    scanned = scan_folder.load(demo.scan)
    tables.show_scan(scanned, console)
    if demo.plateau == PACKAGED:
        console.say(f"No plateau was found: the packaged spec `{PACKAGED}` was merged instead.")
    seen = find(attend_folder.load(demo.attend), select=selected(demo.attend))
    console.say(f"\nWhere it looks, on {seen.answers['documents'].max()} documents after those: {seen.sentence}")
    provenance = demo.merged.block["provenance"]
    console.print()
    console.print(MergeReport.from_dict(provenance["merge"]).table())
    swept = read_findings(demo.sweep)
    differ, documents = same_answers(demo, swept)
    console.say(
        f"Through lmms-eval's command line and on the sweep's resident model: {differ} of {documents} answers differ."
    )
    console.show(tables.sweep(swept), tables.sweep(swept, narrow=True))
    console.say(swept.verdict())
    exported, submitted = read_export_record(demo.export), read_json(demo.submission, "run the demo with --fresh")
    hows = Counter(file.how for file in exported.files.values())
    console.say(
        f"Export of the chosen merge: {near(demo.export)} (digest {exported.digest[:16]}; "
        f"files: {', '.join(f'{count} {how}' for how, count in sorted(hows.items()))})"
    )
    console.say(
        f"Submission of the plain model, checked: {near(demo.submission.parent / submitted['file'])} "
        f"({submitted['answers']} answers for {submitted['title']})"
    )
    console.say("\nThe trio: questions of reasoning over images, which its base answers in words.")
    trio, swapped = read_findings(demo.trio.sweep), read_findings(demo.trio.swapped)
    console.show(tables.sweep(trio), tables.sweep(trio, narrow=True))
    console.say(trio.verdict())
    beside = {"the pair": swept, "the trio": trio, "the trio, images of other scenes": swapped}
    console.show(_beside(beside))
    console.data = {
        "suite": str(demo.suite),
        "scan": scanned.to_dict(),
        "attend": seen.to_dict(),
        "merge": provenance["merge"],
        "sweep": swept.to_dict(),
        "answers": documents,
        "answers_differ": differ,
        "export": str(demo.export),
        "export_digest": exported.digest,
        "submission": str(demo.submission.parent / submitted["file"]),
        "page": str(demo.page),
        "trio": {
            "suite": str(demo.trio.suite),
            "sweep": trio.to_dict(),
            "swapped": swapped.to_dict(),
            "page": str(demo.trio.page),
        },
    }
    console.say(
        f"Scan: {near(demo.scan)}; look inside: {near(demo.attend)}; sweeps: {near(demo.sweep)}, "
        f"{near(demo.trio.sweep)}"
    )
    console.say(text(f"Reports: {near(demo.page)}, {near(demo.trio.page)}", "bold"))
    config = demo.merged.results["config"]
    limit, offset = int(config["limit"]), int(config["offset"])
    looked_at, answer = min(limit, DOCUMENTS_LOOKED_AT), ["--queries", "answer"]
    console.say(
        f"""
What to try next, {_environment()}in the suite's folder
(cd {near(demo.suite)}; export HF_HUB_OFFLINE=1):
  other layers      {shlex.join(command("demo,layers=2:8", "../layers-2-8", limit, offset))}
  another margin    plam plateau ../scan --margin 0.03
  more of the grid  {shlex.join([*sweep_command(demo.plateau, limit, offset), "--modules", "qk,vo"])}
  who looks         {shlex.join([*attend_command(demo.plateau, looked_at, offset, "../attend-answer"), *answer])}
  before you merge  plam doctor --model pair/mllm --plateau {demo.plateau}
  for an appendix   plam submit ../merged --bundle ../merged.zip && plam submit --verify ../merged.zip
Your own model: --model plam_qwen3_vl --model_args pretrained=Qwen/Qwen3-VL-8B-Instruct,plateau=qwen3-vl-8b"""
    )
