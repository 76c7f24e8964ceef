"""The boards of MMBench, MMMU, MMMU-Pro, MM-Vet and MathVista, and how their logs are read.

Facts of MMBench's server are those of its program, scripts/mmb_eval_gradio.py of VLMEvalKit: it took a file's language
from the questions and its version from the largest index, and counted a question as right where every rotation of its
choices that is in the file is. MMMU's are those of main_eval_only.py, which counts the answers that a file has.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

from plam_eval.errors import quoted
from plam_eval.harness import scoring
from plam_eval.harness.choices import choices_of
from plam_eval.publishing.boards.checks import as_id
from plam_eval.publishing.boards.record import Board, Column, Line, Together, Values, stripped
from plam_eval.test_sets.mmbench import STEP
from plam_eval.test_sets.mmmu import SUBJECTS

# --- MMBench ----------------------------------------------------------------------------------------------------------

FIRST_OF_V11 = 3000
"""The server takes a file with such an index, or a greater one, for one of version 1.1."""
_V1_ROWS, _V1_QUESTIONS = 6666, 1784
_LETTERS = "ABCD"
_NAN = "nan "
_EXAMPLES = 5
_INDEX = Column("index", int)
_CHINESE = re.compile("[\u4e00-\u9fff]")
_TEXTS = ("answer", "hint", "source", "split", "category", "L2-category", *"ABCDE")


def mmbench_entry(line: Line) -> dict[str, Any]:
    """The columns of MMBench in a line of its log. What is absent is empty, which the data set writes as "nan".

    Args:
        line: the line.

    Raises:
        KeyError, TypeError, ValueError: it holds none.
    """
    entries = [line[name] for name in ("submission", "gpt_eval_score") if isinstance(line.get(name), Mapping)]
    logged = entries[0] if entries else line["circular_eval"]
    index = as_id(_INDEX, logged["index"])
    assert isinstance(index, int)
    values = {name: logged[name] for name in ("question", "prediction")}
    values |= {name: _present(logged.get(name)) for name in _TEXTS}
    return {"index": index, "g_index": index % STEP, **values}


def _present(value: Any) -> Any:
    return "" if value is None or value != value or value == "nan" else value


def _mmbench_notes(line: Line) -> Iterable[tuple[str, str]]:
    prompt = line.get("input")
    if isinstance(prompt, str) and prompt.startswith(_NAN) and not mmbench_entry(line)["hint"]:
        yield (
            'the model was asked with "nan " before the question, as lmms-eval writes the absent hint of a Chinese '
            "question; the hint is empty here, and MMBench's own prompt has nothing there",
            quoted(prompt[:40]),
        )


def _mmbench_together(chinese: bool) -> Together:
    def check(rows: Values, compared: bool) -> tuple[list[str], list[str]]:
        indexed = [row for row in rows if type(row.get("index")) is int]
        names = ("index", "question", "prediction", *_LETTERS)
        problems = [f"no column {name}" for name in names if rows and all(name not in row for row in rows)]
        if not indexed:
            return problems, []
        language = sum(bool(_CHINESE.search(str(row.get("question")))) for row in indexed) > len(indexed) / 2
        if language != chinese:
            problems.append(
                f"most questions are {'Chinese' if language else 'not Chinese'}: the board would take the file for "
                f"{'MMBench_CN' if language else 'MMBench'}, expected {'MMBench_CN' if chinese else 'MMBench'}"
            )
        if other := sorted({str(row["split"]) for row in indexed if row.get("split") not in (None, "", "test")}):
            problems.append(f"rows of the split {', '.join(other[:_EXAMPLES])}, expected test")
        if not compared and not is_whole(indexed, _V1_ROWS, _V1_QUESTIONS):
            problems += [*_version_problems(indexed), *rotation_problems(indexed)]
        return problems, [_version(indexed)]

    return check


def _version(rows: Values) -> str:
    largest = max(row["index"] % STEP for row in rows)
    version = "1.1 (V11)" if largest >= FIRST_OF_V11 else "1.0"
    return f"the board takes it for version {version}, by its largest index, {largest}"


def is_whole(rows: Values, count: int, questions: int) -> bool:
    """Whether rows are as many as a version's, of as many questions: then no rotation can be missing.

    Args:
        rows: with `index`, a number.
        count: of all rows of the version.
        questions: that they ask.
    """
    return (len(rows), len({row["index"] % STEP for row in rows})) == (count, questions)


def _version_problems(rows: Values) -> list[str]:
    """Whether a file is a whole one of version 1.0, whose numbers are known; of 1.1, a file of questions tells."""
    largest = max(row["index"] % STEP for row in rows)
    questions = {row["index"] % STEP for row in rows}
    if largest >= FIRST_OF_V11:
        return []
    return [
        f"the board would take it for version 1.0, by its largest index, {largest}: found {len(rows)} rows of "
        f"{len(questions)} questions, expected {_V1_ROWS} of {_V1_QUESTIONS}; give the questions with --questions"
    ]


def rotation_problems(rows: Values) -> list[str]:
    """What is wrong where a rotation of a question is missing: each choice that turns stands at every letter once.

    Args:
        rows: with `index`, a number, and choices.
    """
    turns: dict[int, dict[int, Mapping[str, Any]]] = {}
    for row in rows:
        turns.setdefault(row["index"] % STEP, {})[row["index"] // STEP] = row
    missing = []
    for question, by_turn in turns.items():
        expected = max(*by_turn, 0) + 1
        if 0 in by_turn:
            choices = _choices(by_turn[0])
            turning = [
                n for n, text in enumerate(choices, 1) if 1 in by_turn and _choices(by_turn[1])[n - 1 : n] != [text]
            ]
            # Without a second turn nobody can tell what turns ("all of these" does not), but two choices always do.
            expected = max(expected, max(turning, default=0), min(2, len(choices)))
        if absent := [turn for turn in range(expected) if turn not in by_turn]:
            missing.append(f"{question} lacks {', '.join(str(question + turn * STEP) for turn in absent)}")
    if not missing:
        return []
    more = f"; and {len(missing) - _EXAMPLES} more" if len(missing) > _EXAMPLES else ""
    return [f"questions without all of their rotations ({len(missing)}): {'; '.join(missing[:_EXAMPLES])}{more}"]


def _choices(row: Mapping[str, Any]) -> list[str]:
    return [str(row[letter]) for letter in "ABCDE" if row.get(letter) not in (None, "")]


def _optional(*names: str) -> tuple[Column, ...]:
    return tuple(Column(name, needed=False) for name in names)


def _mmbench(language: str, md5: str) -> Board:
    name = f"MMBench_TEST_{language}_V11.tsv"
    return Board(
        f"mmbench_{language.lower()}",
        f"MMBench test, {'Chinese' if language == 'CN' else 'English'}",
        "xlsx",
        _INDEX,
        Column("prediction", canonical=stripped),
        mmbench_entry,
        tasks=(f"mmbench_{language.lower()}_test", f"plam_mmbench_{language.lower()}_test_v11"),
        more=(Column("question"), Column("g_index", int, needed=False), *_optional(*_TEXTS)),
        order=("index", "g_index", "question", "answer", "prediction", *_TEXTS[1:]),
        question_ids=("index",),
        also=("csv", "tsv"),
        answers="without white space around them",
        notes=_mmbench_notes,
        together=_mmbench_together(language == "CN"),
        question_files=((md5, name),),
        rules=(
            "every rotation of every question, index + k * 1,000,000",
            "the board knows the version by the largest index, and the language by the questions",
            f"boards use version 1.1, which plam_mmbench_{language.lower()}_test_v11 asks; its questions are {name}",
        ),
        server="closed",
        standing="server closed, since 2026-03-31; answers public, with VLMEvalKit",
        sources=(
            "https://github.com/open-compass/VLMEvalKit/issues/1516",
            "https://github.com/open-compass/MMBench/issues/62",
            "https://github.com/open-compass/MMBench/issues/32",
            "https://github.com/open-compass/VLMEvalKit/blob/main/scripts/mmb_eval_gradio.py",
        ),
        read_on="2026-11",
    )


# --- MMMU and MMMU-Pro ------------------------------------------------------------------------------------------------

_ID = "({})_[A-Z][A-Za-z_]*_[0-9]+"
_UNSEEN = dict.fromkeys("ABCDEFGHIJ", "\0")
"""Choices that stand in the picture only: letters whose texts no answer holds."""
_NO_LETTER = (
    "no letter in an answer to a question of choices, written empty, which counts as wrong: lmms-eval draws one at "
    "random"
)


def said(line: Line) -> str:
    """The answer in a line of a log, as the task's first filter leaves it.

    Args:
        line: the line.

    Raises:
        KeyError, TypeError: it holds none.
    """
    answer = line["filtered_resps"]
    while isinstance(answer, list) and answer:
        answer = answer[0]
    if not isinstance(answer, str):
        raise TypeError(f"found {quoted(answer)} as the answer, expected text")
    return answer


def _mmmu_answer(line: Line) -> tuple[str, str | None, str]:
    """The id of a question, the letter of an answer ("" for none; None where the question is open), and its text."""
    entry = line.get("mmmu_acc")
    if isinstance(entry, Mapping):
        name, kind = entry["id"], entry.get("question_type")
    else:
        (name,), kind = line["submission"], None
    text, choices = said(line), choices_of(str(line.get("input")))
    if kind == "open" or (kind is None and not choices):
        return name, None, text
    if not choices:
        raise ValueError("a question of choices whose prompt lists none, so that a drawn letter cannot be told")
    return name, scoring.mmmu_letter(text, choices) or "", text


def _mmmu(line: Line) -> dict[str, Any]:
    name, letter, text = _mmmu_answer(line)
    return {"id": name, "answer": text.strip() if letter is None else letter}


def _mmmu_notes(line: Line) -> Iterable[tuple[str, str]]:
    name, letter, text = _mmmu_answer(line)
    if letter == "":
        yield _NO_LETTER, f"{name}, {quoted(text)}"
    parsed = (line.get("mmmu_acc") or {}).get("parsed_pred")
    logged = parsed[0] if isinstance(parsed, list) and parsed else parsed
    if letter and logged not in (None, letter):
        yield (
            "another letter than in the log, where MMMU's rules do not read that from the answer: another version?",
            f"{name}, {quoted(text)} is {letter}, logged {quoted(logged)}",
        )


def _mmmu_subjects(rows: Values, compared: bool) -> tuple[list[str], list[str]]:
    """Ids of a subject that MMMU does not have, which its program does not know."""
    odd = [] if compared else [str(row.get("id")) for row in rows if _subject(row.get("id")) not in SUBJECTS]
    return [f"ids of no subject of MMMU ({len(odd)}): {', '.join(odd[:_EXAMPLES])}"] if odd else [], []


def _subject(name: Any) -> str:
    return str(name).partition("_")[2].rpartition("_")[0]


def _mmmu_pro_letter(line: Line, *, vision: bool) -> tuple[str, str]:
    name, text = line["mmmu_acc"]["id"], said(line)
    if vision:
        return name, _unseen_letter(text, line["mmmu_acc"].get("parsed_pred"))
    choices = choices_of(str(line.get("input")))
    if not choices:
        raise ValueError("a question of choices whose prompt lists none, so that a drawn letter cannot be told")
    return name, scoring.mmmu_letter(text, choices) or ""


def _unseen_letter(text: str, logged: Any) -> str:
    """The letter in an answer to a question whose choices are not in the log, nor how many they are.

    "B. I see it." is B of four choices and I of ten. The log says which, where its letter is read from the answer for
    some number of choices; where it is for none, it was drawn.
    """
    letters = [scoring.mmmu_letter(text, dict(list(_UNSEEN.items())[:n])) or "" for n in range(len(_UNSEEN), 1, -1)]
    return str(logged) if logged and logged in letters else letters[0]


def _mmmu_pro(name: str, *, vision: bool) -> Board:
    def read(line: Line) -> dict[str, Any]:
        return dict(zip(("id", "answer"), _mmmu_pro_letter(line, vision=vision), strict=True))

    def notes(line: Line) -> Iterable[tuple[str, str]]:
        question, letter = _mmmu_pro_letter(line, vision=vision)
        if not letter:
            yield _NO_LETTER, f"{question}, {quoted(said(line))}"

    return Board(
        name,
        f"MMMU-Pro, {'vision' if vision else 'standard, 10 options'}",
        "json object",
        Column(
            "id",
            pattern=_ID.format("dev|validation|test"),
            expected="such as test_Physics_7",
        ),
        Column("answer", pattern="[A-J]", expected="a letter from A to J"),
        read,
        tasks=(f"{name}", f"{name}_cot"),
        questions=1730,
        question_ids=("id",),
        answers="the letter that MMMU's rules read from them",
        notes=notes,
        together=_mmmu_subjects,
        rules=("say which setting, and whether the model was asked to think first",),
        server="none",
        standing="self-reported: no server takes it; answers public",
        sources=("https://github.com/MMMU-Benchmark/MMMU/tree/main/mmmu-pro",),
        read_on="2026-11",
    )


# --- MM-Vet and MathVista ---------------------------------------------------------------------------------------------


def _mmvet(version: int, questions: int) -> Board:
    def read(line: Line) -> dict[str, Any]:
        return {"question_id": line["gpt_eval_score"]["question_id"], "answer": line["gpt_eval_score"]["pred_answer"]}

    folder = "MM-Vet" if version == 1 else "MM-Vet-v2"
    return Board(
        "mmvet" if version == 1 else "mmvetv2",
        "MM-Vet" if version == 1 else "MM-Vet v2",
        "json object",
        Column("question_id", pattern=rf"v{version}_\d+", expected=f"such as v{version}_0"),
        Column("answer"),
        read,
        tasks=("mmvet",) if version == 1 else ("mmvetv2",),
        questions=questions,
        rules=("graded by the authors' GPT-4 evaluator (gpt-4-0613); lmms-eval's judge may be another",),
        standing="a page of the hub grades it, and the authors' program does with a key of yours",
        sources=(
            "https://github.com/yuweihao/MM-Vet",
            f"https://huggingface.co/spaces/whyu/{folder}_Evaluator",
        ),
        read_on="2026-11",
    )


_KEPT = ("query", "choices", "question_type", "answer_type", "precision")
_OWN = {*_KEPT, "question_id", "answer", "extraction", "prediction", "true_false"}


def _mathvista_entry(line: Line) -> Mapping[str, Any]:
    logged: Mapping[str, Any] = line["submission"] if "submission" in line else line["llm_as_judge_eval"]
    return logged


def _mathvista(line: Line) -> dict[str, Any]:
    logged = _mathvista_entry(line)
    asked = re.search(r"Question: (.*?)(?=\nChoices:|\nSolution:|\Z)", logged["query"], re.DOTALL)
    values = {"pid": logged["question_id"], "question": asked[1].strip() if asked else logged["query"]}
    values |= {"response": said(line), **{name: logged[name] for name in _KEPT}, "metadata": _metadata(logged)}
    if str(logged["extraction"]).strip():
        values |= {name: logged[name] for name in ("extraction", "prediction")}
        if logged.get("answer") not in (None, ""):
            values |= {"true_false": logged["true_false"], "answer": logged["answer"]}
    return values


def _metadata(logged: Mapping[str, Any]) -> Any:
    """What a problem is of: the task spreads it over its entries when it has scored them, before they are logged."""
    return logged["metadata"] if "metadata" in logged else {k: v for k, v in logged.items() if k not in _OWN}


def _mathvista_notes(line: Line) -> Iterable[tuple[str, str]]:
    logged = _mathvista_entry(line)
    if not str(logged["extraction"]).strip():
        yield (
            "no extraction, so none is written, and no prediction or verdict: the judge gave none, or the answer was "
            "empty; MathVista's extract_answer.py makes them",
            f"pid {logged['question_id']}",
        )
    elif logged.get("answer") in (None, ""):
        yield "no verdict: the log has no true answer", f"pid {logged['question_id']}"


def _mathvista_board(split: str, questions: int, tasks: tuple[str, ...]) -> Board:
    open_columns = ("choices", "precision", "metadata")
    return Board(
        f"mathvista_{split}",
        f"MathVista {split}",
        "json object",
        Column("pid", pattern=r"\d+", expected="digits, as text", canonical=str),
        Column("response"),
        _mathvista,
        tasks=tasks,
        more=(
            Column("question"),
            *(Column(name, object if name in open_columns else str) for name in (*_KEPT, "metadata")),
            *(Column(name, object, needed=False) for name in ("extraction", "prediction", "true_false", "answer")),
        ),
        questions=questions,
        split=split,
        question_ids=("pid",),
        notes=_mathvista_notes,
        rules=(
            "with the scores that calculate_score.py makes of it",
            "extractions are those of the judge that lmms-eval asked, which may be another than the authors'",
        ),
        server="mail",
        standing="by mail to the authors, with the scores",
        sources=("https://github.com/lupantech/MathVista",),
        read_on="2026-11",
    )


# --- the table --------------------------------------------------------------------------------------------------------

CHOICE_BOARDS: tuple[Board, ...] = (
    _mmbench("EN", "8d1a704e791df6f5d9fb3ef782b65365"),
    _mmbench("CN", "156e6569f9547afb16603eca16e85373"),
    Board(
        "mmmu_test",
        "MMMU test",
        "json object",
        Column("id", pattern=_ID.format("test"), expected="test_<Subject>_<n>, such as test_Accounting_1"),
        Column("answer", canonical=stripped),
        _mmmu,
        tasks=("mmmu_test", "mmmu_test_group_img", "plam_mmmu_test"),
        questions=10_500,
        question_ids=("id",),
        answers="the letter that MMMU's rules read from them; to open questions their text, which the board reads",
        notes=_mmmu_notes,
        together=_mmmu_subjects,
        rules=("every question: an answer that is absent is not counted, so that a file in part seems better",),
        server="closed",
        standing="server closed: EvalAI 2179 has returned nothing since January 2026; answers public since 2026-02-12",
        sources=(
            "https://github.com/MMMU-Benchmark/MMMU/issues/79",
            "https://github.com/MMMU-Benchmark/MMMU/blob/main/mmmu/answer_dict_test.json",
        ),
        read_on="2026-11",
    ),
    _mmmu_pro("mmmu_pro_standard", vision=False),
    _mmmu_pro("mmmu_pro_vision", vision=True),
    _mmvet(1, 218),
    _mmvet(2, 517),
    _mathvista_board(
        "testmini", 1000, ("mathvista_testmini_format", "mathvista_testmini_cot", "mathvista_testmini_solution")
    ),
    _mathvista_board("test", 5141, ("mathvista_test",)),
)
"""The boards of this file."""
