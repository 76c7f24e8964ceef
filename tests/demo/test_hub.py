from __future__ import annotations

import ast
import json
import re
import shutil
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import datasets
import pytest
from PIL import Image

from plam_eval.demo import hub
from plam_eval.demo.hub import MANIFEST, SuiteError, main, read_manifest, text_prior, write_hub
from plam_eval.demo.scenes import COLORS, POSITIONS, Scene, Thing, split_of
from plam_eval.errors import InputError

DOCUMENTS = 60

# What the real datasets look like: repository, config, split, and the type of every column.
MMBENCH = "index:int64 question hint answer A B C D category image:image source L2-category comment split"
EXPECTED = {
    "mmstar": (
        "Lin-Chen/MMStar",
        None,
        "val",
        "index:int64 question image:image answer category l2_category meta_info:struct",
    ),
    "mmbench_en": ("lmms-lab-encoder/MMBench", "en", "dev", MMBENCH),
    "mmbench_cn": ("lmms-lab-encoder/MMBench", "cn", "dev", MMBENCH),
    "mme": ("lmms-lab-encoder/MME", None, "test", "question_id image:image question answer category"),
    "mmmu": (
        "lmms-lab-encoder/MMMU",
        None,
        "validation",
        "id question options explanation image_1:image image_2:image image_3:image image_4:image image_5:image "
        "image_6:image image_7:image img_type answer topic_difficulty question_type subfield",
    ),
    "gqa": (
        "lmms-lab-encoder/GQA",
        "testdev_balanced_instructions",
        "testdev",
        "id imageId question answer fullAnswer isBalanced:bool",
    ),
    "gqa_images": ("lmms-lab-encoder/GQA", "testdev_balanced_images", "testdev", "id image:image"),
    "pope": ("lmms-lab-encoder/POPE", None, "test", "id question_id question answer image_source image:image category"),
    "realworldqa": ("lmms-lab-encoder/RealWorldQA", None, "test", "image:image image_path question answer"),
    "seedbench_2_plus": (
        "doolayer/SEED-Bench-2-Plus",
        None,
        "test",
        "question_id question choice_A choice_B choice_C choice_D answer image:image question_image_type "
        "question_image_subtype data_id data_type level subpart data_source version",
    ),
}


