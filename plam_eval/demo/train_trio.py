"""Train the trio: `python -m plam_eval.demo.train_trio`.

A pair in which there is something to restore, and its ancestor. Six stages, resumable and seeded like those of `train`:

1. `tokenizer`, 2. `tower`  as in `train`.
3. `ancestor`   a Llama decoder, from text alone: it describes scenes, answers what is where, and has read the questions
                that need reasoning with an answer drawn from their options, mostly a wrong one.
4. `base`       the ancestor, tuned on text alone: all questions, with true answers.
5. `projector`  LLaVA-1.5's first stage: base and tower are frozen, a projector learns from images.
6. `mllm`       the later half of the decoder and the projector, tuned on images with descriptions and with questions
                that need no reasoning. The early half stays the base's, and so do embeddings and head.

So the base reasons in words, and the MLLM unlearns it in its later half. Questions have one form, that of GQA. What is
kept of a stage is never chosen by reasoning over images: the MLLM that is kept names best what is in images. The recipe
itself (what is tuned, rates, steps) was chosen by reasoning over images of held-out scenes, from 26: docs/trio.md.
"""

from __future__ import annotations

import argparse
import json
import random
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import nn
from transformers import CLIPVisionModel, LlamaForCausalLM, LlavaForConditionalGeneration, PreTrainedTokenizerFast

from plam_eval.demo import train
from plam_eval.demo.questions import (
    FORMS,
    KINDS,
    PERCEPTION_KINDS,
    REASONING_KINDS,
    SHORT_ANSWER,
    ask_about,
    ask_any,
    describe_scene,
)
from plam_eval.demo.scenes import Scene, scene_of
from plam_eval.demo.train import Batch, Branch, Encoder, Stage, describing_branch
from plam_eval.errors import InputError
from plam_eval.files import read_json, write_json
from plam_eval.terminal import Terminal

WIDTH, HEADS, INTERMEDIATE = 96, 3, 192
FIRST_TUNED = train.LAYERS // 2  # the first decoder layer that is tuned on images
FORM = "gqa"


@dataclass(frozen=True)
class Settings:
    """What a training run is made of; stored with the trio."""

    seed: int = 0
    tower_steps: int = 1200
    ancestor_steps: int = 2000
    base_steps: int = 4000
    projector_steps: int = 200
    mllm_steps: int = 2300
    scenes_per_step: int = 64  # half as many with images
    ancestor_lr: float = 5e-3  # Muon, for the decoder's matrices
    base_lr: float = 3e-3
    mllm_lr: float = 4e-3
    other_lr: float = 3e-3  # AdamW, for the ancestor's embeddings, norms and head, and for the projector
    base_other_lr: float = 1.125e-3  # AdamW, for the base's embeddings, norms and head
    mllm_norm_lr: float = 1.5e-3  # AdamW, for the MLLM's norms


# --- what is asked ----------------------------------------------------------------------------------------------------


def _asked(scene: Scene, kinds: tuple[str, ...], rng: random.Random, *, guessed: bool = False) -> Branch:
    question = ask_any(scene, kinds, rng)
    text, answer = FORMS[FORM](question)
    return Branch(FORM, question.kind, text, rng.choice(question.choices) if guessed else answer)


def ancestor_branches(scene: Scene, rng: random.Random) -> list[Branch]:
    """Two descriptions, two questions of what is where, and two of reasoning with an answer drawn from their options.

    Args:
        scene: what is asked about.
        rng: draws questions and words.
    """
    return [
        *(describing_branch(scene, rng) for _ in range(2)),
        *(_asked(scene, PERCEPTION_KINDS, rng) for _ in range(2)),
        *(_asked(scene, REASONING_KINDS, rng, guessed=True) for _ in range(2)),
    ]


def base_branches(scene: Scene, rng: random.Random) -> list[Branch]:
    """Seven questions of any kind, and a description behind every other scene; `scene`, `rng` as above."""
    asked = [_asked(scene, tuple(KINDS), rng) for _ in range(7)]
    return [*asked, describing_branch(scene, rng)] if rng.random() < 0.5 else asked


def mllm_branches(scene: Scene, rng: random.Random) -> list[Branch]:
    """Five questions of what is where, and a description: no reasoning; `scene`, `rng` as above."""
    return [*(_asked(scene, PERCEPTION_KINDS, rng) for _ in range(5)), describing_branch(scene, rng)]


def _texts(rng: random.Random) -> Iterator[str]:
    for _ in range(3000):
        scene = scene_of("train", rng)
        told, described = (describe_scene(scene, rng) for _ in range(2))
        yield f"USER: {told}\nDescribe the scene. ASSISTANT: {described}"
        for kind in KINDS:
            if question := ask_about(scene, kind, rng):
                text, answer = FORMS[FORM](question)
                yield f"{text} ASSISTANT: {answer}"


