"""Train the embedded pair: `python -m plam_eval.demo.train`.

Four stages, each resumable after a kill, each deterministic for a seed and a machine:

1. `tokenizer`  byte-level BPE on generated text.
2. `tower`      a CLIP vision tower learns to name what stands in each cell (the part real pairs get ready-made).
3. `base`       a Llama decoder learns from text alone: a scene in words, then questions about it.
4. `mllm`       LLaVA-1.5: the base decoder, the tower and a new projector, tuned on images alone.

A training sequence is one scene followed by several questions. Every question is a branch of its own: it attends to
the scene and to itself, and its positions start right behind the scene, exactly as in evaluation, so that one pass over
a scene trains many questions. Describing the whole scene, its cells in another order, is the densest lesson there is:
training begins with several such branches a sequence, and half of the later sequences have one.

Only scenes of the "train" split are used (`scenes.split_of`); "heldout" scenes choose the checkpoint that is kept.
"""

from __future__ import annotations

import argparse
import functools
import json
import random
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from torch import nn
from tqdm import tqdm
from transformers import (
    CLIPImageProcessor,
    CLIPVisionConfig,
    CLIPVisionModel,
    LlamaConfig,
    LlamaForCausalLM,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedTokenizerFast,
)

from plam_eval.demo.questions import (
    CHINESE,
    FIXED_PHRASES,
    FORMS,
    LETTER_FORMS,
    WORD_FORMS,
    WORD_KINDS,
    YES_NO_FORMS,
    YES_NO_KINDS,
    Question,
    ask_about,
    describe_scene,
)
from plam_eval.demo.scenes import COLORS, DIGITS, IMAGE_SIZE, POSITIONS, SHAPES, Scene, scene_of
from plam_eval.demo.scenes import draw as draw_scene
from plam_eval.files import write_in_one_step
from plam_eval.terminal import Terminal

PATCH_SIZE = 16
IMAGE_TOKENS = (IMAGE_SIZE // PATCH_SIZE) ** 2
WIDTH, LAYERS, HEADS, INTERMEDIATE = 128, 8, 4, 256
CHINESE_SHARE = 0.1
TOWER_LAYERS, TOWER_WIDTH = 3, 128  # LLaVA reads the last but one layer, so two of the three are used

# A place is one token, " top left", and so is a Chinese word: what has to be looked up is then one thing to match.
PLACES = tuple(" " + position for position in POSITIONS)
PHRASES = (
    *FIXED_PHRASES,
    *PLACES,
    *(word for english, word in CHINESE.items() if english not in DIGITS and len(word) > 1),
)

# LLaVA-1.5's conversation form. A plain string and a list of parts (images first) both render.
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{% if message['role'] == 'user' %}{{ 'USER: ' }}{% else %}{{ 'ASSISTANT: ' }}{% endif %}"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}"
    "{% for part in message['content'] if part['type'] == 'image' %}{{ '<image>\n' }}{% endfor %}"
    "{% for part in message['content'] if part['type'] == 'text' %}{{ part['text'] }}{% endfor %}"
    "{% endif %}"
    "{% if message['role'] == 'user' %}{{ ' ' }}{% else %}{{ eos_token }}{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
)


@dataclass(frozen=True)
class Settings:
    """What a training run is made of; stored with the pair."""

    seed: int = 0
    tower_steps: int = 1200
    base_steps: int = 3600
    mllm_steps: int = 1400
    base_describing_steps: int = 700  # at the start: three descriptions and two questions a sequence
    mllm_describing_steps: int = 300
    scenes_per_step: int = 16
    questions_per_scene: int = 6
    base_lr: float = 5e-3  # Muon, for the decoder's matrices
    mllm_lr: float = 2e-3
    other_lr: float = 3e-3  # AdamW, for embeddings, norms, head, tower and projector

    def describing(self, stage: str, step: int) -> bool:
        """Whether scenes are still described at a step, which teaches the words before the questions.

        Args:
            stage: "base" or "mllm".
            step: from 0.
        """
        return step < (self.base_describing_steps if stage == "base" else self.mllm_describing_steps)

    def description_weight(self, stage: str, step: int) -> float:
        """The weight of descriptions beside answers in the loss; `stage` and `step` as in `describing`."""
        return 1.5 if self.describing(stage, step) else 0.5


# --- sequences --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Branch:
    """One question behind a scene: the form it is asked in, the user's text and the expected answer."""

    form: str
    kind: str
    text: str
    answer: str


