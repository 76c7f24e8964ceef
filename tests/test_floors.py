"""The floors of docs/architecture.md: what may be imported where, in functions and for types alone, too."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from tests.helpers.paths import DOCS, ROOT

FLOORS: dict[int, dict[str, str]] = {
    7: {"cli": "one file per command: words in, words out"},
    6: {
        "api": "the commands from Python, arguments checked",
        "demo": "the embedded pair, its datasets, and the run over them",
    },
    5: {
        "report": "the page and its sections, plots, tables, words for numbers",
        "publishing": "checkpoints, files for boards, results on the hub",
    },
    4: {
        "evaluation": "records, statistics, comparison, scan, sweep/",
        "model_wrappers": "lmms-eval's classes with merging mixed in, a file per family",
        "doctor": "what is installed, and what will work",
    },
    3: {
        "serving": "vLLM's internals, nowhere else: loader, worker, endpoint",
        "decoding": "answers under many cuts or many merges in one generation",
        "provenance": "what a result is recorded with",
    },
    2: {
        "harness": "lmms-eval's internals, nowhere else; what we know of tasks",
        "probing": "hiding an image from layers on, the curve, the plateau",
        "merging": "checkpoints, the plan of a merge, rules, the merge in place",
    },
    1: {
        "spec": "the plateau spec",
        "rules": "which merge rules and controls there are",
        "built_in_rules": "the records of this package's rules and controls",
        "rule_record": "what a rule says of itself",
        "rule_parameters": "what a rule declares of its parameters",
        "weight_ramps": "weights of a spec, and ramps of them over depth",
        "arguments": "words of a command line as values",
        "beside": "names for what is being written, by process",
        "bootstrap": "resamples and random signs",
        "errors": "the errors, and one way to list problems",
        "figures": "how every figure looks",
        "files": "writing beside and renaming, marks, locks",
        "layer_sets": "sets of decoder layers, written and read",
        "document_sets": "sets of documents, written and read",
        "hub": "names and revisions on the hub",
        "patching": "functions of other libraries, wrapped once",
        "table_files": "tables as parquet and CSV, read within limits",
        "tasks": "task YAMLs, and what a YAML cannot say",
        "test_sets": "released test sets: the file that a user names, checked",
        "terminal": "text as it was written, on any terminal",
        "threads": "how many threads a small model takes",
        "versions": "which versions are tested, allowed, refused",
        "yaml_reader": "YAML 1.2, strictly",
        "_checkout": "finds the top-level folders from inside a checkout",
    },
}
"""The rooms, a folder or a module of plam_eval each, and what is in them. On the lowest floor any may import any."""

SIDEWAYS: set[tuple[str, str]] = set()
"""Which room may import which other one of its floor."""

LONG = {"plam_eval/decoding/all_cuts.py", "plam_eval/demo/hub.py", "plam_eval/demo/train.py"}
"""Files that stay one file each above the limit on lines."""
LINES = 500

SHARED_LOOK = "figures"
"""The one room of the lowest floor that imports matplotlib; only who draws imports it."""

INTERNALS = {
    "lmms_eval": ("harness", "model_wrappers", "tasks"),
    "vllm": ("serving", "model_wrappers.vllm"),
}
"""Whose internals are known where. What others need of them they ask these for."""
DOTTED = re.compile(rf"({'|'.join(INTERNALS)})\.[a-z_.]+")
"""A string that names something of theirs: a module to import, a group of entry points."""

HEAVY = {"accelerate", "datasets", "lmms_eval", "matplotlib", "pandas", "scipy", "torch", "transformers", "vllm"}
LIGHT = ("plam_eval", "plam_eval.harness.registry", "plam_eval.cli")
"""Beside the lowest floor: modules that must be there at once, or that lmms-eval imports whatever model it runs."""

FLOOR_OF = {room: floor for floor, rooms in FLOORS.items() for room in rooms}
Sources = Mapping[str, ast.Module]


def parsed(file: Path) -> ast.Module:
    return ast.parse(file.read_text(encoding="utf-8"), str(file))


def library() -> dict[str, Path]:
    """The library's modules by name; two of the top-level folders are installed below plam_eval."""
    modules = {}
    for top in ("plam_eval", "model_wrappers", "tasks"):
        for file in (ROOT / top).rglob("*.py"):
            words = file.relative_to(ROOT / "plam_eval" if top == "plam_eval" else ROOT).with_suffix("").parts
            modules[".".join(word for word in ("plam_eval", *words) if word != "__init__")] = file
    return modules


