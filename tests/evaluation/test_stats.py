from __future__ import annotations

import pandas as pd
import pytest

from plam_eval.evaluation.stats import Paired, paired, proportion_interval


@pytest.mark.parametrize(
    ("gained", "lost", "p"),
    [(43, 33, 0.30), (30, 6, 7e-5), (0, 0, 1.0), (1, 0, 1.0), (6, 0, 0.03125)],  # the first two: PlaM's MMStar logs
)
def test_exact_mcnemar(gained: int, lost: int, p: float) -> None:
    assert Paired(gained, lost, 1500).p == pytest.approx(p, rel=0.05)


def test_difference_is_in_shares_of_all_documents() -> None:
    assert Paired(43, 33, 1500).difference == pytest.approx(10 / 1500)


def test_wilson_interval() -> None:
    # Newcombe (1998), Statistics in Medicine 17, table I: 81 of 263.
    assert proportion_interval(81, 263) == pytest.approx((0.2553, 0.3662), abs=1e-4)


def _samples(scores: list[float], prompt: str = "?") -> pd.DataFrame:
    return pd.DataFrame(
        {"task": "pope", "doc_id": range(len(scores)), "prompt": prompt, "score": scores},
    )


def test_paired_goes_by_document_not_by_row() -> None:
    first, second = _samples([1, 0, 0, 1]), _samples([1, 1, 0, 0])
    assert paired(first, second.sample(frac=1, random_state=0)) == Paired(gained=1, lost=1, documents=4)


def test_other_documents_or_prompts_are_refused() -> None:
    with pytest.raises(ValueError, match="1 documents are in one run only, the first document 2 of pope"):
        paired(_samples([1, 0, 1]), _samples([1, 0]))
    with pytest.raises(ValueError, match=r"2 prompts differ .* document 0 of pope"):
        paired(_samples([1, 0]), _samples([1, 0], prompt="!"))