def tokenizer_of(settings: Settings, folder: Path) -> PreTrainedTokenizerFast:
    """The run's tokenizer, trained once and read back afterwards.

    Args:
        settings: of the run, whose seed draws its texts.
        folder: where it is kept, in tokenizer/.
    """
    saved = folder / "tokenizer"
    if not (saved / "tokenizer.json").exists():
        train.train_tokenizer(settings.seed, _texts, (SHORT_ANSWER, *train.PLACES), size=512).save_pretrained(saved)
    return PreTrainedTokenizerFast.from_pretrained(saved)


# --- stages -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Lessons:
    """The batches of one stage.

    Args:
        settings: of the run.
        stage: its name, of which the batches are drawn.
        branches: what is asked about a scene.
        images: whether the scene is seen, or told in words.
        encode: text to token ids.
    """

    settings: Settings
    stage: str
    branches: Callable[[Scene, random.Random], list[Branch]]
    images: bool
    encode: Encoder

    def batch(self, step: int) -> Batch:
        """What is learned at `step`."""
        rng = random.Random(f"{self.settings.seed}:trio-{self.stage}:{step}")
        count = self.settings.scenes_per_step // (2 if self.images else 1)
        scenes = [scene_of("train", rng) for _ in range(max(1, count))]
        return train.batch_of(scenes, lambda s: self.branches(s, rng), rng, self.encode, images=self.images)

    def heldout(self, kinds: tuple[str, ...]) -> list[Batch]:
        """Fixed batches of held-out scenes; 5 questions about each of 200, of `kinds`."""

        def batch(number: int) -> Batch:
            rng = random.Random(f"{self.settings.seed}:trio-heldout:{self.images}:{number}")
            scenes = [scene_of("heldout", rng) for _ in range(50)]

            def asked(scene: Scene) -> list[Branch]:
                return [_asked(scene, kinds, rng) for _ in range(5)]

            return train.batch_of(scenes, asked, rng, self.encode, images=self.images)

        return [batch(number) for number in range(4)]


def _run(
    lessons: Lessons,
    folder: Path,
    steps: int,
    module: LlamaForCausalLM | LlavaForConditionalGeneration,
    groups: list[tuple[torch.optim.Optimizer, list[float]]],
    *,
    kept_by: tuple[str, ...],
    description_weight: float = 0.5,
) -> dict[str, float]:
    """One stage; its best weights, by the held-out questions of the kinds `kept_by`, are left in `module`."""
    chosen, reasoning = lessons.heldout(kept_by), lessons.heldout(REASONING_KINDS)

    def score() -> dict[str, float]:
        beside = train.accuracy(module.model, module.lm_head, reasoning)["accuracy"]
        return {**train.accuracy(module.model, module.lm_head, chosen), "reasoning": beside}

    return Stage(lessons.stage, module, groups, steps, folder).run(
        lambda step: train.answer_loss(module.model, module.lm_head, lessons.batch(step), description_weight), score
    )


Groups = list[tuple[torch.optim.Optimizer, list[float]]]


def _groups(model: LlamaForCausalLM, muon_lr: float, other_lr: float) -> Groups:
    others = [p for n, p in model.named_parameters() if p.ndim != 2 or "layers" not in n]
    return train.optimizers(model.model.layers, [(others, other_lr)], muon_lr)


def train_ancestor(
    settings: Settings, folder: Path, encode: Encoder, device: str
) -> tuple[LlamaForCausalLM, dict[str, float]]:
    """The ancestor, on text alone, kept by how well it tells what is where.

    Args:
        settings: of the run.
        folder: for the stage's state and log.
        encode: text to token ids.
        device: where it is trained.

    Returns:
        The best ancestor, and its held-out scores.
    """
    torch.manual_seed(settings.seed)
    model = LlamaForCausalLM(train.text_config(encode.tokenizer, WIDTH, HEADS, INTERMEDIATE))
    train.start_from_lookup(model)
    nn.Module.to(model, device)  # the model's own is typed for itself alone
    lessons = Lessons(settings, "ancestor", ancestor_branches, False, encode)
    groups = _groups(model, settings.ancestor_lr, settings.other_lr)
    steps = settings.ancestor_steps
    return model, _run(lessons, folder, steps, model, groups, kept_by=PERCEPTION_KINDS, description_weight=1.0)


def train_base(
    settings: Settings, folder: Path, encode: Encoder, ancestor: LlamaForCausalLM
) -> tuple[LlamaForCausalLM, dict[str, float]]:
    """The base, from the ancestor, on text alone, kept by all kinds of questions.

    Args:
        settings: of the run.
        folder: for the stage's state and log.
        encode: text to token ids.
        ancestor: where it starts from; it is not changed.

    Returns:
        The best base, and its held-out scores.
    """
    model = LlamaForCausalLM(ancestor.config)
    nn.Module.to(model, ancestor.device)
    model.load_state_dict(ancestor.state_dict())
    lessons = Lessons(settings, "base", base_branches, False, encode)
    groups = _groups(model, settings.base_lr, settings.base_other_lr)
    return model, _run(lessons, folder, settings.base_steps, model, groups, kept_by=tuple(KINDS))