def match_question(rng: random.Random) -> Question:
    """A question that needs no scene: which letter stands before a given word. It teaches reading the options.

    Args:
        rng: draws the word and the options.
    """
    pool = rng.choice([tuple(COLORS), SHAPES + DIGITS, POSITIONS, tuple(str(n) for n in range(9))])
    choices = tuple(rng.sample(pool, 4))
    answer = rng.choice(choices)
    return Question("match", f"Which option says {answer}?", f"Which option says {answer}?", answer, choices)


def branches_of(scene: Scene, count: int, rng: random.Random, with_match: bool) -> list[Branch]:
    """`count` questions about a scene, in the prompt forms of the nine tasks.

    About a third each ask for a letter, for a word, and for yes or no.

    Args:
        scene: what is asked about.
        count: how many questions.
        rng: draws kinds and forms.
        with_match: whether some are questions of `match_question`, which need no scene.
    """
    branches: list[Branch] = []
    while len(branches) < count:
        if with_match and rng.random() < 0.08:
            question: Question | None = match_question(rng)
        else:
            question = ask_about(scene, rng.choice(tuple(WORD_KINDS if rng.random() < 0.65 else YES_NO_KINDS)), rng)
        if question is None:
            continue
        if question.is_yes_no:
            form = rng.choice(tuple(YES_NO_FORMS))
        elif question.kind == "match" or rng.random() < 0.5:
            form = rng.choice([f for f in LETTER_FORMS if question.kind != "match" or f != "mmbench_cn"])
        else:
            form = rng.choice(tuple(WORD_FORMS))
        text, answer = FORMS[form](question)
        branches.append(Branch(form, question.kind, text, answer))
    return branches


