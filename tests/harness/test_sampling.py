"""Drawing documents: by category, in whole clusters, nested, and the same everywhere."""

from __future__ import annotations

from collections import Counter
from types import SimpleNamespace
from typing import Any

import pytest

from plam_eval import document_sets
from plam_eval.document_sets import (
    MOST_DOCUMENTS,
    read_by_task,
    read_clusters,
    read_clusters_by_task,
    read_documents,
    write_clusters,
)
from plam_eval.document_sets import write_documents as write
from plam_eval.harness.lookup import same_rows
from plam_eval.harness.sampling import (
    Drawn,
    Excluded,
    Population,
    Sample,
    beginning,
    category_of_document,
    may_share_clusters,
    may_share_images,
    shared_name,
    shared_names,
)
from plam_eval.harness.tasks import TASKS


def mmstar(*sizes: int) -> Population:
    """So many documents of each category, one category after the other, as MMStar is stored."""
    rows = [
        {"category": f"kind {number}", "l2_category": "all"} for number, size in enumerate(sizes) for _ in range(size)
    ]
    return Population.of("mmstar", rows)


def pope(images: int) -> Population:
    """As POPE is stored: by its kinds, each with the same images, six questions about each."""
    kinds = ("adversarial", "popular", "random")
    rows = [
        {"category": kind, "image_source": f"COCO_val2014_{image:012d}"}
        for kind in kinds
        for image in range(images)
        for _ in range(6)
    ]
    return Population.of("pope", rows)


def doc_ids(drawn: Drawn) -> set[int]:
    return {doc_id for cluster in drawn for doc_id in cluster}


def of_categories(population: Population, drawn: Drawn) -> Counter[str | None]:
    chosen = doc_ids(drawn)
    return Counter(each.category for each in population.clusters for one in each.doc_ids if one in chosen)


@pytest.mark.parametrize("size", [1, 7, 60, 100, 899])
def test_each_category_has_its_part(size: int) -> None:
    sizes = (400, 250, 150, 90, 10)
    population = mmstar(*sizes)
    drawn = population.drawn(size, seed=3)
    assert len(doc_ids(drawn)) == size
    for number, whole in enumerate(sizes):
        found = of_categories(population, drawn)[f"kind {number} / all"]
        assert abs(found - size * whole / sum(sizes)) < 1


def test_a_larger_sample_has_the_documents_of_a_smaller_one() -> None:
    for population in (mmstar(33, 8, 21, 5), pope(40)):
        before: set[int] = set()
        for size in range(1, population.size + 1):
            now = doc_ids(population.drawn(size, seed=1))
            assert before <= now
            before = now
        assert len(before) == population.size


def test_the_drawing_is_the_same_on_every_machine() -> None:
    # Written down once: of SHA-256 and of divisions of whole numbers alone.
    assert sorted(doc_ids(mmstar(50, 30, 20).drawn(10, seed=0))) == EXPECTED
    assert doc_ids(mmstar(50, 30, 20).drawn(10, seed=1)) != set(EXPECTED)


EXPECTED = [3, 15, 20, 30, 47, 62, 66, 67, 95, 97]


