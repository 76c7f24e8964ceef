"""Damaged inputs for every reader: whatever is read, what comes of it is a result or a message, and nothing else."""

from __future__ import annotations

import ast
import contextlib
import os
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, seed, settings

from tests.helpers.damage import OUTSIDE
from tests.helpers.paths import ROOT
from tests.helpers.readers import READERS, Reader, of_ours, remember
from tests.helpers.watching import Fault, watched

LONG = int(os.environ.get("PLAM_FUZZ", "0"))
"""Inputs for each reader; without it, a few that are the same each time."""
SEED = int(os.environ.get("PLAM_FUZZ_SEED", "0")) or random.SystemRandom().randrange(1, 1 << 32)
FEW = 20

LONGEST_MESSAGE = 20_000


@contextlib.contextmanager
def _at(folder: Path) -> Iterator[None]:
    before = Path.cwd()
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(before)


class Example:
    """A valid example of a reader, and a folder in which it is damaged and mended again."""

    def __init__(self, reader: Reader, folder: Path) -> None:
        self.folder, self.scratch, self.secret = folder / "given", folder / "scratch", folder / OUTSIDE
        self.folder.mkdir()
        self.scratch.mkdir()
        self.secret.write_text("{}")
        self.files: dict[str, bytes] = {}
        if reader.make is not None:
            reader.make(self.folder)
            self.files = {
                file.relative_to(self.folder).as_posix(): file.read_bytes()
                for file in sorted(self.folder.rglob("*"))
                if file.is_file()
            }
            remember(self.folder, self.files)

        valid = self.folder if reader.of_a_folder else (reader.words or [reader.tree])[0]
        with _at(self.folder), contextlib.suppress(*reader.refusals):
            reader.read(valid)  # what is imported, or set up once, is none of what a reader does
        self.mend()

    def put(self, changed: dict[str, bytes | None]) -> None:
        for name, content in changed.items():
            file = self.folder / name
            if content is None:
                file.unlink(missing_ok=True)
            else:
                file.write_bytes(content)

    def mend(self) -> None:
        """Back to the valid example, whatever the reader has left."""
        kept = {self.folder / name for name in self.files}
        for path in self.folder.rglob("*"):
            if path not in kept and (path.is_file() or path.is_symlink()):
                path.unlink()
        for name, content in self.files.items():
            file = self.folder / name
            if not file.is_file() or file.read_bytes() != content:
                file.parent.mkdir(parents=True, exist_ok=True)
                file.write_bytes(content)


@pytest.fixture(scope="module")
def example(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Reader], Example]:
    made: dict[str, Example] = {}

    def get(reader: Reader) -> Example:
        if reader.name not in made:
            made[reader.name] = Example(reader, tmp_path_factory.mktemp("reader"))
        return made[reader.name]

    return get


def check(reader: Reader, example: Example, drawn: Any) -> str:
    """Read what was drawn: "" where there is a result, or the message. Anything else raises."""
    given: Any = drawn
    if reader.of_a_folder:
        example.put(drawn)
        given = example.folder
    try:
        with watched(example.folder, example.scratch, None if reader.may_lead_out else example.secret):
            try:
                reader.read(given)
                return ""
            except reader.refusals as error:
                said = str(error)
                if not of_ours(error):
                    raise Fault(f"{type(error).__name__} in place of a message: {said[:400]}") from error
                if not said or len(said) > LONGEST_MESSAGE or "Traceback" in said:
                    raise Fault(f"a message of {len(said)} characters: {said[:400]!r}") from error
                return said
    finally:
        if reader.of_a_folder:
            example.mend()


RAW = {"read_json", "json_object", "read_at_most", "read_parquet", "read_yaml", "parse_yaml", "safe_open", "ZipFile"}
RAW |= {"read_csv", "json.loads", "json.load", "torch.load", "yaml.parse", "read_pickle", "load_workbook", "DictReader"}
"""Calls by which a module takes what lies in a file apart."""

OWN = {
    "plam_eval.demo": "files that the same command has written, of data that come with the package",
    "plam_eval.publishing.checkpoint.export": "JSON that it wrote itself a moment ago",
    "model_wrappers.mixin": "JSON that it wrote itself a moment ago",
    "model_wrappers.text": "a chat template that this command line names, which transformers runs in its sandbox",
    "plam_eval.files": "reads for the others",
    "plam_eval.yaml_reader": "reads for the others",
}
"""Modules, or rooms, that need no row, and why."""


def modules_that_read() -> set[str]:
    found = set()
    for top in ("plam_eval", "model_wrappers", "tasks"):
        for file in (ROOT / top).rglob("*.py"):
            calls = [node for node in ast.walk(ast.parse(file.read_text())) if isinstance(node, ast.Call)]
            names = {ast.unparse(call.func) for call in calls}
            if (names | {name.rpartition(".")[2] for name in names}) & RAW:
                words = file.relative_to(ROOT).with_suffix("").parts
                found.add(".".join(word for word in words if word != "__init__"))
    return found


def test_every_module_that_reads_has_a_row() -> None:
    """Where it fails: give the module a row in tests/helpers/readers.py, or name it in one whose reader goes there."""
    rows = {module for reader in READERS for module in reader.modules}
    left = {module for module in modules_that_read() if not any(f"{module}.".startswith(f"{own}.") for own in OWN)}
    assert left - rows == set()


ROWS = [
    pytest.param(
        reader, marks=[pytest.mark.needs(reader.needs)] * bool(reader.needs) + [pytest.mark.long] * reader.long
    )
    for reader in READERS
]


@pytest.mark.parametrize("reader", ROWS, ids=lambda reader: reader.name)
def test_what_is_read_gives_a_result_or_a_message(
    reader: Reader, example: Any, monkeypatch: Any, record_property: Any
) -> None:
    made = example(reader)
    monkeypatch.chdir(made.folder)
    valid: list[Any] = [{}] if reader.of_a_folder else [*reader.words] or [reader.tree]
    assert "" in [check(reader, made, each) for each in valid], "its own example is refused"

    @settings(
        max_examples=max(3, round((LONG or FEW) * reader.share)),
        derandomize=not LONG,
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
        phases=(Phase.explicit, Phase.generate, Phase.shrink) if LONG else (Phase.explicit, Phase.generate),
    )
    @given(drawn=reader.inputs(made.files))
    def read(drawn: Any) -> None:
        count[0] += 1
        check(reader, made, drawn)

    count, drawn_with = [0], f"PLAM_FUZZ_SEED={SEED}" if LONG else "the same each time"
    try:
        (seed(SEED)(read) if LONG else read)()
    finally:
        record_property("fuzzed", (count[0], drawn_with))
