"""What one of the package's writers has written, its reader reads as it was."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from plam_eval import files, table_files
from plam_eval.arguments import read_words, write_words
from plam_eval.document_sets import read_by_task, read_clusters, write_by_task, write_clusters
from plam_eval.evaluation.answer_store import AnswerStore
from plam_eval.layer_sets import read_layers, write_layers
from plam_eval.merging.export_record import read_export_record
from plam_eval.probing.curve import Curve
from plam_eval.probing.plateau import Stages, find_plateau
from plam_eval.probing.spec_file import write_spec
from plam_eval.publishing.boards.files import read_rows, write_rows
from plam_eval.publishing.boards.record import Board, Column, entry
from plam_eval.publishing.bundle.archive import open_archive, write_archive
from plam_eval.publishing.hub_results.results import _dumped
from plam_eval.spec import load_spec
from plam_eval.weight_ramps import read_weights
from plam_eval.yaml_reader import parse_yaml
from tests.helpers.curves import rows
from tests.helpers.exports import record_of

LONG = int(os.environ.get("PLAM_FUZZ", "0"))
read_back = settings(
    max_examples=LONG or 25,
    derandomize=not LONG,
    database=None,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)

texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
lines = st.text(st.characters(exclude_categories=["Cs", "Cc"]), max_size=20)
like_numbers = st.sampled_from(
    ["1e5", "0o17", "0x1f", "1_000", "012", ".5", "+1", "24:36", "yes", "null", "~", ".inf", "é"]
)
names = st.from_regex(r"[a-z][a-z0-9_]{0,8}", fullmatch=True)
whole = st.integers(0, 10_000)
numbers = st.floats(-100, 100, allow_nan=False).map(lambda value: round(value, 6))
trees = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**63 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=8,
)


@contextmanager
def folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as name:
        yield Path(name)


@read_back
@given(st.sets(st.integers(0, 300), min_size=1))
def test_layers(layers: set[int]) -> None:
    assert read_layers(write_layers(tuple(sorted(layers)))) == tuple(sorted(layers))


@read_back
@given(st.dictionaries(texts, st.sets(whole)), st.lists(st.sets(st.integers(0, 40), min_size=1), max_size=5))
def test_documents(by_task: dict[str, set[int]], groups: list[set[int]]) -> None:
    assert read_by_task(write_by_task(by_task)) == {task: tuple(sorted(ids)) for task, ids in by_task.items()}
    apart = [{number + 100 * place for number in group} for place, group in enumerate(groups)]
    assert read_clusters(write_clusters(apart)) == tuple(tuple(sorted(group)) for group in apart)


@st.composite
def specs(draw: Any) -> Any:
    ends = st.tuples(numbers, numbers).map(list)
    layers = draw(st.sets(st.integers(0, 60), min_size=1).map(sorted))
    return load_spec(
        {
            "base_model": draw(st.sampled_from(["org/base", "./1e5", "a/b@v1"])),
            "model": draw(st.none() | lines.filter(str.strip) | like_numbers),
            "layers": layers,
            "modules": draw(st.sampled_from(["qkvo", "q_proj+k_proj", "v_proj"])),
            "weights": {"model": draw(numbers | ends), "base_model": draw(numbers | ends)},
            "source": draw(st.none() | texts.filter(str.strip) | like_numbers),
            "evidence": draw(st.none() | st.dictionaries(texts | like_numbers, trees | like_numbers, max_size=3)),
        }
    )


@read_back
@given(specs())
def test_specs(spec: Any) -> None:
    assert load_spec(json.loads(json.dumps(spec.to_dict()))) == spec
    assert read_weights(json.loads(json.dumps(spec.to_dict()["weights"]))) == spec.weights
    with folder() as at:
        assert load_spec(write_spec(spec, at / "plateau.yaml")) == spec


@read_back
@example([{"dataset": {"id": "a/b", "task_id": "1e5"}, "value": 0.5, "notes": "0o17"}])
@given(st.lists(st.dictionaries(names, trees | like_numbers, max_size=3), max_size=3))
def test_results_on_the_hub(entries: Any) -> None:
    assert parse_yaml(_dumped(entries)) == (entries or [])


@read_back
@given(st.dictionaries(names, st.from_regex(r"[A-Za-z0-9_./:+-]{1,12}", fullmatch=True), max_size=5))
def test_words(arguments: dict[str, str]) -> None:
    assert read_words(write_words(arguments, "model_args"), "model_args") == arguments


@read_back
@given(st.dictionaries(texts, trees, max_size=4))
def test_json(content: dict[str, Any]) -> None:
    with folder() as at:
        files.write_json(at / "x.json", content)
        assert files.read_json(at / "x.json", "") == content


@read_back
@given(st.lists(st.tuples(names, whole, trees), max_size=5))
def test_answers(records: list[tuple[str, int, Any]]) -> None:
    with folder() as at:
        store = AnswerStore(at, 0)
        for task, doc_id, content in records:
            store.add({"task": task, "doc_id": doc_id, "content": content})
        read = [(each["task"], each["doc_id"], each["content"]) for each in AnswerStore(at, 1).read()]
        assert read == records


@read_back
@given(st.lists(st.floats(0, 1), min_size=3, max_size=3), st.sampled_from([".csv", ".parquet"]), texts.filter(bool))
def test_curves_and_stages(accuracy: list[float], suffix: str, task: str) -> None:
    samples = rows(lambda cut: accuracy[cut], layers=2, documents=7, tasks=("pope",)).assign(metric=task)
    curve = Curve(samples, 2, resamples=20)
    with folder() as at:
        again = Curve.read(curve.write(at / f"curve{suffix}"), resamples=20)
    assert again.digest() == curve.digest() and again.samples["metric"].tolist() == curve.samples["metric"].tolist()
    stages = find_plateau(curve)
    assert Stages.from_dict(json.loads(json.dumps(stages.to_dict()))) == stages


TABLE = Board(
    "table", "A table", "xlsx", Column("index", int), Column("prediction"), entry("submission"),
    order=("index", "prediction"),
)  # fmt: skip


@pytest.mark.parametrize("form", ["csv", "tsv", "json list", "jsonl", "json object"])
@read_back
@given(answers=st.lists(texts.map(lambda text: text.replace("\0", "")), max_size=4))
def test_files_of_boards(form: Any, answers: list[str]) -> None:
    board = replace(TABLE, form=form)
    given = [{"index": number, "prediction": answer} for number, answer in enumerate(answers)]
    with folder() as at:
        write_rows(board, given, at / "file")
        faults: list[str] = []
        back = [row.values for row in read_rows(board, at / "file", faults)]
    as_text = form == "json object"  # whose keys are text
    assert [(int(row["index"]), row["prediction"]) for row in back] == list(enumerate(answers)), as_text
    assert faults == [] and all(isinstance(row, dict) for row in back)


@read_back
@given(st.dictionaries(texts, trees, max_size=3), st.lists(texts, max_size=3))
def test_records_of_exports(merge: dict[str, Any], notes: list[str]) -> None:
    record = record_of(merge=merge, notes=tuple(notes))
    with folder() as at:
        record.write(at)
        assert read_export_record(at) == record


@read_back
@given(
    st.dictionaries(
        st.from_regex(r"[a-z]{1,5}(/[a-z]{1,5}){0,2}\.json", fullmatch=True), st.binary(max_size=50), min_size=1
    )
)
def test_archives(members: dict[str, bytes]) -> None:
    with folder() as at:
        write_archive(at / "b.zip", lambda writer: [writer.add(name, [content]) for name, content in members.items()])
        with open_archive(at / "b.zip") as archive:
            assert {name: archive.read(name, 1000) for name in archive.names} == members


@read_back
@given(st.lists(texts.filter(bool), min_size=1, max_size=5))
def test_tables(words: list[str]) -> None:
    table = pd.DataFrame({"word": words, "number": range(len(words))})
    with folder() as at:
        table_files.write_table(table, at / "table")
        assert table_files.read_parquet(at / "table.parquet", None, "")["word"].tolist() == words
