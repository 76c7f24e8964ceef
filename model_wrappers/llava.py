"""LLaVA-1.5, LLaVA-NeXT and LLaVA-OneVision in HF format."""

from __future__ import annotations

from typing import Any

from lmms_eval.models.chat.llava_hf import LlavaHf as StockChat
from lmms_eval.models.simple.llava_hf import VICUNA_CHAT_TEMPLATE
from lmms_eval.models.simple.llava_hf import LlavaHf as StockSimple

from plam_eval.harness.requests import as_message
from plam_eval.model_wrappers.hf import HFPlateauMixin
from plam_eval.model_wrappers.processors import Processor


class _TextToo(HFPlateauMixin):
    """Takes documents without an image, for which the stock loops hand an empty list to the image processor."""

    _image_processor: Any

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._image_processor = Processor(self._image_processor)


class _Text(Processor):
    """Writes messages as simple mode does: by the tokenizer's template, the user's text being a plain string."""

    def apply_chat_template(self, messages: Any, **kwargs: Any) -> Any:
        told = [{**message, "content": "".join(part["text"] for part in message["content"])} for message in messages]
        return self.tokenizer.apply_chat_template(told, **kwargs)


class _TextInSimpleMode(StockSimple):
    """The stock loop has no inputs for a document without an image, and answers from those of the document before."""

    _image_processor: Any

    def generate_until(self, requests: list[Any]) -> list[Any]:
        shows = [bool(request.args[2](self.task_dict[request.args[4]][request.args[5]][request.args[3]]))
                 for request in requests]  # fmt: skip
        answers: list[Any] = [None] * len(requests)
        for with_image, answer in ((True, super().generate_until), (False, self._text_answers)):
            numbers = [number for number, shown in enumerate(shows) if shown == with_image]
            if numbers:
                for number, text in zip(numbers, answer([requests[number] for number in numbers]), strict=True):
                    answers[number] = text
        return answers

    def _text_answers(self, requests: list[Any]) -> list[str]:
        """By the loop of chat mode, which has inputs for every document, from the prompts of simple mode."""
        self.tokenizer.chat_template = self.chat_template or self.tokenizer.chat_template or VICUNA_CHAT_TEMPLATE
        processor, self._image_processor = self._image_processor, _Text(self._image_processor)
        try:
            answers = StockChat.generate_until(self, [as_message(request) for request in requests])
        finally:
            self._image_processor = processor
        return [answer.text for answer in answers]


class PlamLlava(_TextToo, _TextInSimpleMode):
    model_id = "plam_llava"


class PlamLlavaChat(_TextToo, StockChat):
    model_id = "plam_llava"
