"""Tasks load faster through us, and are the same tasks."""

from __future__ import annotations

import os
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import datasets
import pytest
import yaml

from plam_eval.harness import checks, loading
from plam_eval.harness.evaluate import evaluate
from plam_eval.harness.lookup import task_manager
from plam_eval.harness.patches import install_patches
from tests.helpers.answering import Answering


@pytest.fixture(scope="module", autouse=True)
def _patched() -> None:
    install_patches()


def _stock(path: Path, mode: str, monkeypatch: pytest.MonkeyPatch) -> Any:
    from lmms_eval import utils

    with monkeypatch.context() as patch:
        patch.setattr(utils, "load_yaml_config", utils.load_yaml_config.__wrapped__)  # for what a file includes, too
        return utils.load_yaml_config(str(path), mode=mode)


def _plain(value: Any) -> Any:
    """Comparable: code by where it stands, what is left unread by what it says."""
    if isinstance(value, dict):
        return {key: _plain(part) for key, part in value.items()}
    if isinstance(value, list):
        return [_plain(part) for part in value]
    if callable(value):
        return value.__code__.co_filename, value.__qualname__
    return (value.tag, value.value) if isinstance(value, yaml.ScalarNode) else (type(value), value)


needs_libyaml = pytest.mark.skipif(not yaml.__with_libyaml__, reason="PyYAML was built without libyaml")


@needs_libyaml
def test_lmms_evals_own_files_say_the_same_through_libyaml(monkeypatch):
    import lmms_eval
    from lmms_eval import utils

    files = sorted(Path(lmms_eval.__file__).parent.joinpath("tasks").rglob("*.yaml"))
    assert len(files) > 1000
    for file in files[::25]:
        assert _plain(utils.load_yaml_config(str(file), mode="simple")) == _plain(_stock(file, "simple", monkeypatch))
    for file in files:
        if file.stem in ("gqa", "mmbench_en_dev_static", "mmmu_val", "pope"):
            here = utils.load_yaml_config(str(file), mode="full")
            assert _plain(here) == _plain(_stock(file, "full", monkeypatch))
            assert callable(here["doc_to_text"]) or here["task"] == "mmmu_val"


@needs_libyaml
def test_libyaml_reads_what_is_installed_and_nothing_else(tmp_path, monkeypatch):
    import lmms_eval
    from lmms_eval import utils

    read: list[str] = []

    def full_load(file: Any) -> Any:
        read.append(file.name)
        return yaml.load(file, yaml.FullLoader)

    monkeypatch.setattr(yaml, "full_load", full_load)
    pope = Path(lmms_eval.__file__).parent / "tasks" / "pope" / "pope.yaml"
    (tmp_path / "own.py").write_text("def text(doc):\n    return 'mine'\n")
    own = tmp_path / "own.yaml"
    own.write_text(f"include: {pope}\ntask: own\ndoc_to_text: !function own.text\n")
    found = utils.load_yaml_config(str(own), mode="full")
    assert read == [str(own)]
    assert found["doc_to_text"]({}) == "mine"
    assert found["doc_to_visual"].__module__ == "utils"  # of pope's own folder, through the file that is included
    own.write_text("task: own\n\tx: 1\n")
    with pytest.raises(yaml.YAMLError) as ours:
        utils.load_yaml_config(str(own))
    with pytest.raises(yaml.YAMLError) as stock:
        _stock(own, "full", monkeypatch)
    assert str(ours.value) == str(stock.value)


def test_what_libyaml_does_not_read_is_refused_in_pyyamls_words(tmp_path, monkeypatch):
    from lmms_eval import utils

    monkeypatch.setattr(loading, "_folders", lambda package: [str(tmp_path)])
    monkeypatch.setattr(utils, "load_yaml_config", utils.load_yaml_config.__wrapped__)
    loading.patch_yaml_loading()
    for content in ("task: own\n\tx: 1\n", "a: [1\n", "a: !unknown 1\n", ""):
        (tmp_path / "own.yaml").write_text(content)
        with pytest.raises(Exception) as ours:
            utils.load_yaml_config(str(tmp_path / "own.yaml"))
        with pytest.raises(Exception) as stock:
            _stock(tmp_path / "own.yaml", "full", monkeypatch)
        assert (type(ours.value), str(ours.value)) == (type(stock.value), str(stock.value))


