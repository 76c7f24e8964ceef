"""The errors of evaluations and of what they leave."""

from __future__ import annotations

import json

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


_LONGEST_REASON = 300


def why_no_sample(error: Exception) -> str:
    """In words why a line of a sample log is none; without the line, which may be as long as a file.

    Args:
        error: what reading it raised.
    """
    if isinstance(error, UnicodeDecodeError):
        return f"it is not UTF-8 (byte {error.start}: {error.reason}); copy it again, or run again"
    if isinstance(error, KeyError):
        return f"it has no {error.args[0]}; expected a log of --log_samples"
    if isinstance(error, json.JSONDecodeError):
        return f"it is not JSON ({error.msg} at character {error.pos}); copy it again, or run again"
    return str(error)[:_LONGEST_REASON]