FILES = library()
SOURCES = {name: parsed(file) for name, file in FILES.items()}


def imported(tree: ast.AST, *, at_once: bool = False) -> Iterator[str]:
    """Names that are imported anywhere, or `at_once`: when the module is. `a.b.c` of `from a.b import c`."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, "relative imports are not followed here"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Call) and ast.unparse(node.func) == "importlib.import_module":
            yield from (str(each.value) for each in node.args if isinstance(each, ast.Constant))
        lazy = isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)) or (
            isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
        )
        if not (at_once and lazy):
            yield from imported(node, at_once=at_once)


def dotted(tree: ast.AST) -> Iterator[str]:
    """Strings that are a name of somebody's internals."""
    values = (node.value for node in ast.walk(tree) if isinstance(node, ast.Constant))
    return (value for value in values if isinstance(value, str) and DOTTED.fullmatch(value))


def arrows(sources: Sources, *, at_once: bool = False) -> dict[str, set[str]]:
    """The library's modules that each of its modules imports."""
    found: dict[str, set[str]] = {}
    for module, tree in sources.items():
        names = [(name, name.rpartition(".")[0]) for name in imported(tree, at_once=at_once)]
        found[module] = {full if full in sources else parent for full, parent in names if {full, parent} & {*sources}}
        found[module].discard(module)
    return found


def room(module: str) -> str:
    return module.split(".")[1] if "." in module else ""


def wrong_arrows(sources: Sources) -> list[str]:
    """Imports that run up, or to another room of the same floor."""
    wrong = []
    for module, others in arrows(sources).items():
        for other in others if module != "plam_eval" else ():
            mine, theirs = FLOOR_OF.get(room(module), 0), FLOOR_OF.get(room(other), max(FLOORS) + 1)
            inside = room(module) == room(other) or mine == theirs == 1 or (room(module), room(other)) in SIDEWAYS
            if theirs > mine or (theirs == mine and not inside):
                wrong.append(f"{module} (floor {mine}) imports {other} (floor {theirs})")
    return sorted(wrong)


def cycles(sources: Sources) -> list[str]:
    """Modules that import themselves by way of others: what is left when modules without arrows are taken away."""
    left = arrows(sources)
    while leaves := {module for module, others in left.items() if not others & left.keys()}:
        left = {module: others for module, others in left.items() if module not in leaves}
    while roots := left.keys() - {other for others in left.values() for other in others}:
        left = {module: others for module, others in left.items() if module not in roots}
    return sorted(left)


def outside(sources: Sources) -> list[str]:
    """Imports of lmms-eval and vLLM, and strings that name what is in them, where their internals are not known."""
    return sorted(
        {
            f"{module} knows {name}"
            for module, tree in sources.items()
            for name in (*imported(tree), *dotted(tree))
            for package, homes in INTERNALS.items()
            if name.split(".")[0] == package
            and not any(f"{module}.".startswith(f"plam_eval.{home}.") for home in homes)
        }
    )


def heavy(sources: Sources) -> list[str]:
    """What floor 1 and the other light modules import at once, by way of others, too."""
    steps, found = arrows(sources, at_once=True), []
    lowest = FLOORS[1].keys() - {SHARED_LOOK}
    seen, left = set[str](), [name for name in sources if name in LIGHT or room(name) in lowest]
    while left:
        if (module := left.pop()) not in seen:
            seen.add(module)
            left += steps[module]
            names = {name.split(".")[0] for name in imported(sources[module], at_once=True)} & HEAVY
            found += [f"{module} imports {name}" for name in names if not module.startswith("plam_eval.tasks.")]
    return sorted(found)


def drawing() -> str:
    """The floors, as docs/architecture.md draws them."""
    lines = []
    for floor, rooms in FLOORS.items():
        names = [f"{name:<15} {words}" for name, words in rooms.items()]
        lines += [f"{floor} │ {names[0]}", *(f"  │ {name}" for name in names[1:]), "  ▼" if floor > 1 else ""]
    return "\n".join(lines)


def test_every_module_has_a_floor() -> None:
    assert {room(name) for name in FILES if room(name)} == FLOOR_OF.keys()


def test_arrows_run_down() -> None:
    assert wrong_arrows(SOURCES) == []