@pytest.fixture
def loads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Hub names in the order in which `datasets.load_dataset` is called for them."""
    called: list[str] = []
    stock = datasets.load_dataset

    def load_dataset(path: str, *args: Any, **kwargs: Any) -> Any:
        called.append(path)
        return stock(path, *args, **kwargs)

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    monkeypatch.setattr(loading, "_KEPT", type(loading._KEPT)())
    return called


def _task(name: str) -> Any:
    from lmms_eval.evaluator_utils import get_task_list
    from lmms_eval.tasks import get_task_dict

    (output,) = get_task_list(get_task_dict([name], task_manager(), "chat"))
    return output.task


def test_a_dataset_is_built_once_and_again_when_it_has_changed(in_suite, loads):
    first, second = _task("pope"), _task("pope")
    assert loads == ["lmms-lab-encoder/POPE"]
    assert first is not second and first.dataset is not second.dataset
    assert type(first.dataset) is type(second.dataset)
    assert first.dataset["test"].to_dict() == second.dataset["test"].to_dict()
    assert first.eval_docs_no_media[0] == second.eval_docs_no_media[0]
    assert first.config.dataset_kwargs == second.config.dataset_kwargs
    second.dataset["test"].set_transform(lambda rows: {"answer": ["changed"] * len(rows["answer"])})
    second.dataset.clear()
    assert _task("pope").dataset["test"].format == first.dataset["test"].format
    assert len(_task("pope").dataset) == len(first.dataset)
    file = next(Path("lmms-lab-encoder/POPE").rglob("*.parquet"))
    before = file.stat()
    try:
        os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns + 1_000_000_000))
        _task("pope")
    finally:
        os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert len(loads) == 2


def test_a_check_and_what_is_run_after_it_load_a_dataset_once(in_suite, loads):
    checks._checked.cache_clear()
    checks.check_tasks("mmstar,mme", limit=2)
    for _ in range(2):
        evaluate(Answering(lambda task, index: "A"), "mmstar,mme", limit=2)
    assert sorted(loads) == ["Lin-Chen/MMStar", "lmms-lab-encoder/MME"]


def test_one_evaluation_leaves_nothing_behind_for_the_next(in_suite, loads):
    """Limits, offsets and generation settings of another evaluation in between change no sample, prompt or setting."""

    def run(**settings: Any) -> tuple[Any, Any, Any]:
        model = Answering(lambda task, index: "A" if index % 2 else "Yes")
        found = evaluate(model, "gqa,mme,mmmu_val,mmbench_en_dev_static", **settings)
        assert found is not None
        configs = re.sub(r"0x[0-9a-f]+", "", repr(found.results["configs"]))  # of functions, which are made anew
        return found.samples, found.results["results"], configs

    before = run(limit=4)
    run(limit=6, offset=2, gen_kwargs="max_new_tokens=3,temperature=1")
    again = run(limit=4)
    loading._KEPT.clear()
    fresh = run(limit=4)
    for left, right in ((before, again), (again, fresh)):
        assert left == right


class _Local:
    """As much of a task as says which dataset it asks for."""

    DATASET_NAME = None

    def __init__(self, folder: Path, process_docs: Any = None) -> None:
        self.DATASET_PATH = str(folder)
        splits = dict.fromkeys(("training_split", "validation_split", "test_split", "fewshot_split"))
        self.config = SimpleNamespace(process_docs=process_docs, **splits)


def test_datasets_are_told_apart_by_code_and_files(tmp_path):
    def key(process_docs: Any = None) -> Any:
        return loading._dataset_key(_Local(tmp_path / "data", process_docs), {})

    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "a.csv").write_text("1")
    first, second = (lambda docs: docs), (lambda docs: docs.shuffle(seed=1))  # of one name in one file
    assert key() == key() is not None
    assert key(first) == key(first) != key(second)
    before, stat = key(), (tmp_path / "data" / "a.csv").stat()
    (tmp_path / "b.csv").write_text("2")
    os.utime(tmp_path / "b.csv", ns=(stat.st_atime_ns, stat.st_mtime_ns))
    (tmp_path / "b.csv").rename(tmp_path / "data" / "a.csv")  # of one size, written at one time
    assert key() != before
    (tmp_path / "data" / "c").symlink_to(tmp_path / "nowhere")
    assert key() is None
    (tmp_path / "nowhere").mkdir()
    assert key() is None, "files behind a link to a folder are not looked at"