def test_documents_of_one_image_stay_together() -> None:
    population = pope(50)
    drawn = population.drawn(100, seed=0)
    assert [len(cluster) for cluster in drawn] == [18] * 6  # 108: nearer to 100 than 90
    assert len({doc_id % 300 // 6 for doc_id in doc_ids(drawn)}) == 6
    assert len(doc_ids(population.drawn(99, seed=0))) == 90  # of two as near the smaller one
    assert len(doc_ids(population.drawn(1, seed=0))) == 18  # never none


def test_pairs_stay_pairs() -> None:
    rows = [
        {"question_id": f"{number // 2}.png", "category": "OCR" if number < 40 else "scene"} for number in range(200)
    ]
    drawn = Population.of("mme", rows).drawn(31, seed=0)
    assert all(first + 1 == second and first % 2 == 0 for first, second in drawn)
    assert len(drawn) == 15


def test_questions_of_mmbench_keep_their_rotations() -> None:
    rows = [
        {"index": rotation * 1_000_000 + question, "category": "ocr"} for question in range(9) for rotation in range(4)
    ]
    drawn = Population.of("mmbench_en_dev_static", rows).drawn(8, seed=0)
    assert sorted(map(len, drawn)) == [4, 4]


def test_subjects_are_categories_and_no_clusters() -> None:
    rows = [{"id": f"validation_{subject}_{n}"} for subject in ("Art_Theory", "Music") for n in range(1, 31)]
    population = Population.of("mmmu_val", rows)
    assert of_categories(population, population.drawn(20, seed=0)) == {"Art_Theory": 10, "Music": 10}


def test_a_task_that_is_not_known_is_drawn_from_as_it_is() -> None:
    population = Population.of("nobodys", [{"category": "a"}] * 50)
    assert {each.category for each in population.clusters} == {None}
    assert len(doc_ids(population.drawn(7, seed=0))) == 7
    assert doc_ids(population.drawn(7, seed=0)) != set(range(7))


def test_a_copy_without_the_column_of_a_category_has_none() -> None:
    assert category_of_document("mmstar", {"question": "?"}) is None
    assert Population.of("mmstar", [{}] * 4).drawn(None, 0)


@pytest.mark.parametrize("task", sorted(task for task in TASKS if TASKS[task].category))
def test_categories_of_foreign_rows_are_none(task: str) -> None:
    assert category_of_document(task, {}) is None


def test_what_is_excluded_takes_its_cluster_with_it() -> None:
    rows: list[dict[str, Any]] = [{"imageId": f"n{number // 3}"} for number in range(30)]
    population = Population.of("gqa", rows, excluded=[4])
    assert (population.size, population.left_out) == (27, 3)
    assert not doc_ids(population.drawn(None, 0)) & {3, 4, 5}
    before, after = (doc_ids(Population.of("gqa", rows, excluded=out).drawn(9, 0)) for out in ((), (4,)))
    assert len(before & after) >= 6  # the others keep their order


def test_images_that_another_task_showed_are_left_out_by_name() -> None:
    name = shared_name("pope", "image COCO_val2014_000000000003")
    assert name == shared_name("refcoco_bbox_rec_val", "COCO_train2014_000000000003_16.jpg") == "COCO 3"
    assert shared_name("gqa", "image n1234") is None and shared_name("pope", None) is None
    rows = [{"image_source": f"COCO_val2014_{number:012d}", "category": "random"} for number in range(5)]
    assert doc_ids(Population.of("pope", rows, shared={name or ""}).drawn(None, 0)) == {0, 1, 2, 4}


def test_questions_and_images_that_several_tasks_have_are_known_by_name() -> None:
    english, chinese = "mmbench_en_dev_static", "mmbench_cn_dev"
    rows = [{"index": 241 + turn * 1_000_000, "category": "ocr"} for turn in range(2)] + [{"index": 252}]
    assert shared_names(english, rows, [1, 9]) == {"MMBench dev 241"} == {shared_name(chinese, "question 241")}
    assert doc_ids(Population.of(chinese, rows, shared={"MMBench dev 241"}).drawn(None, 0)) == {2}
    assert doc_ids(Population.of("plam_mmbench_cn_test_v11", rows, shared={"MMBench dev 241"}).drawn(None, 0)) == {
        0,
        1,
        2,
    }
    assert may_share_clusters(english, chinese) and may_share_clusters("textvqa_val_lite", "textvqa_val")
    assert may_share_clusters("pope", "refcoco_bbox_rec_val") and not may_share_clusters("pope", "gqa")
    assert not may_share_clusters("mmstar", "mme") and not may_share_clusters(english, "plam_mmbench_en_test_v11")
    assert shared_name(english, "document 3") is None and shared_name("gqa", "image 241") is None


def test_images_of_one_collection_without_names_are_said() -> None:
    assert may_share_images("gqa", "pope") and may_share_images("pope", "vqav2_val")
    assert not may_share_images("pope", "refcoco_bbox_rec_val")  # both name them
    assert not may_share_images("gqa", "gqa") and not may_share_images("gqa", "mmstar")
    assert not may_share_images("mmstar", "mmbench_en_dev")


def test_tasks_over_files_of_ones_own_have_rows_of_their_own() -> None:
    """They have one dataset by name, "json", whatever their files are."""
    one = {"dataset_path": "json", "test_split": "test", "dataset_kwargs": {"data_files": {"test": "one.jsonl"}}}
    other = {**one, "dataset_kwargs": {"data_files": {"test": "other.jsonl"}}}
    manager = SimpleNamespace(_get_config={"one": one}.__getitem__)
    assert same_rows(manager, "one", {**one, "task": "again"}) and not same_rows(manager, "one", other)
    hub = {"dataset_path": "lmms-lab/POPE", "test_split": "test", "dataset_kwargs": {"token": True}}
    assert same_rows(SimpleNamespace(_get_config={"hub": hub}.__getitem__), "hub", {**hub, "dataset_kwargs": None})


def test_only_takes_documents_out_of_their_clusters() -> None:
    population = pope(10).only(range(12))  # what a limit leaves
    assert sorted(map(len, population.drawn(None, 0))) == [6, 6]


def test_a_beginning_is_never_empty_and_may_be_all() -> None:
    assert beginning([(1, 2, 3)], 1) == [(1, 2, 3)]
    assert beginning([(1,), (2,)], 9) == [(1,), (2,)]
    assert beginning([], 3) == []


def test_a_sample_says_what_it_is() -> None:
    excluded = Excluded({"pope": (1, 2)}, frozenset({"COCO 3"}), ("scan",))
    assert Sample().is_whole and not Sample(3).is_whole and not Sample(None, 0, excluded).is_whole
    told = Sample(5, 1, excluded).to_dict()
    assert told["excluded"] == ["scan"] and told["excluded_digest"] == excluded.digest()
    assert excluded.digest() != Excluded({"pope": (1,)}, frozenset({"COCO 3"}), ("scan",)).digest()
    assert hash(Sample(5, 1, excluded)) == hash(Sample(5, 1, excluded))


# --- as they are written ----------------------------------------------------------------------------------------------


def test_documents_are_read_as_they_were_written() -> None:
    for numbers in ([], [0], [0, 1, 2], [3, 9, 20, 21, 22], [5, 0, 7]):
        assert read_documents(write(numbers)) == tuple(sorted(numbers))
    assert write([3, 20, 21, 22]) == "3+20:23"
    clusters = ((17, 18), (5,), (0, 1))
    assert write_clusters(clusters) == "17:19 5 0:2"
    assert read_clusters(write_clusters(clusters)) == clusters


@pytest.mark.parametrize(
    "text",
    [
        "3+3",
        "4+3",
        "5:5",
        "7:5",
        "a",
        "1,2",
        "-1",
        "1+",
        f"0:{MOST_DOCUMENTS + 1}",
        "0:99999999999",
        3,
        None,
        ["1"],
        "１",
    ],
)
def test_what_is_no_set_of_documents_is_refused(text: Any) -> None:
    with pytest.raises(ValueError, match=r"found .*, expected numbers of documents"):
        read_documents(text)


@pytest.mark.parametrize(
    ("read", "stored"),
    [
        (read_by_task, {f"task{n}": "0:100" for n in range(12)}),
        (read_clusters_by_task, {f"task{n}": "0:50 50:100" for n in range(12)}),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_a_few_words_do_not_stand_for_any_number_of_documents(read: Any, stored: Any, monkeypatch: Any) -> None:
    """Each is within the bound: together they are not."""
    read(stored)
    monkeypatch.setattr(document_sets, "MOST_DOCUMENTS", 1150)
    with pytest.raises(ValueError, match=r"found '.*', with which there are more than 1150 documents in all"):
        read(stored)


def test_clusters_and_tasks_that_are_none_are_refused() -> None:
    for text in ("1 2 1", "0:9 0:9 and so on, without end"):
        with pytest.raises(ValueError, match="each document once"):
            read_clusters(text)
    with pytest.raises(ValueError, match="expected clusters"):
        read_clusters(["1"])
    with pytest.raises(ValueError, match="pope: found"):
        read_by_task({"pope": "x"})
    with pytest.raises(ValueError, match="expected documents by task"):
        read_by_task(["pope"])