def test_no_module_imports_itself_by_way_of_others() -> None:
    assert cycles(SOURCES) == []


def test_internals_of_others_are_known_in_one_room_each() -> None:
    assert outside(SOURCES) == []


def test_what_must_be_there_at_once_imports_nothing_heavy() -> None:
    assert heavy(SOURCES) == []


def test_files_are_short() -> None:
    lengths = {file: len(file.read_text(encoding="utf-8").splitlines()) for file in FILES.values()}
    long = {file.relative_to(ROOT).as_posix() for file, length in lengths.items() if length > LINES}
    assert long == LONG


@pytest.mark.parametrize(
    ("module", "source", "check"),
    [
        ("merging.new", "from plam_eval.evaluation import stats", wrong_arrows),
        ("merging.new", "from plam_eval.evaluation.stats import Paired", wrong_arrows),
        ("merging.new", "import plam_eval.evaluation.stats", wrong_arrows),
        ("merging.new", "import plam_eval", wrong_arrows),
        ("merging.new", "def f():\n    from plam_eval.probing import plateau", wrong_arrows),
        ("merging.new", "if TYPE_CHECKING:\n    from plam_eval.evaluation.scan import Scan", wrong_arrows),
        ("merging.new", "x = importlib.import_module('plam_eval.provenance')", wrong_arrows),
        ("model_wrappers.new", "from plam_eval.evaluation import records", wrong_arrows),
        ("merging.names", "def f():\n    from plam_eval.merging import names2", cycles),
        ("merging.new", "def f():\n    import lmms_eval.api", outside),
        ("evaluation.new", "from vllm import LLM", outside),
        ("model_wrappers.vllm_too", "from vllm import LLM", outside),
        ("doctor", "x = import_module('vllm.entrypoints.llm' if y else z)", outside),
        ("files", "import torch", heavy),
        ("harness.registry", "try:\n    from plam_eval.evaluation import stats\nexcept ImportError: ...", heavy),
    ],
)
def test_a_wrong_import_is_found(module, source, check) -> None:
    back = {"plam_eval.merging.names2": ast.parse("from plam_eval.merging.names import decoder_tensor")}
    before = check(SOURCES)
    assert len(check({**SOURCES, **back, f"plam_eval.{module}": ast.parse(source)})) > len(before)


def test_a_right_import_is_none() -> None:
    source = "import torch\nfrom plam_eval.merging import merge\nfrom plam_eval import files\n"
    more = {**SOURCES, "plam_eval.evaluation.new": ast.parse(source)}
    for check in (wrong_arrows, cycles, outside, heavy):
        assert check(more) == check(SOURCES)


def test_the_drawing_shows_these_floors() -> None:
    page = (DOCS / "architecture.md").read_text(encoding="utf-8")
    assert max(map(len, drawing().splitlines())) <= 80, "wider than the column of the page: shorten what is in a room"
    assert drawing() in page, f"docs/architecture.md draws other floors; write there:\n{drawing()}"


@pytest.mark.parametrize(
    "page", [DOCS / "architecture.md", DOCS / "extending.md", ROOT / "CONTRIBUTING.md"], ids=lambda page: page.name
)
def test_pages_name_files_that_are_there(page: Path) -> None:
    named = re.findall(r"`((?:[a-z0-9_]+/)*[a-z0-9_]+\.(?:py|html\.j2))`", page.read_text(encoding="utf-8"))
    places = (ROOT, ROOT / "plam_eval", ROOT / "plam_eval" / "report")
    assert named and [name for name in named if not any((place / name).exists() for place in places)] == []


def test_tests_import_helpers_and_no_other_test() -> None:
    for file in (ROOT / "tests").rglob("*.py"):
        tree = parsed(file)
        ours = {name for name in imported(tree) if name.startswith("tests.")}
        assert all(name.startswith("tests.helpers") for name in ours), f"{file}: move what is shared to tests/helpers"
        climbs = {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)} & {"parents"}
        assert not climbs or file.parent.name == "helpers", f"{file}: tests/helpers/paths.py has the folders"


def test_tests_that_import_vllm_are_marked() -> None:
    for file in (ROOT / "tests").rglob("test_*.py"):
        if any(name.split(".")[0] == "vllm" for name in imported(parsed(file), at_once=True)):
            assert "pytestmark = pytest.mark.vllm" in file.read_text(encoding="utf-8"), f"{file}: mark it vllm"