class Encoder:
    """Text -> token ids, remembering the pieces that come again and again.

    Args:
        tokenizer: encodes a piece that is new.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerFast) -> None:
        self.tokenizer = tokenizer
        self._seen: dict[str, list[int]] = {}

    def __call__(self, text: str) -> list[int]:
        if text not in self._seen:
            if len(self._seen) > 200_000:
                self._seen.clear()
            self._seen[text] = self.tokenizer.encode(text, add_special_tokens=False)
        return self._seen[text]


@dataclass
class Batch:
    """Sequences of one step. `labels` is -100 where nothing is learned; `weights` weighs answers against descriptions.

    input_ids, position_ids, labels: (batch, length); mask: (batch, 1, length, length), True where attention is allowed.
    `spans` locates each branch's answer: (sequence, first label position, last + 1, branch).
    """

    input_ids: torch.Tensor
    position_ids: torch.Tensor
    mask: torch.Tensor
    labels: torch.Tensor
    described: torch.Tensor
    spans: list[tuple[int, int, int, Branch]]
    pixel_values: torch.Tensor | None

    def to(self, device: torch.device) -> Batch:
        """The same with its tensors on `device`, where a model is."""
        pixels = None if self.pixel_values is None else self.pixel_values.to(device)
        ids, positions, mask = self.input_ids.to(device), self.position_ids.to(device), self.mask.to(device)
        return Batch(ids, positions, mask, self.labels.to(device), self.described.to(device), self.spans, pixels)


def make_batch(
    scenes: list[Scene],
    rng: random.Random,
    encode: Encoder,
    *,
    images: bool,
    questions: int,
    descriptions: float = 0.5,
    with_match: bool = True,
) -> Batch:
    """Sequences for `scenes`, each a prefix (the scene, as an image or in words) and its branches.

    Args:
        scenes: one for each sequence.
        rng: draws questions, forms and words.
        encode: text to token ids.
        images: whether the prefix holds the scene's image rather than its description.
        questions: branches that ask.
        descriptions: branches that describe the scene; a fraction is the chance of one more.
        with_match: whether some questions need no scene; never with images.
    """

    def branches(scene: Scene) -> list[Branch]:
        asked = branches_of(scene, questions, rng, with_match and not images)
        count = int(descriptions) + (rng.random() < descriptions % 1)
        return asked + [describing_branch(scene, rng, CHINESE_SHARE) for _ in range(count)]

    return batch_of(scenes, branches, rng, encode, images=images, chinese=CHINESE_SHARE)


def describing_branch(scene: Scene, rng: random.Random, chinese: float = 0.0) -> Branch:
    """A branch that describes the scene.

    Args:
        scene: what is described.
        rng: draws the language and the order of the cells.
        chinese: the chance of Chinese.
    """
    language = "zh" if rng.random() < chinese else "en"
    asked = "Describe the scene." if language == "en" else "请描述这个场景。"
    return Branch("describe", "describe", asked, describe_scene(scene, rng, language))


def batch_of(
    scenes: list[Scene],
    branches_of_scene: Callable[[Scene], list[Branch]],
    rng: random.Random,
    encode: Encoder,
    *,
    images: bool,
    chinese: float = 0.0,
) -> Batch:
    """Sequences for `scenes`, each a prefix (the scene, as an image or in words) and the branches behind it.

    Args:
        scenes: one for each sequence.
        branches_of_scene: what is asked about a scene.
        rng: draws the words of the prefixes and how the pictures are drawn.
        encode: text to token ids.
        images: whether the prefix holds the scene's image rather than its description.
        chinese: the chance that a description in a prefix is Chinese.
    """
    tokenizer = encode.tokenizer
    image_token = tokenizer.convert_tokens_to_ids("<image>")
    rows: list[tuple[list[int], list[int], list[int], list[int], list[int]]] = []
    spans: list[tuple[int, int, int, Branch]] = []
    for index, scene in enumerate(scenes):
        if images:
            prefix = [tokenizer.bos_token_id, *encode("USER: "), *[image_token] * IMAGE_TOKENS, *encode("\n")]
        else:
            told = describe_scene(scene, rng, "zh" if rng.random() < chinese else "en")
            prefix = [tokenizer.bos_token_id, *encode(f"USER: {told}\n")]
        ids, positions, branch_ids = list(prefix), list(range(len(prefix))), [0] * len(prefix)
        labels, described = [-100] * len(prefix), [0] * len(prefix)
        for number, branch in enumerate(branches_of_scene(scene), start=1):
            prompt = [*encode(branch.text), *encode(" ASSISTANT:")]
            answer = [*encode(" " + branch.answer), tokenizer.eos_token_id]
            start = len(ids) + len(prompt) - 1  # the position that predicts the answer's first token
            spans.append((index, start, start + len(answer), branch))
            # The last answer token is only predicted, never read.
            ids += prompt + answer[:-1]
            length = len(prompt) + len(answer) - 1
            positions += range(len(prefix), len(prefix) + length)
            branch_ids += [number] * length
            labels += [-100] * (len(prompt) - 1) + answer
            described += [int(branch.form == "describe")] * length
        rows.append((ids, positions, branch_ids, labels, described))
    longest = max(len(row[0]) for row in rows)

    def padded(column: int, fill: int) -> torch.Tensor:
        return torch.tensor([row[column] + [fill] * (longest - len(row[column])) for row in rows])

    branch_of = padded(2, -1)
    same = branch_of[:, :, None] == branch_of[:, None, :]
    causal = torch.ones(longest, longest, dtype=torch.bool).tril()
    mask = (same | (branch_of[:, None, :] == 0)) & causal
    pixels = pixel_values([draw_scene(s, rng.getrandbits(32)).image for s in scenes]) if images else None
    return Batch(
        padded(0, tokenizer.pad_token_id), padded(1, 0), mask[:, None], padded(3, -100), padded(4, 0), spans, pixels
    )


def pixel_values(images: list[Any]) -> torch.Tensor:
    """(batch, 3, size, size), scaled to [-1, 1]: what the pair's image processor makes of pictures of this size.

    Args:
        images: square RGB pictures of one size.
    """
    stacked = np.stack([np.asarray(image) for image in images])
    return torch.from_numpy(stacked).permute(0, 3, 1, 2).float() / 127.5 - 1.0


# --- tokenizer, models ------------------------------------------------------------------------------------------------


def train_tokenizer(
    seed: int,
    texts: Callable[[random.Random], Iterator[str]] | None = None,
    phrases: tuple[str, ...] = PHRASES,
    size: int = 768,
) -> PreTrainedTokenizerFast:
    """Byte-level BPE: frequent English words become one token each, Chinese characters stay single.

    The phrases that every document of a task repeats are one token each too: sequences are then a third shorter.

    Args:
        seed: of the texts that it is trained on.
        texts: draws them; by default those of the pair.
        phrases: that are one token each, whatever the texts are, beside the two roles.
        size: how many tokens there are before the phrases, at most.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(r"[\u3000-\u303f\u4e00-\u9fff\uff00-\uffef]"), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    special = ["<unk>", "<s>", "</s>", "<pad>", "<image>"]
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        min_frequency=20,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )

    def corpus(rng: random.Random) -> Iterator[str]:
        for _ in range(3000):
            scene = scene_of("train", rng)
            yield f"USER: {describe_scene(scene, rng)}\n"
            yield f"USER: {describe_scene(scene, rng, 'zh')}\n请描述这个场景。Describe the scene."
            yield f" ASSISTANT: {describe_scene(scene, rng)}"
            for branch in branches_of(scene, 8, rng, with_match=True):
                yield f"{branch.text} ASSISTANT: {branch.answer}"

    tokenizer.train_from_iterator((texts or corpus)(random.Random(f"{seed}:tokenizer")), trainer)
    tokenizer.add_tokens([AddedToken(phrase, normalized=False) for phrase in ("USER:", " ASSISTANT:", *phrases)])
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A $B", special_tokens=[("<s>", tokenizer.token_to_id("<s>"))]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        unk_token="<unk>",
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        extra_special_tokens={"image_token": "<image>"},
        chat_template=CHAT_TEMPLATE,
        model_max_length=2048,
        padding_side="left",
        clean_up_tokenization_spaces=False,
    )


