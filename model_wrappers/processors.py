"""What makes a model's inputs of texts and images, watched: kept for a replay, noted, or without what is empty."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

from transformers import ProcessorMixin


def is_processor(value: Any) -> bool:
    """Whether an attribute of a stock wrapper is what makes a model's inputs of texts and images.

    Args:
        value: of the attribute.
    """
    return isinstance(value, (ProcessorMixin, Processor))


class Processor:
    """An HF processor that is handed the media of a call alone.

    Stock loops pass lists of images with every call, empty ones for a document of text alone, which the image
    processors of transformers do not take; and one of them names audios in a way that transformers refuses.

    Args:
        processor: the HF processor, which has every other attribute that is asked for.
    """

    def __init__(self, processor: Any) -> None:
        self._processor = processor

    def __getattr__(self, name: str) -> Any:
        if name == "_processor":  # of a copy that is being made, which has nothing yet
            raise AttributeError(name)
        return getattr(self._processor, name)

    def __call__(self, *args: Any, images: Any = None, videos: Any = None, audios: Any = None, **kwargs: Any) -> Any:
        media = {"images": images, "videos": videos, "audio": audios}
        return self._processor(*args, **kwargs, **{name: given for name, given in media.items() if given})


class Processed:
    """What processors made of their inputs, in the order of the calls."""

    def __init__(self) -> None:
        self._results: list[Any] = []
        self._next: int | None = None  # of a replay; None while results are being made

    def replay(self) -> None:
        """From here on, calls get what earlier ones got, from the first one on."""
        self._next = 0

    def result_of(self, process: Callable[[], Any]) -> Any:
        """What a call gets: what `process` makes, or, in a replay, what it made for the call of the same number.

        Args:
            process: makes the inputs.
        """
        if self._next is None:
            self._results.append(process())
            return copy.copy(self._results[-1])
        self._next += 1
        return copy.copy(self._results[self._next - 1])


class Noting(Processor):
    """A processor that notes the texts it is given.

    Args:
        processor: the one that makes the inputs.
        texts: are added to here.
    """

    def __init__(self, processor: Any, texts: list[str]) -> None:
        super().__init__(processor)
        self._texts = texts

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        text = kwargs.get("text")
        self._texts += [text] if isinstance(text, str) else text or []
        return self._processor(*args, **kwargs)


class Remembering:
    """A processor whose results are kept, and given again in a replay.

    Args:
        processor: the one that makes the inputs.
        processed: its results, kept with those of a wrapper's other processors.
    """

    def __init__(self, processor: Any, processed: Processed) -> None:
        self._processor, self._processed = processor, processed

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._processed.result_of(lambda: self._processor(*args, **kwargs))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._processor, name)
