"""The errors of evaluations and of what they leave."""

from __future__ import annotations

from plam_eval.errors import PlamError


class EvaluationError(PlamError, RuntimeError):
    """An evaluation that has no results worth keeping; the message says what failed and what to do."""


class TaskNameError(EvaluationError):
    """A task or group that is not known; the message has the near names."""


class GenerationError(EvaluationError):
    """More generations raised than `max_error_share` allows."""


class RecordError(PlamError, ValueError):
    """A folder that holds no readable run; the message names the file and what was expected in it."""


class NoScoreError(PlamError, ValueError):
    """No score of a document is known for a task; the message says what there was instead."""
