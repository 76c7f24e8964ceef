"""What leaves the house: merged checkpoints, files for leaderboards, and bundles of runs for a paper."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from plam_eval.api.shared import Weight, Words, overrides_of, words_of
from plam_eval.arguments import NAME, NAME_OR_NONE, PATH, TEXT, WORDS, paths, takes
from plam_eval.errors import InputError
from plam_eval.layer_sets import write_layers
from plam_eval.rule_parameters import write_parameters
from plam_eval.spec import PlateauSpec, load_spec

if TYPE_CHECKING:
    from plam_eval.publishing.boards.checks import Checked
    from plam_eval.publishing.boards.submission import Submission
    from plam_eval.publishing.bundle.verification import Verification
    from plam_eval.publishing.bundle.write import Bundle
    from plam_eval.publishing.checkpoint.export import Export
    from plam_eval.publishing.hub_results.results import HubResults


@takes(model=NAME_OR_NONE, output=PATH, base=NAME, ancestor=NAME, results=paths, push_to_hub=TEXT)
def export(
    model: str | Path | None,
    plateau: str | Path | Mapping[str, Any] | PlateauSpec | None,
    output: str | Path,
    *,
    base: str | Path | None = None,
    layers: str | Sequence[int] | None = None,
    modules: str | Sequence[str] | None = None,
    model_weight: Weight | None = None,
    base_weight: Weight | None = None,
    rule: str | None = None,
    seed: int | None = None,
    parameters: str | Mapping[str, float] | None = None,
    ancestor: str | Path | None = None,
    results: str | Path | Sequence[str | Path] | None = None,
    push_to_hub: str | None = None,
    public: bool = False,
    overwrite: bool = False,
) -> Export:
    """Write a merged checkpoint in the MLLM's own layout, which loads wherever the MLLM itself does.

    Files that nothing is merged into are copied byte for byte; merged tensors have the bits of `merge` on a model that
    was loaded in their stored dtype. Nothing is loaded into a model: memory is that of the rule's operands.

    Args:
        model: folder or hub id of the MLLM; the spec's own if None.
        plateau: as for `merge`; "none" with `base` and `layers` makes one.
        output: the new folder. It has this name only once it is complete.
        base: as for `merge`.
        layers: as for `merge`.
        modules: as for `merge`.
        model_weight: as for `merge`.
        base_weight: as for `merge`.
        rule: as for `merge`.
        seed: as for `merge`.
        parameters: as for `merge`.
        ancestor: as for `merge`.
        results: folders of runs, of `compare` or `sweep`: of this merge, of the plain model, of controls. Their scores
            go onto the model card; runs of anything else are refused.
        push_to_hub: owner/name of a repository on the hub that the finished export is pushed to.
        public: whether everybody may read that repository; private otherwise.
        overwrite: replace an export that is there, once the new one is complete.

    Returns:
        `folder`, `address` on the hub if it was pushed, and `record`: SHA-256 of every file that was read or written,
        the merge, notes for readers.

    Raises:
        SpecError: listing every problem of the spec. InputError: there is nothing to merge, or no model is named.
            ExportError: listing every problem of the checkpoints and the output; nothing was written. FolderError:
            another process writes there. UploadError: it is exported, and cannot be pushed.
    """
    overrides = overrides_of(base, layers, modules, model_weight, base_weight, rule, seed, parameters, ancestor)
    spec = load_spec(plateau, overrides)
    if spec is None:
        raise InputError("plateau none, or no plateau: nothing would be merged; name a spec with --plateau")
    name = model if model is not None else spec.model
    if name is None:
        raise InputError(f"plateau {plateau} names no model; give one with --model")
    folders = [] if results is None else paths(results)

    from plam_eval.publishing.checkpoint.export import export_checkpoint

    if plateau is None or isinstance(plateau, (str, Path)):
        given = {"plateau": plateau, **overrides}
    else:
        given = {
            "base": spec.base_model,
            "layers": write_layers(spec.layers),
            "modules": spec.modules,
            "model_weight": spec.weights.written[0],
            "base_weight": spec.weights.written[1],
            "rule": spec.rule,
            "seed": spec.seed,
            "parameters": spec.parameters or None,
            "ancestor": spec.ancestor if spec.needs_ancestor else None,
        }
    options = {"model": name, **given, "output": output, **{f"results {n}": run for n, run in enumerate(folders)}}
    return export_checkpoint(
        name,
        spec,
        output,
        results=[Path(folder) for folder in folders],
        push_to_hub=push_to_hub,
        public=public,
        overwrite=overwrite,
        command=_command(options),
    )


def _command(options: Mapping[str, Any]) -> str:
    """What to type for an export with these options; what stands behind a space in a name tells equal ones apart."""
    words = ["plam", "export"]
    for key, value in options.items():
        if value is None:
            continue
        if isinstance(value, Mapping):
            value = write_parameters(value)
        elif not isinstance(value, str) and isinstance(value, Sequence):
            value = (":" if key == "layers" and len(value) == 2 else "+").join(map(str, value))
        words += [f"--{key.split()[0].replace('_', '-')}", str(value)]
    return shlex.join(words)


def _folders(runs: str | Path | Iterable[str | Path], purpose: str) -> list[Path]:
    folders = [Path(folder) for folder in paths(runs)]
    if not folders:
        raise InputError(f"give run folders, or results files, {purpose}")
    return folders


@takes(runs=paths, board=WORDS, task=TEXT, questions=PATH)
def submit(
    runs: str | Path | Iterable[str | Path],
    *,
    board: Words | None = None,
    task: str | None = None,
    questions: str | Path | None = None,
    blank_invalid: bool = False,
) -> list[Submission]:
    """Write the files that leaderboards take, out of runs' sample logs, each beside its run's results.

    Every fault of every run is told at once, and nothing is written while there is one. Beside each file lies one that
    says what it was made of (`.about.json`).

    Args:
        runs: results files of lmms-eval (with `--log_samples`), of our wrappers or not, or folders, of each the newest.
        board: names of boards; by default every one that the runs' tasks are for.
        task: whose answers they are, where the log of another task than the board's own has them.
        questions: the board's own file of questions, whose ids are then all that there are.
        blank_invalid: write answers outside a board's form as empty ones, which it counts as wrong, and say how many.

    Returns:
        What was written: `file`, `about`, `rows`, `empty`, `sha256`, `notes`.

    Raises:
        InputError: no runs, an unknown board, or no board for any task.
        SubmissionError: every reason why the answers cannot be handed in.
    """
    from plam_eval.publishing.boards import submission
    from plam_eval.publishing.boards.table import board_named

    folders = _folders(runs, "to hand in")
    boards = [board_named(name) for name in dict.fromkeys(words_of(board))] if board is not None else []
    return submission.submit(
        folders,
        boards=boards,
        task=task,
        questions=Path(questions) if questions is not None else None,
        blank_invalid=blank_invalid,
    )


@takes(file=PATH, board=TEXT, questions=PATH)
def check_submission(file: str | Path, board: str, *, questions: str | Path | None = None) -> Checked:
    """What a leaderboard would say to a file that was made anywhere.

    Args:
        file: the file.
        board: name of the board.
        questions: the board's own file of questions, whose ids are then all that there are.

    Returns:
        `problems`, each with the lines or rows that have it (none: the file is whole), `notes`, `rows` and `empty`.

    Raises:
        InputError: an unknown board. DamagedFileError: a file of questions without any. OSError: no such file.
    """
    from plam_eval.publishing.boards import submission
    from plam_eval.publishing.boards.table import board_named

    given = Path(questions) if questions is not None else None
    return submission.check_submission(Path(file), board_named(board), given)


@takes(runs=paths, file=PATH, hide=WORDS)
def bundle(
    runs: str | Path | Iterable[str | Path],
    file: str | Path,
    *,
    anonymous: bool = False,
    hide: Words | None = None,
) -> Bundle:
    """Write runs into one archive for a paper's appendix: metrics, answers, specs, provenance, hashes, versions.

    The same folders give the same bytes. Paths, names and accounts of the machine, secrets and images are left out, and
    the manifest names what was.

    Args:
        runs: folders of runs (the newest of each model) or results files, and of sweeps, comparisons and scans.
        file: the archive, a .zip; an older bundle there is replaced.
        anonymous: leave out what names authors, too: commits, free text of specs.
        hide: words that are left out of every record, whatever their case, such as the name of an organisation.

    Returns:
        What was written: `path`, `sha256` (to be printed in the paper), `bytes`, `manifest`.

    Raises:
        InputError: no runs. BundleError: every reason why they cannot be bundled, such as damaged or missing logs.
    """
    from plam_eval.publishing.bundle.write import make_bundle

    folders = _folders(runs, "to bundle")
    return make_bundle(folders, Path(file), anonymous=anonymous, hide=words_of(hide) if hide is not None else ())


@takes(file=PATH)
def verify_bundle(file: str | Path) -> Verification:
    """Recompute every metric of a bundle from the answers in it, and compare every hash.

    The archive may be anybody's: nothing of it is unpacked to disk, and nothing in it is run.

    Args:
        file: the archive.

    Returns:
        `holds` (nothing differs), `complete` (and all could be checked), `differences()`, `unverified`, `metrics`
        and `answers`, each with how it was recomputed.

    Raises:
        BundleError: it is no bundle, damaged, of another format, or not harmless to read.
    """
    from plam_eval.publishing.bundle import verify

    return verify.verify_bundle(Path(file))


@takes(runs=paths, repository=TEXT, task=TEXT, scale=TEXT, dataset=TEXT, task_id=TEXT, source_url=TEXT)
def hub_results(
    runs: str | Path | Iterable[str | Path],
    repository: str,
    *,
    task: str | None = None,
    scale: str | None = None,
    dataset: str | None = None,
    task_id: str | None = None,
    source_url: str | None = None,
    push: bool = False,
) -> HubResults:
    """The results of runs as files of a model's repository on the hub: `.eval_results/*.yaml`, or `model-index`.

    Nothing is pushed unless that is asked for. What is there already is kept, entry by entry; one of the same dataset
    and task is replaced, and named.

    Args:
        runs: results files of lmms-eval (with `--log_samples`), or folders, of each the newest.
        repository: owner/name of the model.
        task: only this one of their tasks.
        scale: of `value`: "fraction", "percent", or "own", as the task reports it. By default the benchmark's board on
            the hub is asked, which has to be told where it cannot be.
        dataset: the benchmark's dataset on the hub, where the table of benchmarks does not name it.
        task_id: the task in it, as its `eval.yaml` names it.
        source_url: where readers find more of the runs.
        push: commit the files.

    Returns:
        `files` (path -> content), `replaced`, `notes`, `pushed` (the commit's address, or None).

    Raises:
        InputError: no runs, or options that cannot be used. HubResultsError: every reason why these results cannot be
            published, such as a limit, failed generations, or documents that the merge was chosen on. UploadError: what
            the hub refuses. RepositoryError: files there that cannot be read.
    """
    from plam_eval.publishing.hub_results import results as publishing

    return publishing.hub_results(
        _folders(runs, "whose results are to be published"),
        repository,
        task=task,
        scale=scale,
        dataset=dataset,
        task_id=task_id,
        source_url=source_url,
        push=push,
    )