def text_config(
    tokenizer: PreTrainedTokenizerFast, width: int = WIDTH, heads: int = HEADS, intermediate: int = INTERMEDIATE
) -> LlamaConfig:
    """The decoder of base and MLLM.

    Args:
        tokenizer: gives the size of the vocabulary and the special tokens.
        width: of the hidden states.
        heads: of its attention.
        intermediate: width inside its MLPs.
    """
    return LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=width,
        intermediate_size=intermediate,
        num_hidden_layers=LAYERS,
        num_attention_heads=heads,
        num_key_value_heads=heads,
        head_dim=width // heads,
        max_position_embeddings=2048,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        tie_word_embeddings=False,
        initializer_range=0.05,
        # Contexts are short: with the usual 10000, most of a head's 16 rotation frequencies would hardly turn in them.
        rope_parameters={"rope_type": "default", "rope_theta": 500.0},
    )


def tower_config() -> CLIPVisionConfig:
    """The vision tower."""
    return CLIPVisionConfig(
        hidden_size=TOWER_WIDTH,
        intermediate_size=2 * TOWER_WIDTH,
        num_hidden_layers=TOWER_LAYERS,
        num_attention_heads=4,
        image_size=IMAGE_SIZE,
        patch_size=PATCH_SIZE,
        projection_dim=TOWER_WIDTH,
    )


def build_mllm(tokenizer: PreTrainedTokenizerFast, text: LlamaConfig | None = None) -> LlavaForConditionalGeneration:
    """An untrained MLLM in the LLaVA-1.5 format.

    Args:
        tokenizer: as in `text_config`.
        text: of its decoder; by default the pair's.
    """
    config = LlavaConfig(
        vision_config=tower_config(),
        text_config=text or text_config(tokenizer),
        image_token_index=tokenizer.vocab["<image>"],
        image_seq_length=IMAGE_TOKENS,
        vision_feature_layer=-2,
        vision_feature_select_strategy="default",
        projector_hidden_act="gelu",
        tie_word_embeddings=False,
    )
    return LlavaForConditionalGeneration(config)


def build_processor(tokenizer: PreTrainedTokenizerFast) -> LlavaProcessor:
    """The MLLM's processor: its images are `IMAGE_SIZE` pixels wide and high, its texts go through `tokenizer`."""
    images = CLIPImageProcessor(
        size={"shortest_edge": IMAGE_SIZE},
        crop_size={"height": IMAGE_SIZE, "width": IMAGE_SIZE},
        image_mean=[0.5, 0.5, 0.5],
        image_std=[0.5, 0.5, 0.5],
    )
    return LlavaProcessor(
        image_processor=images,
        tokenizer=tokenizer,
        patch_size=PATCH_SIZE,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=CHAT_TEMPLATE,
    )


# --- one loop for every stage -----------------------------------------------------------------------------------------


