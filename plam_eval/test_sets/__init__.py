"""Released test sets that are scored here, with a file that the user names: `plam_mmmu_test` and MMBench 1.1.

`prepare` refuses a file before a model is loaded; lmms-eval's side is in `plam_eval.tasks`. Importing this imports
nothing heavy. docs/test-sets.md is for users.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from plam_eval.test_sets import mmbench, mmmu
from plam_eval.test_sets.answer_file import AnswerFile, AnswerFileError, Located, NotFetchedError

__all__ = ["TEST_SETS", "AnswerFile", "AnswerFileError", "Prepared", "State", "TestSet", "prepare", "vouched_note"]

RECORD = "answers"
"""Where a task's configuration in a results file says which file it was scored with, below `metadata`."""


@dataclass(frozen=True)
class Prepared:
    """A test set whose file was read and checked.

    Attributes:
        file: that was read.
        name: that it is published by.
        released: it is the version that was released, as far as can be told; False where the user vouches for another.
        content: what the task's `process_docs` takes: MMMU's answers by id, MMBench's table.
    """

    file: Located
    name: str
    released: bool
    content: Any

    def record(self) -> dict[str, Any]:
        """What results say of the file; nothing of where it lies."""
        return {"file": self.name, "md5": self.file.md5, "released": self.released}


@dataclass(frozen=True)
class State:
    """What `plam doctor` says of a test set.

    Attributes:
        task: its name.
        said: in words.
        works: the file can be used; None where none is named, or it was not fetched yet.
    """

    task: str
    said: str
    works: bool | None


@dataclass(frozen=True)
class TestSet:
    """One of the tasks.

    Attributes:
        file: that the user names.
        read: located file, bytes that it may have -> content, and whether it is the released version.
    """

    __test__ = False  # pytest takes classes of such a name for tests

    file: AnswerFile
    read: Callable[[Located, int], tuple[Any, bool]]

    def prepared(self, located: Located) -> Prepared:
        """The content of a located file.

        Args:
            located: the file.

        Raises:
            AnswerFileError: it is no file of this test set.
        """
        content, released = _read(self.file.task, located)
        return Prepared(located, self.file.name, released, content)

    def state(self) -> State:
        """Whether an evaluation would have its file; nothing is fetched."""
        task = self.file.task
        if not self.file.named:
            return State(task, f"{self.file.variable} is not set", None)
        try:
            prepared = self.prepared(self.file.locate(fetch=False))
        except AnswerFileError as error:
            return State(task, str(error), None if isinstance(error, NotFetchedError) else False)
        standing = "the released version" if prepared.released else "another version, which you vouch for"
        return State(task, f"{prepared.file.shown}, MD5 {prepared.file.md5}: {standing}", True)


def _mmbench(language: str, md5: str) -> TestSet:
    def read(file: Located, largest: int) -> tuple[Any, bool]:
        return mmbench.table(file, chinese=language == "cn"), not file.vouched

    name = f"MMBench_TEST_{language.upper()}_V11.tsv"
    page = "VLMEvalKit downloads it: vlmeval/dataset/image_mcq.py in open-compass/VLMEvalKit has its address"
    return TestSet(AnswerFile(f"plam_mmbench_{language}_test_v11", name, page, md5, 1 << 31), read)


_SETS = (
    TestSet(
        AnswerFile(
            "plam_mmmu_test",
            "answer_dict_test.json",
            "mmmu/answer_dict_test.json in MMMU-Benchmark/MMMU on GitHub",
            None,
            1 << 26,
        ),
        mmmu.read_answers,
    ),
    _mmbench("en", "8d1a704e791df6f5d9fb3ef782b65365"),
    _mmbench("cn", "156e6569f9547afb16603eca16e85373"),
)
TEST_SETS: dict[str, TestSet] = {each.file.task: each for each in _SETS}
"""By task."""


def prepare(task: str) -> Prepared | None:
    """The file of a test set, read and checked; once in a process for a file that does not change.

    Args:
        task: any task's name; None comes back for one that reads no such file.

    Raises:
        AnswerFileError: no file is named, or it is not the one it should be.
    """
    test_set = TEST_SETS.get(task)
    return None if test_set is None else test_set.prepared(test_set.file.locate())


@lru_cache(maxsize=8)
def _read(task: str, located: Located) -> tuple[Any, bool]:
    test_set = TEST_SETS[task]
    return test_set.read(located, test_set.file.largest)


def vouched_note(task: str, config: Mapping[str, Any]) -> str | None:
    """What a reader of scores has to know of the file that they were made with; None where there is nothing.

    Args:
        task: its name.
        config: the task's, as a results file has it, which may be anybody's.
    """
    metadata = config.get("metadata")
    record = metadata.get(RECORD) if isinstance(metadata, Mapping) else None
    if task not in TEST_SETS:
        return None
    if not isinstance(record, Mapping):
        return f"{task}: the results do not say which file of answers it was scored with"
    if record.get("released") is True:
        return None
    file = TEST_SETS[task].file
    return (
        f"{task}: scored with MD5 {str(record.get('md5'))[:32]}, which is not the released {file.name}; who ran it "
        "vouched for that version"
    )
