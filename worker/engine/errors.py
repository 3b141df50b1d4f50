"""What can go wrong in the engine, by the code that `failure.json` carries.

EngineError                 internal
  BadInput                  bad_input       the request or its data cannot be worked on
    BadModel                bad_input       the weights are not what the family can load
  Integrity                 integrity       bytes are not the bytes that were registered
  Diverged                  diverged        a loss or gradient stopped being a number; nothing was written
  OutOfMemory               out_of_memory   retryable on a larger device
  JudgeUnfit                judge_unfit     the judge is too poor for its word to count
Stopped                     (not an error: asked to stop, step checkpoint left behind)
"""

from __future__ import annotations

import math
from typing import Any, ClassVar, Literal

from pydantic import ValidationError

from worker.contract import Failure

Code = Literal["diverged", "integrity", "bad_input", "out_of_memory", "judge_unfit", "internal"]


class EngineError(Exception):
    """Something the engine can name; `code` is what the service shows."""

    code: ClassVar[Code] = "internal"
    retryable: ClassVar[bool] = False


class BadInput(EngineError):
    """The spec or its data cannot be worked on as they are."""

    code: ClassVar[Code] = "bad_input"


class BadModel(BadInput):
    """The weights are not what the family expects: names, shapes, values or file format."""


class Integrity(EngineError):
    """Files differ from the digest under which they were registered."""

    code: ClassVar[Code] = "integrity"


class OutOfMemory(EngineError):
    """The device has too little memory for this model and batch."""

    code: ClassVar[Code] = "out_of_memory"
    retryable: ClassVar[bool] = True


class JudgeUnfit(EngineError):
    """The judge recognises too few real held-out images for its verdict on samples to mean anything."""

    code: ClassVar[Code] = "judge_unfit"


class Diverged(EngineError):
    """A loss or a gradient is NaN or infinite; raised on every rank before the weights were touched."""

    code: ClassVar[Code] = "diverged"

    def __init__(self, message: str, *, step: int, loss: float) -> None:
        super().__init__(message)
        self.step = step
        self.loss = loss


class Stopped(Exception):
    """The stage was asked to stop and left a step checkpoint; the process ends with `EXIT_STOPPED`."""


def _loss_as_json(loss: float) -> float | str:
    if math.isnan(loss):
        return "nan"
    return loss if math.isfinite(loss) else ("inf" if loss > 0 else "-inf")


def failure_of(error: BaseException) -> Failure:
    """The document that tells the conductor why a stage ended, without a traceback or a path in it."""
    if isinstance(error, Diverged):
        return Failure(code="diverged", message=str(error), step=error.step, loss=_loss_as_json(error.loss))
    if isinstance(error, EngineError):
        return Failure(code=error.code, message=str(error), retryable=error.retryable)
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":  # torch's, without importing torch
        return Failure(code="out_of_memory", message="the device ran out of memory", retryable=True)
    return Failure(code="internal", message=f"unexpected {type(error).__name__}; the log has the details")


def in_words(error: ValidationError) -> str:
    """A pydantic error as one sentence that names the fields and the rules, never the values."""
    return "; ".join(f"{'.'.join(map(str, e['loc'])) or 'value'}: {e['msg']}" for e in _plain(error))


def _plain(error: ValidationError) -> list[dict[str, Any]]:
    return [dict(e) for e in error.errors(include_url=False, include_input=False, include_context=False)]