class Stage:
    """A resumable loop: `loss_of(step)` for every step, `score()` now and then, the best weights kept.

    State is written to `folder/<name>.pt` every `save_every` steps, atomically; a finished stage is skipped.

    Args:
        name: of the stage and its files.
        module: what is trained.
        groups: each optimizer with the peak learning rates of its parameter groups.
        steps: in all.
        folder: for state and log.
        save_every: steps between two states on disk.
        score_every: steps between two scores.
    """

    def __init__(
        self,
        name: str,
        module: nn.Module,
        groups: list[tuple[torch.optim.Optimizer, list[float]]],
        steps: int,
        folder: Path,
        save_every: int = 100,
        score_every: int = 250,
    ) -> None:
        self.name, self.module, self.groups, self.steps = name, module, groups, steps
        self.file = folder / f"{name}.pt"
        self.save_every, self.score_every = save_every, score_every
        self.log = folder / f"{name}.jsonl"

    def run(self, loss_of: Callable[[int], torch.Tensor], score: Callable[[], dict[str, float]]) -> dict[str, float]:
        """Train to the end and load the best weights; returns the best score.

        Args:
            loss_of: the loss of a step, from 0; the same for the same step, so that a resumed stage goes on alike.
            score: held-out scores, by name; the best is the one with the highest "accuracy".
        """
        step, best, best_state, seconds = 0, {"accuracy": -1.0}, None, 0.0
        if self.file.exists():
            state = torch.load(self.file, weights_only=True, map_location=next(self.module.parameters()).device)
            self.module.load_state_dict(state["module"])
            for (optimizer, _), saved in zip(self.groups, state["optimizers"], strict=True):
                optimizer.load_state_dict(saved)
            step, best, best_state, seconds = state["step"], state["best"], state["best_state"], state["seconds"]
        bar = tqdm(total=self.steps, initial=step, desc=self.name, unit="step", mininterval=2.0)
        started, running = time.monotonic(), None
        while step < self.steps:
            rate = self._rate(step)
            for optimizer, rates in self.groups:
                for group, base in zip(optimizer.param_groups, rates, strict=True):
                    group["lr"] = base * rate
                optimizer.zero_grad(set_to_none=True)
            loss = loss_of(step)
            loss.backward()
            nn.utils.clip_grad_norm_(self.module.parameters(), 1.0)
            for optimizer, _ in self.groups:
                optimizer.step()
            step += 1
            running = loss.item() if running is None else 0.95 * running + 0.05 * loss.item()
            bar.update(1)
            bar.set_postfix(loss=f"{running:.3f}", best=f"{best['accuracy']:.3f}")
            if step % self.score_every == 0 or step == self.steps:
                scored = score()
                line = {"step": step, "loss": running, "seconds": seconds + time.monotonic() - started, **scored}
                with self.log.open("a") as log:
                    log.write(json.dumps(line) + "\n")
                if scored["accuracy"] >= best["accuracy"]:
                    best = scored
                    best_state = {k: v.clone() for k, v in self.module.state_dict().items()}
            if step % self.save_every == 0 or step == self.steps:
                state = {
                    "module": self.module.state_dict(),
                    "optimizers": [optimizer.state_dict() for optimizer, _ in self.groups],
                    "step": step,
                    "best": best,
                    "best_state": best_state,
                    "seconds": seconds + time.monotonic() - started,
                }
                write_in_one_step(self.file, functools.partial(torch.save, state))
        bar.close()
        if best_state is not None:
            self.module.load_state_dict(best_state)
        return best

    def _rate(self, step: int) -> float:
        """Short warm-up, constant, then a linear fall to a twentieth over the last 40 %."""
        done = step / self.steps
        return min(1.0, (step + 1) / 100, max(0.05, (1 - done) / 0.4))


def optimizers(
    decoder: nn.Module, rest: list[tuple[list[nn.Parameter], float]], muon_lr: float
) -> list[tuple[torch.optim.Optimizer, list[float]]]:
    """Muon for the decoder layers' matrices, AdamW for everything else.

    Args:
        decoder: the layers whose matrices Muon trains, those that are not frozen.
        rest: all other parameters, in groups with their learning rates.
        muon_lr: Muon's learning rate.

    Returns:
        Each optimizer with the learning rates of its groups.
    """
    matrices = [p for p in decoder.parameters() if p.ndim == 2 and p.requires_grad]
    muon = torch.optim.Muon(matrices, lr=muon_lr, weight_decay=0.01, momentum=0.95)
    adam = torch.optim.AdamW(
        [{"params": params, "lr": lr} for params, lr in rest], betas=(0.9, 0.95), weight_decay=0.01
    )
    return [(muon, [muon_lr]), (adam, [lr for _, lr in rest])]


def answer_loss(model: nn.Module, head: nn.Module, batch: Batch, description_weight: float = 0.5) -> torch.Tensor:
    """Cross entropy over the answers (nats per token), and a share of that over the descriptions.

    Args:
        model: gives hidden states.
        head: makes logits of them.
        batch: what is learned.
        description_weight: of the descriptions' mean beside the answers'.
    """
    batch = batch.to(next(model.parameters()).device)
    hidden = _hidden(model, batch)
    learned = batch.labels != -100
    losses = F.cross_entropy(head(hidden[learned]).float(), batch.labels[learned], reduction="none")
    described = batch.described[learned].bool()
    loss = losses[~described].mean()
    return loss + description_weight * losses[described].mean() if described.any() else loss


