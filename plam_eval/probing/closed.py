"""Which text an image is closed to, for code and for readers. No model, no torch."""

from __future__ import annotations

from typing import Literal

ClosedTo = Literal["text", "question", "last"]
"""Whose rows an image is closed to: all text, text of the prompt but its last token, or that token and what follows."""

READERS: dict[ClosedTo, str] = {"text": "text", "question": "the question", "last": "the last token"}
"""The same in words: who reads the image no longer."""
