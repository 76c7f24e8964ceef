"""How often parsers misread answers: lmms-eval's shared extractor and ours, on the cases of tests/harness.

    python benchmarks/answer_parser.py

The cases were written for our parser, so that it reads all of them is no measurement of it; how lmms-eval's reads them
is one of what its scores depend on. Only questions of letters are counted, with the letters of their choices.
"""

from __future__ import annotations

import sys
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from lmms_eval.tasks._task_utils.mcq_extract import extract_mcq_answer

from plam_eval.harness.answer_parser import read_answer
from tests.helpers.answer_cases import CASES, CHOICES, asked_of


def main() -> None:
    """Print the share of misread cases, by kind: a letter where there is none, none where there is one, another."""
    cases = [case for case in CASES if case.asks in CHOICES]
    wrong = {"lmms-eval": Counter[str](), "ours": Counter[str]()}
    kinds, phantom = Counter(case.of for case in cases), 0
    for case in cases:
        stock = extract_mcq_answer(case.answer, choices=list(CHOICES[case.asks])) or None
        phantom += stock is not None and case.reads is None
        wrong["lmms-eval"][case.of] += stock != case.reads
        wrong["ours"][case.of] += read_answer(case.answer, asked_of(case.asks)).value != case.reads
    print(f"{'kind':16}{'cases':>7}{'lmms-eval wrong':>17}{'ours wrong':>12}")
    for kind, count in kinds.items():
        print(f"{kind:16}{count:7}{wrong['lmms-eval'][kind]:17}{wrong['ours'][kind]:12}")
    for name, by_kind in wrong.items():
        print(f"{name}: {by_kind.total()} of {len(cases)} misread ({by_kind.total() / len(cases):.0%})")
    print(f"lmms-eval reads a letter in {phantom} of {sum(case.reads is None for case in cases)} answers without one")


if __name__ == "__main__":
    main()
