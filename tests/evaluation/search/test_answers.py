"""Answers by setting, rungs of documents, and when a setting is hopeless."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from plam_eval.errors import DamagedFileError, OutsideError
from plam_eval.evaluation.search.answers import SEARCH, Answers, Documents, is_hopeless, mean_gain, setting_of
from tests.helpers.searching import Fake, space

SPEC = space().spec({"start": 2, "length": 3, "model_weight": 0, "base_weight": 0})


def begun(folder: Path) -> Answers:
    """The answers of a folder that holds a search."""
    folder.mkdir(exist_ok=True)
    (folder / SEARCH).write_text("{}")
    return Answers(folder)


def documents(shares=(0.25, 0.5), seed=0, count=80) -> Documents:
    table = Fake(documents=count).documents()
    return Documents.of(table.assign(cluster=table["group"]), {"mmstar": 1, "pope": -1}, shares, seed)


def rows(scores: dict[tuple[str, int], float]) -> pd.DataFrame:
    return pd.DataFrame([{"task": t, "doc_id": d, "answer": "x", "score": s} for (t, d), s in scores.items()])


def test_rungs_are_random_and_keep_images_together() -> None:
    made = documents()
    assert made.rungs == 3 and made.table.groupby(["task", "cluster"])["rung"].nunique().max() == 1
    counts = made.table.groupby(["task", "rung"]).size()
    assert counts.tolist() == [20, 20, 40] * 2
    first = made.table[(made.table["rung"] == 0) & (made.table["task"] == "pope")]["doc_id"].tolist()
    assert max(first) > 40, "not the first documents"
    assert not made.table.equals(documents(seed=1).table) and made.table.equals(documents().table)


def test_what_is_missing() -> None:
    made = documents()
    first = made.missing(None, 0)
    assert len(first) == 40 and len(made.missing(None)) == 160
    answered = rows(dict.fromkeys(first, 1.0))
    assert made.missing(answered, 0) == [] and len(made.missing(answered, 1)) == 40


def test_gains_are_over_plain_and_know_where_lower_is_better() -> None:
    made = documents()
    plain = rows({("mmstar", 0): 0.0, ("mmstar", 1): 1.0, ("pope", 0): 3.0, ("pope", 2): 1.0})
    own = rows({("mmstar", 0): 1.0, ("mmstar", 1): 1.0, ("pope", 0): 1.0, ("pope", 2): float("nan")})
    gains = made.gains(plain, own)
    assert gains.set_index(["task", "doc_id"])["gain"].to_dict() == {
        ("mmstar", 0): 1.0,
        ("mmstar", 1): 0.0,
        ("pope", 0): 2.0,
    }
    assert mean_gain(gains) == pytest.approx((0.5 + 2) / 2) and np.isnan(mean_gain(gains.iloc[:0]))


def test_answers_are_kept_and_added_to(tmp_path) -> None:
    answers = begun(tmp_path)
    assert answers.of(setting_of(SPEC)) is None and answers.merges() == []
    answers.add(None, -1, rows({("pope", 0): 1.0}))
    answers.add(SPEC, 3, rows({("pope", 0): 1.0, ("pope", 1): float("nan")}))
    answers.add(SPEC, 9, rows({("pope", 1): float("nan"), ("pope", 2): 0.0}))
    (known,) = Answers(tmp_path).merges()
    assert known.spec.digest() == SPEC.digest() and known.number == 3, "of the first who gave it"
    assert known.rows["doc_id"].tolist() == [0, 1, 2] and known.rows["score"].isna().tolist() == [False, True, False]
    assert not [*tmp_path.glob("answers/.*.json")]


@pytest.mark.parametrize(
    "change",
    [
        {"spec": {"base_model": "other/base"}},
        {"spec": None},
        {"spec": "demo"},
        {"number": "1"},
        {"answers": [{"task": "pope"}]},
        {"answers": [{"task": "pope", "doc_id": "1", "answer": "x", "score": 1}]},
        {"answers": [{"task": "pope", "doc_id": 1, "answer": "x", "score": "1"}]},
        {"answers": [{"task": "pope", "doc_id": 1, "answer": "x", "score": float("inf")}]},
        {"answers": [{"task": "pope", "doc_id": 1, "answer": "x", "score": -(10**400)}]},
        {"answers": [{"task": "pope", "doc_id": 1, "answer": "x", "score": 1e308}]},
        {"answers": [{"task": "pope", "doc_id": 1, "answer": "x", "score": score} for score in (0, 1)]},
        {"answers": None},
        {"setting": "plain"},
    ],
)
def test_a_damaged_file_is_none(tmp_path, change) -> None:
    begun(tmp_path).add(SPEC, 0, rows({("pope", 0): 1.0}))
    (file,) = (tmp_path / "answers").glob("*.json")
    file.write_text(json.dumps(json.loads(file.read_text()) | change))
    with pytest.raises(DamagedFileError):
        Answers(tmp_path).merges()


def test_a_link_that_leads_out_is_not_followed(tmp_path) -> None:
    begun(tmp_path / "one").add(SPEC, 0, rows({("pope", 0): 1.0}))
    (file,) = (tmp_path / "one" / "answers").glob("*.json")
    (tmp_path / "two" / "answers").mkdir(parents=True)
    (tmp_path / "two" / "answers" / file.name).symlink_to(file)
    with pytest.raises(OutsideError):
        Answers(tmp_path / "two").merges()


def gains(values: list[float]) -> pd.DataFrame:
    return pd.DataFrame(
        {
            "task": "pope",
            "doc_id": range(len(values)),
            "cluster": [f"c{n // 2}" for n in range(len(values))],
            "gain": values,
        }
    )


def test_a_setting_is_hopeless_where_it_is_surely_worse_than_the_best() -> None:
    best, worse = gains([1.0] * 40), gains([1.0] * 10 + [0.0] * 30)
    assert is_hopeless(worse, best, 0.05)
    assert not is_hopeless(worse, best, 0.0), "none is given up"
    assert not is_hopeless(best, best, 0.05) and not is_hopeless(best, worse, 0.05)
    assert not is_hopeless(gains([1.0] * 9 + [0.0]), gains([1.0] * 10), 0.05), "one document says little"
    assert not is_hopeless(worse.iloc[:0], best, 0.05)


def test_documents_of_one_image_count_once() -> None:
    alike = gains([0.0] * 2 + [1.0] * 38)
    many = gains([0.0] * 12 + [1.0] * 28)
    assert is_hopeless(many, gains([1.0] * 40), 0.1) and not is_hopeless(alike, gains([1.0] * 40), 0.1)
    one_image = many.assign(cluster="c0")
    assert not is_hopeless(one_image, gains([1.0] * 40).assign(cluster="c0"), 0.1)


def test_the_best_is_rarely_given_up() -> None:
    """Sixty settings as good as the best so far, by luck: at most a tenth of them are given up at p 0.05."""
    generator = np.random.default_rng(0)
    best = gains(list(generator.integers(0, 2, 60).astype(float)))
    given_up = [is_hopeless(gains(list(generator.integers(0, 2, 60).astype(float))), best, 0.05) for _ in range(60)]
    assert sum(given_up) <= 6