def train_mllm(
    settings: Settings, folder: Path, encode: Encoder, base: LlamaForCausalLM, tower: CLIPVisionModel
) -> tuple[LlavaForConditionalGeneration, dict[str, float]]:
    """The MLLM, from base and tower, on images alone: first the projector, then it and the decoder's later half.

    Args:
        settings: of the run.
        folder: for the stages' states and logs.
        encode: text to token ids.
        base: where the decoder starts from; it is not changed.
        tower: what sees; it is not changed.

    Returns:
        The best MLLM by what it names in images, and its held-out scores.
    """
    torch.manual_seed(settings.seed)
    model = train.build_mllm(encode.tokenizer, base.config)
    nn.Module.to(model, base.device)
    model.model.language_model.load_state_dict(base.model.state_dict())
    model.lm_head.load_state_dict(base.lm_head.state_dict())
    model.model.vision_tower.load_state_dict(tower.state_dict())
    model.requires_grad_(False)
    projector = list(model.model.multi_modal_projector.requires_grad_(True).parameters())
    lessons = Lessons(settings, "projector", mllm_branches, True, encode)
    adam = torch.optim.AdamW(projector, lr=settings.other_lr, betas=(0.9, 0.95), weight_decay=0.01)
    groups: Groups = [(adam, [settings.other_lr])]
    _run(lessons, folder, settings.projector_steps, model, groups, kept_by=PERCEPTION_KINDS)

    late: nn.Module = model.model.language_model.layers[FIRST_TUNED:].requires_grad_(True)
    norms = [p for p in late.parameters() if p.ndim != 2]
    rest = [(projector, settings.other_lr), (norms, settings.mllm_norm_lr)]
    groups = train.optimizers(late, rest, settings.mllm_lr)
    lessons = Lessons(settings, "mllm", mllm_branches, True, encode)
    return model, _run(lessons, folder, settings.mllm_steps, model, groups, kept_by=PERCEPTION_KINDS)


def _keep_to(settings: Settings, folder: Path) -> None:
    """Refuse a folder with the stages of other settings: they would be gone on with, and called by these."""
    file, given = folder / "settings.json", asdict(settings)
    if not file.is_file():
        write_json(file, given)
        return
    stored = read_json(file, "give another --work")
    if others := sorted(name for name in given if stored.get(name) != given[name]):
        raise InputError(
            f"{folder} holds stages of other settings: {', '.join(f'{n} {stored.get(n)} there' for n in others)}; "
            "give those, or another --work"
        )


def _course(folder: Path, stage: str) -> dict[str, float]:
    """How long a stage took, and the step whose weights were kept: of the best by "accuracy" the last one."""
    lines = [json.loads(line) for line in (folder / f"{stage}.jsonl").read_text(encoding="utf-8").splitlines()]
    kept = max(lines, key=lambda line: (line["accuracy"], line["step"]))
    return {"seconds": round(lines[-1]["seconds"]), "kept_step": kept["step"]}


def main() -> None:
    """Train the trio as the command line says, each stage from where it stopped.

    Raises:
        InputError: the folder of its state is of other settings.
    """
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--output", type=Path, default=Path("out/trio"), help="where the finished trio goes")
    parser.add_argument("--work", type=Path, default=Path("out/train_trio"), help="resumable state and logs")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    for name, value in asdict(Settings()).items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=type(value), default=value)
    arguments = parser.parse_args()
    settings = Settings(**{name: getattr(arguments, name) for name in asdict(Settings())})
    torch.set_num_threads(arguments.threads)
    arguments.work.mkdir(parents=True, exist_ok=True)
    _keep_to(settings, arguments.work)

    encode = Encoder(tokenizer_of(settings, arguments.work))
    console = Terminal()
    console.say(f"tokenizer: {len(encode.tokenizer)} tokens")
    work, device = arguments.work, arguments.device
    tower, tower_score = train.train_tower(settings.seed, settings.tower_steps, work, device)
    ancestor, ancestor_score = train_ancestor(settings, work, encode, device)
    base, base_score = train_base(settings, work, encode, ancestor)
    mllm, mllm_score = train_mllm(settings, work, encode, base, tower)
    for name, model in (("ancestor", ancestor), ("base", base), ("mllm", mllm)):
        train.save_model(arguments.output / name, model, encode.tokenizer, torch.float16)
    record = {
        "trained_by": "python -m plam_eval.demo.train_trio",
        "settings": asdict(settings),
        "heldout": {
            "tower": tower_score,
            "ancestor (text)": ancestor_score,
            "base (text)": base_score,
            "mllm (images)": mllm_score,
        },
        "stages": {name: _course(work, name) for name in ("tower", "ancestor", "base", "projector", "mllm")},
        "device": device,
        "threads": arguments.threads,
        "torch": torch.__version__,
    }
    (arguments.output / "training.json").write_text(json.dumps(record, indent=2) + "\n")
    console.say(
        f"wrote {arguments.output}: of held-out questions that need reasoning the base answers "
        f"{base_score['reasoning']:.3f} (text), the MLLM {mllm_score['reasoning']:.3f} (images)"
    )


if __name__ == "__main__":
    torch.set_flush_denormal(True)  # of the whole process, so not in main(), which others may call
    main()
