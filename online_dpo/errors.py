"""The one exception hierarchy. Every message names the field or file, the value found and the remedy.

`UserError` and its children are for the user to fix: the command line prints the message alone and exits with 2.
Everything else exits with 1. All are built from one string, so they survive pickling between Ray processes.
"""

from __future__ import annotations


class OnlineDPOError(Exception):
    """Base of everything that this project raises on purpose."""


class UserError(OnlineDPOError, ValueError):
    """Something the user can fix: the message says what and how."""


class ConfigError(UserError):
    """A config field is unknown, out of range, or at odds with another field."""


class DataError(UserError):
    """A prompt source is missing, malformed or unusable."""


class ModelError(UserError):
    """A model or adapter folder is missing, incomplete or does not fit the config."""


class JudgeError(UserError):
    """A judge cannot be loaded, or does not keep its contract."""


class JudgingStopped(UserError):
    """A judge may or can go on no more: its budget is spent, or its endpoint refuses it. What it said is committed."""


class AnswersMissing(OnlineDPOError):
    """People have not answered yet, and the run is not to wait for them: it ends, and nothing went wrong."""


class LowCoverageError(UserError):
    """A round's judge covers too few of its prompts. What it said is committed, and failed calls can be repeated."""


class NoPairsError(UserError):
    """A round produced no pair at all; the message carries the counts of every reason."""


class RunDirectoryError(UserError):
    """A run directory cannot be used: another format, in use, read-only, full, or of another run."""


class CorruptionError(RunDirectoryError):
    """A committed file does not match the sha256 that was committed with it."""


class WeightMismatchError(OnlineDPOError, RuntimeError):
    """Generator and learner do not hold the same weights (DESIGN invariant 2)."""


class TrainingError(OnlineDPOError, RuntimeError):
    """The update cannot go on: a loss or gradient is not finite."""


class ActorError(OnlineDPOError, RuntimeError):
    """An actor died or could not be placed; the message ends with its last lines."""


class ShapeError(OnlineDPOError, ValueError):
    """Tensors that must agree in shape do not."""


def first_line(error: Exception) -> str:
    """The first line of somebody else's error, for a message of ours; the error's type if it has no text.

    A line that ends in a colon says nothing yet: the next one is taken along.
    """
    lines = [line.strip() for line in str(error).strip().splitlines()] or [type(error).__name__]
    return " ".join(lines[:2]) if lines[0].endswith(":") else lines[0]
