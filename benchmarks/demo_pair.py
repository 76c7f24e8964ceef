"""What the embedded pair can do, on the offline suite, scored by the stock tasks: `python benchmarks/demo_pair.py`.

Five ways to answer the same documents:

- `images`      the MLLM sees the picture
- `merged`      the same, merged as the packaged spec `demo` says
- `blank`       the picture is grey: near the text prior if the questions need the image
- `base, told`  the base LLM reads the scene in words
- `MLLM, told`  the MLLM's decoder reads the scene in words: what image tuning cost it

Prints a Markdown table and writes `demo_pair.json` with the same figures into the output folder.
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import random
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import pandas as pd
import torch
from lmms_eval.api.model import lmms
from PIL import Image
from tqdm import tqdm
from transformers import AutoModelForCausalLM, AutoTokenizer

from plam_eval.demo import hub, run
from plam_eval.demo.questions import describe_scene
from plam_eval.demo.scenes import Scene, Thing
from plam_eval.evaluation import records, stats
from plam_eval.harness.evaluate import evaluate as run_evaluation
from plam_eval.harness.wrapper import PlateauWrapper
from plam_eval.model_wrappers.llava import PlamLlavaChat


class Told(lmms):
    """Answers from the scene in words instead of the picture; prompts are otherwise those of the task.

    Args:
        model: the language model that answers.
        tokenizer: its own.
        manifest: of the offline suite, which knows each document's scene.
    """

    is_simple = False

    def __init__(self, model: Any, tokenizer: Any, manifest: dict[str, Any]) -> None:
        super().__init__()
        self.lm, self.tokenizer, self.manifest = model, tokenizer, manifest

    def generate_until(self, requests: list[Any]) -> list[str]:
        """The model's greedy answer to each of `requests`."""
        answers = []
        for request in tqdm(requests, desc="told in words"):
            _, doc_to_messages, _, index, task, split = request.args
            content = doc_to_messages(self.task_dict[task][split][index])[0]["content"]
            asked = next(part["text"] for part in content if part["type"] == "text")
            scene = _scene(self.manifest["tasks"][task]["documents"][index]["cells"])
            told = describe_scene(scene, random.Random(f"{task}:{index}"))
            inputs = self.tokenizer(f"USER: {told}\n{asked} ASSISTANT:", return_tensors="pt")
            with torch.no_grad():
                out = self.lm.generate(**inputs, max_new_tokens=8, do_sample=False)
            new = out[0, inputs["input_ids"].shape[1] :]
            answers.append(self.tokenizer.decode(new, skip_special_tokens=True).strip())
        return answers

    def loglikelihood(self, requests: list[Any]) -> list[tuple[float, bool]]:
        """Refuses `requests`: no task of the suite makes any."""
        raise TypeError("the offline suite asks for generated answers only")

    def generate_until_multi_round(self, requests: list[Any]) -> list[str]:
        """Refuses `requests`: no task of the suite makes any."""
        raise TypeError("the offline suite asks for one round only")


def _scene(cells: list[str | None]) -> Scene:
    things = [Thing(*cell.split()) if cell else None for cell in cells]
    return Scene(tuple(things))  # type: ignore[arg-type]


class Blank:
    """A wrapper's own answers, where it is shown a grey picture of the same size in place of every picture.

    Args:
        wrapper: what answers.
    """

    def __init__(self, wrapper: PlateauWrapper) -> None:
        self.wrapper = wrapper

    def answer(self, requests: list[Any]) -> list[Any]:
        """The answers to `requests` without their pictures."""
        return self.wrapper.own_answers([_without_pictures(request) for request in requests])

    def end_run(self, tasks: dict[str, Any]) -> None:
        """Nothing is left to do for `tasks`."""


def _without_pictures(request: Any) -> Any:
    context, doc_to_messages, *rest = request.args

    def grey_messages(document: Any) -> list[dict[str, Any]]:
        return [
            {**message, "content": [_grey(part) if part["type"] == "image" else part for part in message["content"]]}
            for message in doc_to_messages(document)
        ]

    blank = copy.copy(request)
    blank.arguments = (context, grey_messages, *rest)
    return blank


def _grey(part: dict[str, Any]) -> dict[str, Any]:
    return {**part, "url": Image.new("RGB", part["url"].size, (236, 236, 236))}


def overall(first: pd.DataFrame, second: pd.DataFrame) -> stats.Paired:
    """The mean over tasks of `second` against `first`."""
    return stats.compare(first, second)[-1]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--output", type=Path, default=Path("out/demo_pair"))
    parser.add_argument("--documents", type=int, default=120)
    arguments = parser.parse_args()
    output = arguments.output.absolute()
    suite = run.prepare(output / "suite", arguments.documents)
    os.chdir(suite)
    manifest, prior = hub.read_manifest(suite), hub.text_prior(suite)

    mllm = PlamLlavaChat(pretrained="pair/mllm", plateau="none", device_map="cpu")
    ways: dict[str, Any] = {}

    def evaluate(way: str, model: Any) -> None:
        finished = run_evaluation(model, "plam9", output=output / way.replace(", ", "-"))
        assert finished is not None and finished.results_file is not None
        ways[way] = records.read_run(finished.results_file).samples

    evaluate("images", mllm)
    with mllm.answering(Blank(mllm)):
        evaluate("blank", mllm)
    tokenizer = AutoTokenizer.from_pretrained("pair/base")
    evaluate("MLLM, told", Told(mllm.model, tokenizer, manifest))
    mllm.merge("demo")
    evaluate("merged", mllm)
    evaluate("merged, told", Told(mllm.model, tokenizer, manifest))
    evaluate("base, told", Told(AutoModelForCausalLM.from_pretrained("pair/base").eval(), tokenizer, manifest))

    tasks = [task for task in hub.TASKS if (ways["images"]["task"] == task).any()]
    scores = pd.DataFrame({way: samples.groupby("task")["score"].mean() for way, samples in ways.items()}).loc[tasks]
    scores.insert(0, "text prior", [prior[task] for task in tasks])
    images = ways["images"].groupby("task")["score"]
    intervals = [stats.proportion_interval(round(images.sum()[task]), int(images.count()[task])) for task in tasks]
    scores.insert(2, "95 %", [f"{low:.2f} to {high:.2f}" for low, high in intervals])
    scores.loc["mean"] = {c: scores[c].mean() if scores[c].dtype == float else "" for c in scores}
    print(scores.to_markdown(floatfmt=".3f"))
    pairs = {
        "merged against images": overall(ways["images"], ways["merged"]),
        "merged, told against MLLM, told": overall(ways["MLLM, told"], ways["merged, told"]),
        "MLLM, told against base, told": overall(ways["base, told"], ways["MLLM, told"]),
    }
    for name, pair in pairs.items():
        print(f"{name}: {pair.gained} gained, {pair.lost} lost of {pair.documents}, p = {pair.p:.2g}")
    record = {"scores": scores.to_dict(), "pairs": {name: vars(pair) for name, pair in pairs.items()}}
    (output / "demo_pair.json").write_text(json.dumps(record, indent=2) + "\n")


if __name__ == "__main__":
    main()