def _hidden(model: nn.Module, batch: Batch) -> torch.Tensor:
    extra = {} if batch.pixel_values is None else {"pixel_values": batch.pixel_values}
    return model(
        input_ids=batch.input_ids,
        attention_mask=batch.mask,
        position_ids=batch.position_ids,
        use_cache=False,
        **extra,
    ).last_hidden_state


@torch.no_grad()
def accuracy(model: nn.Module, head: nn.Module, batches: list[Batch]) -> dict[str, float]:
    """Share of branches whose whole answer greedy decoding would give: mean over forms, per form and per kind.

    Args:
        model: gives hidden states.
        head: makes logits of them.
        batches: held-out ones.
    """
    model.eval()
    right: dict[str, list[bool]] = defaultdict(list)
    for batch in batches:
        batch = batch.to(next(model.parameters()).device)
        guess = head(_hidden(model, batch)).argmax(-1)
        hit = (guess == batch.labels).cpu()
        for row, start, end, branch in batch.spans:
            ok = bool(hit[row, start:end].all())
            right[f"form/{branch.form}"].append(ok)
            right[f"kind/{branch.kind}"].append(ok)
    model.train()
    scores = {name: float(np.mean(hits)) for name, hits in sorted(right.items())}
    forms = [score for name, score in scores.items() if name.startswith("form/")]
    return {"accuracy": float(np.mean(forms)), **scores}


# --- stages -----------------------------------------------------------------------------------------------------------


