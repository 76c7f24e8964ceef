"""LLMs of text alone: the base LLM of an MLLM, asked as the MLLM is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lmms_eval.models.chat import huggingface as stock
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from plam_eval.errors import ArgumentError, InputError, first_line
from plam_eval.files import read_at_most
from plam_eval.harness.requests import as_message
from plam_eval.merging.checkpoint import Checkpoint
from plam_eval.model_wrappers.generic import loading_by
from plam_eval.model_wrappers.hf import HFPlateauMixin
from plam_eval.model_wrappers.processors import Processor

OWN, NONE = "own", "none"
"""Of `chat_template`: the tokenizer's own, and the text as it is."""
_LARGEST_TEMPLATE = 1 << 20


class _TextMixin(HFPlateauMixin):
    """Merges and counts as every wrapper does. Documents with an image are refused: nothing here could see one.

    Arguments it takes from model_args beside those of `HFPlateauMixin`:

    - `chat_template`: a file with the template (Jinja), "none" for the text as it is; default "own": the tokenizer's
      own, or, where it has none, the text as it is.
    - `max_new_tokens`: the limit where a task sets none; default 1024.
    - `until`: whether answers end at the task's stop strings (but for an empty line), as in the simple mode of the Qwen
      wrappers; default false, as in chat mode.
    """

    processor: Any

    def __init__(
        self,
        *args: Any,
        chat_template: str | None = None,
        max_new_tokens: int = 1024,
        until: bool = False,
        **kwargs: Any,
    ) -> None:
        with loading_by(AutoModelForCausalLM, AutoTokenizer):
            super().__init__(*args, **kwargs)
        self.max_new_tokens, self.until = max_new_tokens, until
        self.tokenizer.padding_side = "left"  # answers are generated behind the prompt
        if self.tokenizer.pad_token_id is None:
            self.tokenizer.pad_token = self.tokenizer.eos_token
        self.template = _read_template(chat_template, self.tokenizer)
        self.processor = TextProcessor(self.tokenizer, self.template)
        given = {"chat_template": self.template or NONE, "max_new_tokens": max_new_tokens, "until": until}
        self._arguments |= {key: str(value) for key, value in given.items()}

    def run_record(self, records: list[dict[str, Any]]) -> dict[str, Any]:
        """Our block of a results JSON, with whether the tokenizer has a chat template of its own.

        Args:
            records: of the generations, from all processes.
        """
        return {**super().run_record(records), "own_template": bool(self.tokenizer.chat_template)}

    @classmethod
    def check(cls, pretrained: str | None = None, **kwargs: Any) -> Any:
        """As `HFPlateauMixin.check`, with the arguments of this class.

        Args:
            pretrained: folder or hub id.
            kwargs: the others.

        Raises:
            What that raises. ArgumentError, InputError: one of this class.
        """
        own = {key: kwargs.pop(key) for key in ("chat_template", "max_new_tokens", "until") if key in kwargs}
        limit = own.get("max_new_tokens", 1)
        if not isinstance(limit, int) or isinstance(limit, bool) or limit < 1:
            raise ArgumentError(f"max_new_tokens is {limit!r}; expected a whole number, at least 1")
        if not isinstance(own.get("until", False), bool):
            raise ArgumentError(f"until is {own['until']!r}; expected true or false")
        template = own.get("chat_template")
        if template not in (None, OWN, NONE) and not Path(str(template)).is_file():
            raise InputError(f"chat_template is {template!r}: no such file; expected one, {OWN}, or {NONE}")
        return super().check(pretrained, **kwargs)

    @classmethod
    def _check_checkpoint(cls, checkpoint: Checkpoint, trust_remote_code: bool) -> None:
        kind = checkpoint.config.get("model_type")
        stated = f"pretrained={checkpoint.name}: its config.json says model_type {kind!r}"
        if "vision_config" in checkpoint.config:
            raise InputError(f"{stated} and has a vision_config; {cls.model_id} loads LLMs of text alone")
        if kind not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES and not (
            trust_remote_code and "auto_map" in checkpoint.config
        ):
            raise InputError(
                f"{stated}, which transformers has no causal language model of; {cls.model_id} loads LLMs of text alone"
            )

    def _watched_generate(self, *args: Any, **kwargs: Any) -> Any:
        """Ends at whatever the checkpoint says ends an answer: the stock loop names the tokenizer's token alone."""
        ends = [kwargs.get("eos_token_id"), self.model.generation_config.eos_token_id]
        ids = {one for each in ends if each is not None for one in (each if isinstance(each, list) else [each])}
        return super()._watched_generate(*args, **{**kwargs, "eos_token_id": sorted(ids) or None})


