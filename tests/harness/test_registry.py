"""Our wrappers as lmms-eval lists them."""

from __future__ import annotations

import pytest


def test_lmms_eval_lists_our_models(capsys: pytest.CaptureFixture[str]) -> None:
    import argparse

    from lmms_eval.cli.models_cmd import run_models

    run_models(argparse.Namespace(aliases=False))
    rows = dict(line.split()[:2] for line in capsys.readouterr().out.splitlines() if line.startswith("plam_"))
    assert rows["plam_llava"] == "chat+simple" and rows["plam_internvl"] == "chat" and rows["plam_qwen2_vl"] == "simple"
