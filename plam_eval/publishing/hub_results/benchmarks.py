"""Which benchmark of the hub a task of lmms-eval belongs to: the declared table, with what each row was read from.

The hub shows a result only under a dataset that is registered as a benchmark, and a task that its `eval.yaml` names.
Only rows that a public source vouches for stand here; any other task needs both named, or goes to the model card.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Benchmark:
    """A benchmark of the hub.

    Attributes:
        dataset: its repository.
        task_id: of the task in it.
        tasks: of lmms-eval's that ask its questions.
        source: where both ids were read.
        read_on: month of reading.
    """

    dataset: str
    task_id: str
    tasks: tuple[str, ...]
    source: str
    read_on: str

    @property
    def file(self) -> str:
        """Where results of it stand in a model's repository."""
        name = self.dataset.rpartition("/")[2] if self.task_id == "default" else self.task_id
        plain = "".join(letter if letter.isalnum() or letter in "-_" else "_" for letter in name)
        return f".eval_results/{plain.lower()}.yaml"


BENCHMARKS = (
    Benchmark(
        "Idavidrein/gpqa",
        "gpqa_diamond",
        ("gpqa_diamond_cot_zeroshot", "gpqa_diamond_cot_n_shot", "gpqa_diamond_generative_n_shot"),
        "https://huggingface.co/docs/hub/eval-results",
        "2026-11",
    ),
    Benchmark(
        "openai/gsm8k",
        "gsm8k",
        ("gsm8k", "gsm8k_cot", "gsm8k_cot_llama", "gsm8k_cot_zeroshot"),
        "https://github.com/evaleval/every_eval_ever",
        "2026-11",
    ),
)
"""Benchmarks whose ids are known from a public source. None of the nine multimodal tasks has one yet."""


def benchmark_of(task: str) -> Benchmark | None:
    """The benchmark that `task`, of lmms-eval, asks the questions of; None where none is known."""
    return next((benchmark for benchmark in BENCHMARKS if task in benchmark.tasks), None)