def train_tower(
    seed: int, steps: int, folder: Path, device: torch.device | str = "cpu"
) -> tuple[CLIPVisionModel, dict[str, float]]:
    """The tower's patch features of each cell must tell its colour and its shape ("empty" is one of each).

    Args:
        seed: of the weights and the scenes.
        steps: of training.
        folder: for the stage's state and log.
        device: where it is trained.

    Returns:
        The best tower, and its held-out scores.
    """
    torch.manual_seed(seed)
    tower = CLIPVisionModel(tower_config())
    color_names, shape_names = ("empty", *COLORS), ("empty", *SHAPES, *DIGITS)
    heads = nn.ModuleList([nn.Linear(TOWER_WIDTH, len(color_names)), nn.Linear(TOWER_WIDTH, len(shape_names))])
    both = nn.ModuleDict({"tower": tower, "heads": heads}).to(device)
    side = IMAGE_SIZE // PATCH_SIZE

    def logits(scenes: list[Scene], rng: random.Random) -> tuple[torch.Tensor, torch.Tensor]:
        pixels = pixel_values([draw_scene(s, rng.getrandbits(32)).image for s in scenes])
        features = tower(pixel_values=pixels.to(device), output_hidden_states=True).hidden_states[-2][:, 1:]
        cells = features.view(len(scenes), 2, side // 2, 2, side // 2, -1).mean((2, 4)).flatten(1, 2)
        return heads[0](cells), heads[1](cells)

    def targets(scenes: list[Scene]) -> tuple[torch.Tensor, torch.Tensor]:
        colors = [[color_names.index(t.color) if t else 0 for t in s.cells] for s in scenes]
        shapes = [[shape_names.index(t.shape) if t else 0 for t in s.cells] for s in scenes]
        return torch.tensor(colors, device=device), torch.tensor(shapes, device=device)

    def loss_of(step: int) -> torch.Tensor:
        rng = random.Random(f"{seed}:tower:{step}")
        scenes = [scene_of("train", rng) for _ in range(64)]
        predicted, true = logits(scenes, rng), targets(scenes)
        return sum(F.cross_entropy(p.flatten(0, 1), t.flatten()) for p, t in zip(predicted, true, strict=True))  # type: ignore[return-value]

    @torch.no_grad()
    def score() -> dict[str, float]:
        rng = random.Random(f"{seed}:tower-heldout")
        scenes = [scene_of("heldout", rng) for _ in range(256)]
        color, shape = ((p.argmax(-1) == t) for p, t in zip(logits(scenes, rng), targets(scenes), strict=True))
        return {"accuracy": (color & shape).float().mean().item(), "color": color.float().mean().item()}

    adam = torch.optim.AdamW(both.parameters(), lr=1e-3, weight_decay=0.01)
    best = Stage("tower", both, [(adam, [1e-3])], steps, folder).run(loss_of, score)
    return tower, best


def _batches(
    settings: Settings, stage: str, encode: Encoder, images: bool
) -> tuple[Callable[[int], Batch], list[Batch]]:
    """A step's batch as a function of the step's number, and fixed batches of held-out scenes to score on."""

    def batch_at(step: int) -> Batch:
        rng = random.Random(f"{settings.seed}:{stage}:{step}")
        scenes = [scene_of("train", rng) for _ in range(settings.scenes_per_step)]
        if settings.describing(stage, step):
            return make_batch(scenes, rng, encode, images=images, questions=2, descriptions=3)
        return make_batch(scenes, rng, encode, images=images, questions=settings.questions_per_scene)

    rng = random.Random(f"{settings.seed}:{stage}-heldout")
    heldout = [
        make_batch(
            [scene_of("heldout", rng) for _ in range(50)],
            rng,
            encode,
            images=images,
            questions=10,
            descriptions=0,
            with_match=False,
        )
        for _ in range(4)
    ]
    return batch_at, heldout


@torch.no_grad()
def start_from_lookup(model: LlamaForCausalLM) -> None:
    """Equal query and key projections: at the start, a token attends to tokens of its own kind.

    It is meant to make looking a place up in a description easy to find. The idea is that of mimetic initialisation
    (Trockman and Kolter, arXiv 2305.09828); its effect was not measured apart from the other settings.

    Args:
        model: whose decoder layers are changed in place.
    """
    for layer in model.model.layers:
        layer.self_attn.q_proj.weight.normal_(0, 0.08)
        layer.self_attn.k_proj.weight.copy_(layer.self_attn.q_proj.weight)


def train_base(settings: Settings, folder: Path, encode: Encoder) -> tuple[LlamaForCausalLM, dict[str, float]]:
    """The base LLM, on text alone.

    Args:
        settings: of the run.
        folder: for the stage's state and log.
        encode: text to token ids.

    Returns:
        The best base, and its held-out scores.
    """
    torch.manual_seed(settings.seed)
    model = LlamaForCausalLM(text_config(encode.tokenizer))
    start_from_lookup(model)
    batch_at, heldout = _batches(settings, "base", encode, images=False)
    others = [p for n, p in model.named_parameters() if p.ndim != 2 or "layers" not in n]
    groups = optimizers(model.model.layers, [(others, settings.other_lr)], settings.base_lr)
    best = Stage("base", model, groups, settings.base_steps, folder).run(
        lambda step: answer_loss(model.model, model.lm_head, batch_at(step), settings.description_weight("base", step)),
        lambda: accuracy(model.model, model.lm_head, heldout),
    )
    return model, best


def train_mllm(
    settings: Settings, folder: Path, encode: Encoder, base: LlamaForCausalLM, tower: CLIPVisionModel
) -> tuple[LlavaForConditionalGeneration, dict[str, float]]:
    """The MLLM, on images alone, from the base decoder and the tower.

    Args:
        settings: of the run.
        folder: for the stage's state and log.
        encode: text to token ids.
        base: where the decoder starts from; it is not changed.
        tower: where the vision tower starts from; it is not changed.

    Returns:
        The best MLLM, and its held-out scores.
    """
    torch.manual_seed(settings.seed)
    model = build_mllm(encode.tokenizer)
    model.model.language_model.load_state_dict(base.model.state_dict())
    model.lm_head.load_state_dict(base.lm_head.state_dict())
    model.model.vision_tower.load_state_dict(tower.state_dict())
    batch_at, heldout = _batches(settings, "mllm", encode, images=True)
    decoder = model.model.language_model
    slow = [p for n, p in decoder.named_parameters() if p.ndim != 2 or "layers" not in n]
    slow += list(model.lm_head.parameters())
    tower_parameters = list(model.model.vision_tower.parameters())
    projector = list(model.model.multi_modal_projector.parameters())
    rest = [
        (projector, settings.other_lr),
        (tower_parameters, 0.25 * settings.other_lr),
        (slow, 0.25 * settings.other_lr),
    ]
    groups = optimizers(decoder.layers, rest, settings.mllm_lr)
    best = Stage("mllm", model, groups, settings.mllm_steps, folder).run(
        lambda step: answer_loss(model.model, model.lm_head, batch_at(step), settings.description_weight("mllm", step)),
        lambda: accuracy(model.model, model.lm_head, heldout),
    )
    return model, best


def tokenizer_of(settings: Settings, folder: Path) -> PreTrainedTokenizerFast:
    """The run's tokenizer, trained once and read back afterwards.

    Args:
        settings: of the run, whose seed draws its texts.
        folder: where it is kept, in tokenizer/.
    """
    saved = folder / "tokenizer"
    if not (saved / "tokenizer.json").exists():
        train_tokenizer(settings.seed).save_pretrained(saved)
    return PreTrainedTokenizerFast.from_pretrained(saved)


_HUB_NAMES = (  # parameter prefix in memory -> tensor prefix in a LLaVA-1.5 repository on the hub
    ("model.language_model.", "language_model.model."),
    ("lm_head.", "language_model.lm_head."),
    ("model.vision_tower.", "vision_tower.vision_model."),
    ("model.multi_modal_projector.", "multi_modal_projector."),
)


def _hub_name(name: str) -> str:
    for prefix, replacement in _HUB_NAMES:
        if name.startswith(prefix):
            return replacement + name.removeprefix(prefix)
    raise ValueError(f"no LLaVA-1.5 tensor name for the parameter {name}")


def save_pair(
    mllm: LlavaForConditionalGeneration, base: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, output: Path
) -> None:
    """Write `output/mllm` (with the hub's tensor names, which vLLM reads too) and `output/base`, float32.

    Args:
        mllm: the trained MLLM.
        base: the trained base LLM.
        tokenizer: of both.
        output: folder for the two; files of these names are overwritten.
    """
    save_model(output / "mllm", mllm, tokenizer)
    save_model(output / "base", base, tokenizer)


def save_model(
    folder: Path,
    model: LlavaForConditionalGeneration | LlamaForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    dtype: torch.dtype = torch.float32,
) -> None:
    """Write one model with its tokenizer, an MLLM with its processor.

    Args:
        folder: for the files; those of these names are overwritten.
        model: the trained model.
        tokenizer: its own.
        dtype: in which tensors are stored. The config asks for float32 all the same: a smaller one saves room only.
    """
    folder.mkdir(parents=True, exist_ok=True)
    is_mllm = isinstance(model, LlavaForConditionalGeneration)
    renamed = _hub_name if is_mllm else str
    tensors = {renamed(k): v.detach().to("cpu", dtype).contiguous() for k, v in model.state_dict().items()}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "model.safetensors").chmod(0o644)
    model.config.architectures = [type(model).__name__]
    model.config.dtype = torch.float32
    model.config.save_pretrained(folder)
    ids = ("bos_token_id", "eos_token_id", "pad_token_id")
    generation = {name: getattr(tokenizer, name) for name in ids}
    (folder / "generation_config.json").write_text(json.dumps(generation, indent=2) + "\n")
    if is_mllm:
        build_processor(tokenizer).save_pretrained(folder)
    else:
        tokenizer.save_pretrained(folder)


