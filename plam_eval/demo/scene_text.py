"""The embedded world's task of text alone: scenes told in words, and questions about them.

`write_scene_text(folder)` writes the dataset of `tasks/plam_scene_text.yaml` into a folder, which may be that of the
offline suite (`hub`), where the task finds it as the suite's tasks find theirs:

    python -m plam_eval.demo.scene_text suite && cd suite && HF_HUB_OFFLINE=1 plam premise --tasks plam_scene_text ...

The base LLM of the embedded pair has learnt from such texts, and its MLLM from images alone; so what the task measures
is what tuning on images has left of it. Scenes are of the "eval" split: none was seen in training, in words or drawn.
"""

from __future__ import annotations

import argparse
import hashlib
import random
import shutil
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from plam_eval.demo.questions import FORMS, KINDS, REASONING_KINDS, ask_any, describe_scene
from plam_eval.demo.scenes import scene_of
from plam_eval.errors import InputError
from plam_eval.terminal import Terminal

REPO = "plam-eval/SceneText"
TASK = "plam_scene_text"
_QUESTIONS = 4  # about each scene
_FORM = "gqa"  # which all models of the demo have learnt


def rows(scenes: int, seed: int = 0) -> Iterator[dict[str, Any]]:
    """The documents: each scene told once, and four different questions about it.

    Args:
        scenes: how many; no two are the same.
        seed: of scenes, words and questions.
    """
    rng, seen = random.Random(f"scene text {seed}"), set[str]()
    while len(seen) < scenes:
        scene = scene_of("eval", rng)
        if scene.key in seen:
            continue
        told, asked = describe_scene(scene, rng), dict[str, Any]()
        while len(asked) < _QUESTIONS:
            question = ask_any(scene, tuple(KINDS), rng)
            asked.setdefault(question.text, question)
        for question in asked.values():
            text, answer = FORMS[_FORM](question)
            yield {
                "id": f"{len(seen)}-{hashlib.sha256(question.text.encode()).hexdigest()[:8]}",
                "scene_id": str(len(seen)),
                "scene": told,
                "question": text,
                "answer": answer,
                "kind": question.kind,
                "reasoning": question.kind in REASONING_KINDS,
            }
        seen.add(scene.key)


def write_scene_text(folder: str | Path, *, scenes: int = 100, seed: int = 0) -> Path:
    """Write the dataset below a folder; one that is there already is replaced.

    Args:
        folder: the working directory of an evaluation, such as the offline suite's.
        scenes: how many; there are four questions about each.
        seed: of scenes, words and questions.

    Returns:
        The dataset's folder.

    Raises:
        InputError: no scene is asked for.
    """
    import datasets

    if scenes < 1:
        raise InputError(f"scenes is {scenes}; expected at least 1")
    target = Path(folder) / REPO
    building = target.with_name(f".{target.name}-{uuid.uuid4().hex[:8]}")
    building.mkdir(parents=True)
    try:
        table = datasets.Dataset.from_list(list(rows(scenes, seed)))
        file = building / "partial"
        table.to_parquet(file)
        # `datasets` caches a local dataset by the names of its files.
        name = f"test-{hashlib.sha256(file.read_bytes()).hexdigest()[:16]}.parquet"
        file.rename(file.with_name(name))
        header = f"configs:\n- config_name: default\n  data_files:\n  - split: test\n    path: {name}\n"
        card = (
            f"---\n{header}---\n\nScenes of plam-eval's demo in words, and questions about them, with true answers.\n"
        )
        (building / "README.md").write_text(card, encoding="utf-8")
        if target.is_dir():
            shutil.rmtree(target)
        building.rename(target)
    finally:
        shutil.rmtree(building, ignore_errors=True)
    return target


def main() -> None:
    """`python -m plam_eval.demo.scene_text FOLDER`."""
    parser = argparse.ArgumentParser(description="Write the embedded world's task of text alone.")
    parser.add_argument("folder", help="the working directory of an evaluation, such as the offline suite's")
    parser.add_argument("--scenes", type=int, default=100, help="four questions about each")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    folder = write_scene_text(given.folder, scenes=given.scenes, seed=given.seed)
    Terminal().say(f"{folder}: {given.scenes * _QUESTIONS} documents of the task {TASK}")


if __name__ == "__main__":
    main()