class _Loop(stock.Huggingface):
    """The stock loop, with the wrapper's limit where a task has none, and stop strings where they are wanted."""

    max_new_tokens: int
    until: bool

    def generate_until(self, requests: list[Any]) -> list[Any]:
        asked = [as_message(request) for request in requests] if self.is_simple else requests
        stops = []
        for request in asked:
            settings = request.args[2]
            stops.append(settings.get("until") or [])
            settings.setdefault("max_new_tokens", self.max_new_tokens)
        answers = super().generate_until(asked)
        if self.until:
            for answer, stop in zip(answers, stops, strict=True):
                for text in [stop] if isinstance(stop, str) else stop:
                    if text and text != "\n\n":
                        answer.text = answer.text.split(text)[0]
        return list(answers)


class PlamText(_TextMixin, _Loop):
    model_id = "plam_text"
    is_simple = True


class PlamTextChat(_TextMixin, _Loop):
    model_id = "plam_text"


class TextProcessor(Processor):
    """A tokenizer in the place of a processor: prompts by a template, and no images.

    Args:
        tokenizer: of the LLM.
        template: Jinja, for conversations; None for the text as it is.
    """

    def __init__(self, tokenizer: Any, template: str | None) -> None:
        super().__init__(tokenizer)
        self._template = template

    def apply_chat_template(self, messages: Any, **kwargs: Any) -> str:
        """A conversation as the prompt that is tokenized.

        Args:
            messages: of one conversation, contents as lists of parts.
            kwargs: as the tokenizer's function of this name takes them.

        Raises:
            InputError: a part is no text.
        """
        told = [{**message, "content": _text(message["content"])} for message in messages]
        if self._template is None:
            return "\n\n".join(str(message["content"]) for message in told)
        return str(self._processor.apply_chat_template(told, chat_template=self._template, **kwargs))

    def __call__(self, text: Any, **kwargs: Any) -> Any:
        if any(kwargs.pop(name, None) for name in ("images", "videos", "audios")):
            raise InputError(_NO_IMAGES)
        start = self._processor.bos_token
        texts = [text] if isinstance(text, str) else text
        added = not (start and all(each.startswith(start) for each in texts))
        return self._processor(texts, add_special_tokens=added, return_token_type_ids=False, **kwargs)


_NO_IMAGES = "a document shows an image, and an LLM of text alone cannot look at it; give tasks of text alone"


def _text(content: Any) -> str:
    if isinstance(content, str):
        return content
    if any(part.get("type") != "text" for part in content):
        raise InputError(_NO_IMAGES)
    return "".join(str(part["text"]) for part in content)


def _read_template(given: str | None, tokenizer: Any) -> str | None:
    """The template that is asked for; None where texts are to stay as they are."""
    if given in (None, OWN):
        return tokenizer.chat_template or None
    if given == NONE:
        return None
    file = Path(str(given))
    try:
        text = read_at_most(file, _LARGEST_TEMPLATE, "give a template").decode("utf-8")
        tokenizer.apply_chat_template([{"role": "user", "content": "."}], chat_template=text, tokenize=False)
    except Exception as error:  # of a template, which may say anything
        raise InputError(f"chat_template {file} cannot be used: {first_line(error)}") from error
    return text