def main() -> None:
    """Train the pair as the command line says, each stage from where it stopped."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--output", type=Path, default=Path("out/pair"), help="where the finished pair goes")
    parser.add_argument("--work", type=Path, default=Path("out/train"), help="resumable state and logs")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--stage", choices=("tokenizer", "tower", "base", "mllm"), help="stop after this stage")
    for name, value in asdict(Settings()).items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=type(value), default=value)
    arguments = parser.parse_args()
    settings = Settings(**{name: getattr(arguments, name) for name in asdict(Settings())})
    torch.set_num_threads(arguments.threads)
    arguments.work.mkdir(parents=True, exist_ok=True)

    encode = Encoder(tokenizer_of(settings, arguments.work))
    console = Terminal()
    console.say(f"tokenizer: {len(encode.tokenizer)} tokens")
    if arguments.stage == "tokenizer":
        return
    tower, tower_score = train_tower(settings.seed, settings.tower_steps, arguments.work)
    if arguments.stage == "tower":
        return
    base, base_score = train_base(settings, arguments.work, encode)
    if arguments.stage == "base":
        return
    mllm, mllm_score = train_mllm(settings, arguments.work, encode, base, tower)
    save_pair(mllm, base, encode.tokenizer, arguments.output)
    record = {
        "settings": asdict(settings),
        "heldout": {"tower": tower_score, "base (text)": base_score, "mllm (images)": mllm_score},
        "torch": torch.__version__,
    }
    (arguments.output / "training.json").write_text(json.dumps(record, indent=2) + "\n")
    console.say(
        f"wrote {arguments.output}: held-out accuracy {base_score['accuracy']:.3f} (text), {mllm_score['accuracy']:.3f}"
    )


if __name__ == "__main__":
    torch.set_flush_denormal(True)  # of the whole process, so not in main(), which others may call
    main()
