"""Every multimodal LLM of transformers whose decoder and image tokens can be found."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import transformers
from lmms_eval.models.chat import huggingface as stock
from transformers import AutoConfig, AutoModelForImageTextToText, AutoProcessor

from plam_eval.errors import InputError
from plam_eval.harness.registry import WRAPPERS
from plam_eval.merging.checkpoint import Checkpoint
from plam_eval.model_wrappers.hf import HFPlateauMixin
from plam_eval.model_wrappers.processors import Processor
from plam_eval.probing.decoder import ProbeError
from plam_eval.probing.skeleton import check_probeable, skeleton


class PlamHFChat(HFPlateauMixin, stock.Huggingface):
    """lmms-eval's `huggingface` wrapper, for the models of transformers that can be probed and merged.

    A model that cannot be is refused by name before a weight is read: its config is enough to make it without any.
    """

    model_id = "plam_hf"
    processor: Any

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        with loading_by(AutoModelForImageTextToText):
            super().__init__(*args, **kwargs)
        # Answers are generated behind the prompt, so padding, which only batches have, belongs in front of it.
        self.tokenizer.padding_side = self.processor.tokenizer.padding_side = "left"
        self.processor = Processor(self.processor)

    @property
    def input_processor(self) -> Any:
        return self.processor

    @classmethod
    def _check_checkpoint(cls, checkpoint: Checkpoint, trust_remote_code: bool) -> None:
        kind = checkpoint.config.get("model_type")
        stated = f"pretrained={checkpoint.name}: its config.json says model_type {kind!r}"
        trusted = {"trust_remote_code": trust_remote_code, "revision": checkpoint.commit}
        if "auto_map" in checkpoint.config and not trust_remote_code and not _known(kind):
            raise InputError(
                f"{stated}, which code of the checkpoint's own defines; it runs only with trust_remote_code=True"
            )
        try:
            config = AutoConfig.from_pretrained(checkpoint.location, **trusted)
            check_probeable(skeleton(config, trust_remote_code=trust_remote_code))
        except Exception as error:  # of a library that reads a file, which may say anything
            raise InputError(
                f"{stated}, which {cls.model_id} cannot probe or merge with transformers {transformers.__version__}: "
                f"{_said(error)}. Unmerged it may run as --model {WRAPPERS[cls.model_id].wrapped_id}"
            ) from error
        try:
            processor = AutoProcessor.from_pretrained(checkpoint.location, **trusted)
        except Exception as error:
            raise InputError(
                f"pretrained={checkpoint.name}: its processor cannot be loaded ({_said(error)}); are the files of "
                "tokenizer and processor there, and whole? Code of the checkpoint's own runs only with "
                "trust_remote_code=True"
            ) from error
        if not getattr(processor, "chat_template", None):
            raise InputError(
                f"{stated}, and its processor ({type(processor).__name__}) has no chat template, by which prompts are "
                "made; add chat_template.jinja to a copy of the checkpoint"
            )


def _said(error: Exception) -> str:
    if isinstance(error, ProbeError):
        return str(error)
    words = " ".join(str(error).split())
    return f"{type(error).__name__}: {words[:300]}{'...' if len(words) > 300 else ''}"


def _known(kind: Any) -> bool:
    """Whether transformers itself has a model of this type that takes images and writes text."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES

    return isinstance(kind, str) and kind in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES


@contextlib.contextmanager
def loading_by(auto_class: Any, processor_class: Any = AutoProcessor) -> Iterator[None]:
    """lmms-eval's `huggingface` class loads models with the head that writes text meanwhile.

    It looks model types up among config classes, finds none, and falls back on `AutoModel`, which leaves the head of
    every model of transformers' own away.

    Args:
        auto_class: of transformers, that loads the kind of model that is wanted.
        processor_class: likewise, that loads what makes the model's inputs.
    """
    before = stock.AutoModel, stock.AutoProcessor
    stock.AutoModel, stock.AutoProcessor = auto_class, processor_class
    try:
        yield
    finally:
        stock.AutoModel, stock.AutoProcessor = before
