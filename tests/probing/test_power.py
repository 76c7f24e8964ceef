"""What can be found is what is found."""

from __future__ import annotations

import math
import re

import numpy as np
import pytest

from plam_eval.probing.curve import Curve
from plam_eval.probing.plateau import find_plateau
from plam_eval.probing.power import chance, what_can_be_found
from tests.helpers.curves import rows
from tests.helpers.paths import DOCS


@pytest.mark.parametrize(("documents", "changed"), [(300, 0.02), (700, 0.03), (700, 0.05)])
def test_the_chance_is_that_of_the_rule(documents: int, changed: float) -> None:
    def half(cut: int) -> float:  # at one half, turned answers are gained and lost alike
        return {0: 0.1, 4: 0.3}.get(cut, 0.5)

    scans = 60
    made = [
        Curve(rows(half, documents=documents, cuts=[0, 4, 5, 6, 7, 8], noise=changed, seed=seed), 8, resamples=500)
        for seed in range(scans)
    ]
    right = np.mean([find_plateau(one).plateau == (5, 8) for one in made])
    expected = chance({"pope": documents}, changed, late=3)[0]
    assert right == pytest.approx(expected, abs=0.06 + 3 * math.sqrt(expected * (1 - expected) / scans))


def test_the_chance_grows_with_documents_and_falls_with_changes_and_cuts() -> None:
    grid = [[chance({"pope": n}, d)[0] for d in (0.01, 0.02, 0.05, 0.1)] for n in (340, 500, 1000, 2000, 4000)]
    assert (np.diff(grid, axis=0) > -1e-6).all() and (np.diff(grid, axis=1) < 1e-6).all()
    independent, alike = chance({"pope": 1000}, 0.05)
    assert independent < alike < chance({"pope": 1000}, 0.05, late=1)[0]
    assert chance({f"t{n}": 200 for n in range(5)}, 0.05)[0] == pytest.approx(independent, abs=0.02)
    assert chance({"pope": 148}, 0.0) == (0, 0) and chance({"pope": 149}, 0.0) == (1, 1)
    assert chance({"pope": 10**6}, 0.3) == (1, 1)


def test_340_documents_do_not_find_a_plateau_at_five_percent() -> None:
    assert chance({"pope": 340}, 0.05)[0] < 0.01
    assert chance({"pope": 440}, 0.05, late=1)[0] == pytest.approx(0.5, abs=0.01)
    assert chance({"pope": 1730}, 0.05)[0] == pytest.approx(0.8, abs=0.01)
    reported = [0.023, 0.54, 0.82]  # simulated by others, with four late cuts
    assert [chance({"pope": n}, 0.05, late=4)[0] for n in (340, 1000, 1500)] == pytest.approx(reported, abs=0.05)


def test_what_can_be_found_is_said_in_sentences() -> None:
    (few,) = what_can_be_found({"pope": 148, "mme": 500}, margin=0.01)
    assert few.startswith(
        "148 documents of pope cannot show a plateau even where no answer changes: at least 149 in each"
    )
    enough = what_can_be_found({"pope": 1000})
    limits = [float(limit) / 100 for limit in re.findall(r"([\d.]+) %", enough[0])]
    for which, limit in enumerate(limits):
        assert chance({"pope": 1000}, limit - 0.001)[which] >= 0.8 > chance({"pope": 1000}, limit + 0.001)[which]
    assert "1000 documents of 1 task " in enough[0] and "plateau of 8 cuts" in enough[0]
    for documents in (100, 1000):
        said = " ".join(what_can_be_found({"pope": documents}, closed_to="last"))
        assert "that the last token does without the image" in said and "plateau" not in said
    assert what_can_be_found({}) == []
    (sure,) = what_can_be_found({"pope": 300}, confidence=0.999)
    assert sure.endswith("342 in each task are needed (margin 0.02, 99.9% confidence).")
    assert "plateau of 1 cut in four" in what_can_be_found({"pope": 1000}, late=1)[0]


def test_the_guides_table_is_what_the_code_gives() -> None:
    guide = (DOCS / "plateau.md").read_text(encoding="utf-8")
    cells = re.findall(r"^\| (\d+) % \| (\w+) \| (.+) \|$", guide, flags=re.MULTILINE)
    header = re.search(r"^\| changed \| changes \| (.+) \|$", guide, flags=re.MULTILINE)
    assert header is not None and len(cells) == 8
    for changed, how, numbers in cells:
        for documents, shares in list(zip(header[1].split(" | "), numbers.split(" | "), strict=True))[1:]:  # not 150
            right = float(shares.split(" / ")[0]) / 100
            expected = chance({"one": int(documents.replace(",", ""))}, int(changed) / 100)[how == "alike"]
            assert right == pytest.approx(expected, abs=0.11 if expected < 0.3 else 0.07), (changed, how, documents)