@pytest.fixture(scope="module")
def suite(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_hub(tmp_path_factory.mktemp("suite"), documents_per_task=DOCUMENTS)


@pytest.fixture(scope="module")
def tables(suite: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, datasets.Dataset]]:
    """Every table, loaded the way the tasks load it: by its repository name, in the suite's folder."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(suite)
        patch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))
        yield {
            name: datasets.load_dataset(repo, config, split=split_name)
            for name, (repo, config, split_name, _) in EXPECTED.items()
        }


@pytest.fixture(scope="module")
def records(suite: Path) -> dict[str, list[dict[str, Any]]]:
    return {name: dataset["documents"] for name, dataset in read_manifest(suite)["datasets"].items()}


def column_type(feature: object) -> str:
    if isinstance(feature, datasets.Image):
        return "image"
    return feature.dtype if isinstance(feature, datasets.Value) else "struct"


@pytest.mark.parametrize("name", EXPECTED)
def test_columns_and_types_are_those_of_the_real_dataset(name: str, tables: dict[str, datasets.Dataset]) -> None:
    expected = dict((f"{column}:string").split(":")[:2] for column in EXPECTED[name][3].split())
    assert {column: column_type(feature) for column, feature in tables[name].features.items()} == expected
    assert len(tables[name]) == DOCUMENTS


def test_letters_are_uniform_and_yes_no_is_balanced(tables: dict[str, datasets.Dataset]) -> None:
    for name in ("mmstar", "mmbench_en", "mmbench_cn", "seedbench_2_plus"):
        assert Counter(tables[name]["answer"]) == dict.fromkeys("ABCD", DOCUMENTS // 4), name
    assert Counter(tables["mme"]["answer"]) == {"Yes": DOCUMENTS // 2, "No": DOCUMENTS // 2}
    by_category = Counter(zip(tables["pope"]["category"], tables["pope"]["answer"], strict=True))
    assert len(by_category) == 6 and set(by_category.values()) == {DOCUMENTS // 6}
    for name in ("mmmu", "realworldqa"):
        letters = Counter(answer for answer in tables[name]["answer"] if answer in "ABCD")
        assert len(letters) == 4 and max(letters.values()) - min(letters.values()) <= 1, name


def test_mme_asks_each_picture_a_yes_and_a_no(tables: dict[str, datasets.Dataset]) -> None:
    pairs: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for row in tables["mme"]:
        pairs.setdefault((row["question_id"], row["category"]), []).append(row)
    for first, second in pairs.values():
        assert {first["answer"], second["answer"]} == {"Yes", "No"}
        assert first["image"].tobytes() == second["image"].tobytes()
        assert first["question"] != second["question"]
    from lmms_eval.tasks.mme.utils import eval_type_dict

    assert {category for _, category in pairs} == {name for names in eval_type_dict.values() for name in names}


def test_mmmu_has_every_subject_and_both_question_types(tables: dict[str, datasets.Dataset]) -> None:
    from lmms_eval.tasks.mmmu.utils import DOMAIN_CAT2SUB_CAT, extract_subset_name

    rows = list(tables["mmmu"])
    assert {extract_subset_name(row["id"]) for row in rows} == {
        s for names in DOMAIN_CAT2SUB_CAT.values() for s in names
    }
    assert len({row["id"] for row in rows}) == len(rows)
    assert {row["question_type"] for row in rows} == {"multiple-choice", "open"}
    for row in rows:
        options = ast.literal_eval(row["options"])
        assert len(set(options)) == (4 if row["question_type"] == "multiple-choice" else 0)
        assert row["image_1"] is not None and all(row[f"image_{i}"] is None for i in range(2, 8))


def test_categories_are_the_real_ones(tables: dict[str, datasets.Dataset]) -> None:
    from lmms_eval.tasks.mmstar.utils import eval_type_dict

    found = set(zip(tables["mmstar"]["category"], tables["mmstar"]["l2_category"], strict=True))
    assert found == {(category, l2) for category, names in eval_type_dict.items() for l2 in names}
    assert set(tables["seedbench_2_plus"]["question_image_type"]) == {"chart", "map", "web"}
    assert set(tables["pope"]["category"]) == {"random", "popular", "adversarial"}
    assert len(set(tables["mmbench_en"]["L2-category"])) == 6


def test_chinese_rows_are_the_english_ones_in_chinese(tables: dict[str, datasets.Dataset]) -> None:
    for english, chinese in zip(tables["mmbench_en"], tables["mmbench_cn"], strict=True):
        for column in ("index", "answer", "category", "hint"):
            assert english[column] == chinese[column]
        assert english["image"].tobytes() == chinese["image"].tobytes()
        assert re.search("[\u4e00-\u9fff]", chinese["question"]) and not re.search("[A-Za-z]", chinese["question"])
        assert english["question"].isascii()
        for letter in "ABCD":
            assert chinese[letter].isdigit() == english[letter].isdigit()
            assert chinese[letter].isdigit() or not chinese[letter].isascii()


def image_of(name: str, index: int, tables: dict[str, datasets.Dataset]) -> Image.Image:
    if name != "gqa":
        return tables[name][index]["image_1" if name == "mmmu" else "image"]
    images = dict(zip(tables["gqa_images"]["id"], range(DOCUMENTS), strict=True))
    return tables["gqa_images"][images[tables["gqa"][index]["imageId"]]]["image"]


def test_pictures_show_what_the_manifest_says(
    tables: dict[str, datasets.Dataset], records: dict[str, list[dict[str, Any]]]
) -> None:
    """The colour in the middle of every box, told from the other colours by distance, over all rows of all tasks."""
    looked_at = 0
    for name, documents in records.items():
        for index, document in enumerate(documents):
            pixels: Any = image_of(name, index, tables).convert("RGB").load()
            for cell, box in zip(document["cells"], document["boxes"], strict=True):
                assert (cell is None) == (box is None)
                if cell is None or cell.split()[1] not in ("circle", "square"):
                    continue
                left, top, right, bottom = box
                seen = pixels[(left + right) // 2, (top + bottom) // 2]
                distance = {c: sum(abs(a - b) for a, b in zip(seen, rgb, strict=True)) for c, rgb in COLORS.items()}
                assert min(distance, key=lambda color: distance[color]) == cell.split()[0], (name, index)
                looked_at += 1
    assert looked_at > 500


def test_answers_are_true(tables: dict[str, datasets.Dataset], records: dict[str, list[dict[str, Any]]]) -> None:
    """Three kinds of question, answered from the cells without the code that made them."""
    checked: Counter[str] = Counter()
    for name, documents in records.items():
        for index, document in enumerate(documents):
            said = document["answer"]
            if document["choices"]:
                assert said in "ABCD"
                said = document["choices"]["ABCD".index(said)]
            things = [cell for cell in document["cells"] if cell]
            if at := re.fullmatch(r"What color is the object at the (.*)\?", document["question"]):
                truth = document["cells"][POSITIONS.index(at[1])].split()[0]
            elif document["question"] == "How many objects are there?":
                truth = str(len(things))
            elif exists := re.fullmatch(r"Is there a (\w+ \w+)\?", document["question"]):
                if exists[1].endswith(" object"):
                    continue
                truth = "yes" if exists[1] in things else "no"
            else:
                continue
            assert said.lower() == truth, (name, index, document)
            assert tables[name][index]["answer"] == document["answer"]
            checked[document["kind"]] += 1
    assert set(checked) == {"color_at", "count_all", "exists_thing"}


def test_every_scene_is_an_evaluation_scene_asked_about_once(records: dict[str, list[dict[str, Any]]]) -> None:
    uses: Counter[tuple[str | None, ...]] = Counter()
    for name, documents in records.items():
        if name == "mmbench_cn":  # the pictures of the English rows, checked above
            continue
        uses.update({tuple(document["cells"]): 1 for document in documents})
        for document in documents:
            cells = [Thing(*cell.split()) if cell else None for cell in document["cells"]]
            assert split_of(Scene(tuple(cells))) == "eval"  # type: ignore[arg-type]
    assert set(uses.values()) == {1}
    assert len(uses) == 6 * DOCUMENTS + DOCUMENTS // 2 + DOCUMENTS  # seven tasks, and MME with two rows per scene


def test_without_the_images_little_can_be_answered(suite: Path) -> None:
    prior = text_prior(suite)
    assert set(prior) == set(hub.TASKS)
    assert all(0.2 < prior[task] < 0.6 for task in prior), prior
    assert prior["pope"] == pytest.approx(0.5, abs=0.15)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_same_arguments_give_the_same_bytes_and_another_seed_does_not(suite: Path, tmp_path: Path) -> None:
    again = contents(write_hub(tmp_path / "again", documents_per_task=DOCUMENTS))
    assert again == contents(suite)
    assert main([str(tmp_path / "other"), "--documents-per-task", str(DOCUMENTS), "--seed", "1"]) == 0
    other = contents(tmp_path / "other")
    # No file name in common: `datasets` caches by file name, see the next test.
    assert not {path for path in other if path.endswith(".parquet")} & again.keys()
    assert {path.name for path in tmp_path.iterdir()} == {"again", "other"}  # no building site is left behind


def test_two_suites_do_not_share_cached_data(suite: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.chdir(suite)
    first = datasets.load_dataset("lmms-lab-encoder/MME", split="test")
    monkeypatch.chdir(write_hub(tmp_path / "other", documents_per_task=DOCUMENTS, seed=1))
    second = datasets.load_dataset("lmms-lab-encoder/MME", split="test")
    assert list(first["question"]) != list(second["question"])
    assert second[0]["question"].startswith(read_manifest("")["datasets"]["mme"]["documents"][0]["question"])


def test_a_current_suite_is_left_alone_and_a_damaged_one_is_mended(suite: Path, tmp_path: Path) -> None:
    folder = tmp_path / "suite"
    shutil.copytree(suite, folder)
    table = next((folder / "lmms-lab-encoder/MME/default").glob("test-*.parquet"))
    result = folder / "out" / "results.json"
    result.parent.mkdir()
    result.write_text("{}")
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    write_hub(folder, documents_per_task=DOCUMENTS)
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before

    good = table.read_bytes()
    table.write_bytes(good[:-100])
    write_hub(folder, documents_per_task=DOCUMENTS)
    assert table.read_bytes() == good
    assert result.read_text() == "{}"


def test_an_interrupted_exchange_is_not_readable_and_is_finished_by_the_next_call(suite: Path, tmp_path: Path) -> None:
    folder = tmp_path / "suite"
    shutil.copytree(suite, folder)
    manifest = json.loads((folder / MANIFEST).read_text())
    (folder / MANIFEST).write_text(json.dumps({**manifest, "complete": False}))
    shutil.rmtree(folder / "Lin-Chen")
    with pytest.raises(SuiteError, match="incomplete"):
        read_manifest(folder)
    write_hub(folder, documents_per_task=DOCUMENTS)
    assert contents(folder) == contents(suite)


def test_a_foreign_folder_is_refused_and_not_touched(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "mine"
    folder.mkdir()
    (folder / "thesis.tex").write_text("...")
    with pytest.raises(SuiteError, match=r"not empty and holds no plam_offline_suite\.json"):
        write_hub(folder)
    assert main([str(folder)]) == 1
    assert "error: " in capsys.readouterr().err
    assert contents(tmp_path) == {"mine/thesis.tex": b"..."}


@pytest.mark.parametrize("documents", [10, 61])
def test_too_few_or_an_odd_number_of_documents_is_refused(documents: int, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=f"documents_per_task is {documents}"):
        write_hub(tmp_path / "suite", documents_per_task=documents)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("word", ["reasoning", "perception"])
def test_gqa_can_ask_for_reasoning_or_for_what_is_where_alone(word: str, tmp_path: Path) -> None:
    main([str(tmp_path / "suite"), "--documents-per-task", "30", "--gqa", word])
    tasks = read_manifest(tmp_path / "suite")["tasks"]
    assert {document["kind"] for document in tasks["gqa"]["documents"]} <= set(hub.GQA_KINDS[word])
    others = {document["kind"] for task in ("mmstar", "mme") for document in tasks[task]["documents"]}
    assert others - set(hub.GQA_KINDS[word])
    assert hub._is_current(tmp_path / "suite", hub._identity(30, 0, word, "own"))
    assert not hub._is_current(tmp_path / "suite", hub._identity(30, 0, "all", "own"))


def test_another_word_for_the_questions_of_gqa_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="expected one of all, reasoning, perception"):
        write_hub(tmp_path / "suite", gqa="sums")
    assert not (tmp_path / "suite").exists()


def test_swapped_every_question_has_the_image_of_another_scene(suite: Path, tmp_path: Path) -> None:
    import pandas as pd

    words = ["--documents-per-task", str(DOCUMENTS), "--images", "swapped"]
    assert main([str(tmp_path / "swapped"), *words]) == 0
    both = {}
    for folder in (suite, tmp_path / "swapped"):
        read = {}
        for name, table in hub.TABLES.items():
            (file,) = (folder / table.repo / table.config).glob(f"{table.split}-*.parquet")
            read[name] = pd.read_parquet(file)
        both[folder.name == "swapped"] = read
    for name, own in both[False].items():
        swapped = both[True][name]
        kinds = hub.TABLES[name].columns
        images = [column for column, kind in kinds.items() if kind == "image" and own[column][0] is not None]
        assert own.drop(columns=images).equals(swapped.drop(columns=images)), name
        if name == "gqa":  # its images are in a table of their own
            continue
        before, after = ([row["bytes"] for row in table[images[0]]] for table in (own, swapped))
        assert sorted(before) == sorted(after) and not any(map(bytes.__eq__, before, after)), name
        # Questions about one image are asked of one image again: the pairs of MME.
        assert len(set(zip(before, after, strict=True))) == len(set(before)), name
    (english, chinese) = (both[True][f"mmbench_{language}"]["image"] for language in ("en", "cn"))
    assert [row["bytes"] for row in english] == [row["bytes"] for row in chinese]
    asked, still = (read_manifest(folder)["tasks"] for folder in (suite, tmp_path / "swapped"))
    assert asked == still
    assert list(suite.rglob(hub.BOXES_FILE)) and not list((tmp_path / "swapped").rglob(hub.BOXES_FILE))
    with pytest.raises(InputError, match="images is 'others': expected one of own, swapped"):
        write_hub(tmp_path / "suite", images="others")


def test_a_missing_or_broken_manifest_is_an_error_that_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(SuiteError, match=r"python -m plam_eval\.demo\.hub"):
        read_manifest(tmp_path)
    (tmp_path / MANIFEST).write_text('{"version": 1,')
    with pytest.raises(SuiteError, match="not JSON"):
        read_manifest(tmp_path)
