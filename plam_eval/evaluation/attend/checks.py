"""What can be known to be wrong with a `plam attend` before a model is loaded; nothing is left behind."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from plam_eval.errors import InputError
from plam_eval.evaluation.attend.folder import AttendError, check_folder
from plam_eval.evaluation.attend.settings import Settings, check_merges
from plam_eval.harness import checks
from plam_eval.harness.boxes import read_boxes
from plam_eval.harness.documents import may_have_boxes
from plam_eval.harness.lookup import dataset_of, task_manager
from plam_eval.harness.requests import Key
from plam_eval.harness.sampling import Sample
from plam_eval.harness.single_image import check_question, read_image
from plam_eval.harness.wrapper import HFWrapper
from plam_eval.probing.decoder import ProbeError

if TYPE_CHECKING:
    from plam_eval.harness.task_row import Box, Boxes
    from plam_eval.merging.checkpoint import Checkpoint


def check_tasks(
    output: str | Path,
    tasks: str | Sequence[str],
    *,
    limit: int | None = None,
    offset: int = 0,
    sample: Sample | None = None,
    include_path: str | Path | None = None,
    gen_kwargs: str | None = None,
    model: Any = None,
) -> checks.CheckedTasks:
    """What can be known to be wrong of tasks and output before a model is loaded; nothing is left behind.

    Args:
        output: folder; it need not exist.
        tasks: names of tasks or groups, as a list or separated by commas.
        limit: documents of each task, at most.
        offset: documents of each task that are left out, from its first one on.
        sample: so many documents of each task instead, and what is left out.
        include_path: folder of further tasks.
        gen_kwargs: generation settings ("max_new_tokens=8") over the tasks' own.
        model: its wrapper, or the wrapper's id.

    Raises:
        EvaluationError: as `checks.check_tasks`. InputError: generation settings that are not greedy. FolderError: as
            `check_folder`.
    """
    checks.check_generation(gen_kwargs, greedy=True)
    check_folder(output)
    return checks.check_tasks(
        tasks,
        limit=limit,
        offset=offset,
        sample=sample,
        include_path=include_path,
        gen_kwargs=gen_kwargs,
        model=model,
        by_document=True,
        need_scores=False,
    )


def tasks_without_boxes(
    tasks: Iterable[str], *, boxes: str | Path | None = None, include_path: str | Path | None = None, model: Any = None
) -> list[str]:
    """Those of some tasks of which nothing says where in the image what is asked about lies.

    Args:
        tasks: names of tasks.
        boxes: file of boxes of documents.
        include_path: folder of further tasks.
        model: its wrapper, or the wrapper's id.

    Raises:
        InputError, DamagedFileError: a file that holds no boxes, or those of a task that there is not.
    """
    manager, tasks = task_manager(include_path, model), list(tasks)
    given = None if boxes is None else read_boxes(boxes, {*manager.all_tasks, *tasks})
    return [task for task in tasks if not may_have_boxes(task, dataset_of(manager, task), given)]


def check_model(
    checkpoint: Checkpoint,
    settings: Settings,
    *,
    attention: str | None = None,
    trust_remote_code: bool = False,
) -> int:
    """Refuse a checkpoint that cannot be looked at, or merged as settings say, from its config and file headers.

    Args:
        checkpoint: the MLLM's.
        settings: what it is to be looked at under.
        attention: the implementation that is asked for; None for transformers' own choice.
        trust_remote_code: whether code that lies in the checkpoint may run.

    Returns:
        How many decoder layers it has.

    Raises:
        ProbeError: a family or a backend whose attention rows, or whose tokens' places, cannot be had. MergeError:
            naming every fault of every setting.
    """
    from transformers import AutoConfig

    from plam_eval.probing.decoder import decoder_layers
    from plam_eval.probing.row_capture import backend_problem
    from plam_eval.probing.skeleton import check_probeable, check_shared_keys, skeleton
    from plam_eval.probing.token_grid import check_grid

    if attention is not None and (problem := backend_problem(attention)) is not None:
        raise ProbeError(f"{checkpoint.name} {problem}. Give attn_implementation=sdpa in model_args")
    config = AutoConfig.from_pretrained(
        checkpoint.location, revision=checkpoint.commit, trust_remote_code=trust_remote_code
    )
    model = skeleton(config, trust_remote_code=trust_remote_code)
    check_probeable(model)
    check_shared_keys(model)
    check_grid(model)
    check_merges(settings, checkpoint)
    return len(decoder_layers(model))


def check_loaded(model: HFWrapper) -> int:
    """Refuse a loaded model whose attention rows, or whose tokens' places, cannot be had.

    Args:
        model: one of the HF wrappers.

    Returns:
        How many decoder layers it has.

    Raises:
        ProbeError: naming what was found.
    """
    from plam_eval.probing.decoder import attention_implementation, decoder_layers
    from plam_eval.probing.row_capture import backend_problem
    from plam_eval.probing.token_grid import check_grid

    if (problem := backend_problem(attention_implementation(model.model))) is not None:
        raise ProbeError(f"{model.pretrained_name} {problem}. Give attn_implementation=sdpa in model_args")
    check_grid(model.model)
    return len(decoder_layers(model.model))


def check_scans(scans: Sequence[str | Path], num_layers: int) -> list[Path]:
    """Folders of scans, known to be some of a decoder.

    Args:
        scans: of `plam scan`.
        num_layers: of the decoder.

    Raises:
        AttendError: one is of another number of layers. ScanError, DamagedFileError, CurveError, SpecError,
            OutsideError: one is none.
    """
    from plam_eval.evaluation import scan_folder

    found = [scan_folder.load(Path(folder)) for folder in scans]
    problems = [
        f"{scan.folder}: a scan of {scan.curve.num_layers} decoder layers; expected one of {num_layers}, of this model"
        for scan in found
        if scan.curve.num_layers != num_layers
    ]
    if problems:
        raise AttendError("\n".join(problems))
    return [scan.folder for scan in found]


def check_image(image: str | Path, question: str, boxes: Sequence[Box]) -> None:
    """Refuse an image, question or boxes that nothing can be asked of.

    Args:
        image: file of the image.
        question: about it.
        boxes: in its pixels.

    Raises:
        InputError: which one it is.
    """
    check_question(question)
    check_boxes(boxes, read_image(image).size)


def check_boxes(boxes: Sequence[Box], size: tuple[int, int]) -> None:
    """Refuse boxes that are not within an image, or over most of it.

    Args:
        boxes: in pixels of the image.
        size: width and height of the image.

    Raises:
        InputError: naming every such box.
    """
    from plam_eval.probing.attention_measures import LARGEST_BOX

    width, height = size
    problems = []
    for box in boxes:
        left, top, right, bottom = box
        area = (min(right, width) - max(left, 0)) * (min(bottom, height) - max(top, 0))
        if not (0 <= left < right <= width and 0 <= top < bottom <= height):
            problems.append(
                f"found {','.join(f'{edge:g}' for edge in box)}; expected left,top,right,bottom within {width} x "
                f"{height} pixels"
            )
        elif area > LARGEST_BOX * width * height:
            problems.append(
                f"found {','.join(f'{edge:g}' for edge in box)}, over {area / (width * height):.0%} of the image; a "
                f"box over more than {LARGEST_BOX:.0%} says nothing of where a model looks"
            )
    if problems:
        raise InputError(*problems, origin="box")


def given_boxes(file: str | Path | None) -> Mapping[Key, Boxes] | None:
    """The boxes in a file of the user's; None where there is none.

    Args:
        file: of boxes of documents.

    Raises:
        InputError, DamagedFileError: it holds no boxes.
    """
    return None if file is None else read_boxes(file)
