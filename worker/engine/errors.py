"""What can go wrong in the engine, by the code that `failure.json` carries.

EngineError                 internal
  BadInput                  bad_input       the request or its data cannot be worked on
    BadModel                bad_input       the weights are not what the family can load
  Integrity                 integrity       bytes are not the bytes that were registered
  Diverged                  diverged        a loss or gradient stopped being a number; nothing was written
  OutOfMemory               out_of_memory   retryable on a larger device
  JudgeUnfit                judge_unfit     the judge is too poor for its word to count
(a peer that died)          rank_lost       retryable; torch.distributed's own errors, seen by the ranks that are left
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


_TORCH_WITHOUT_A_CLASS = (
    "DefaultCPUAllocator: can't allocate memory",
    "DefaultCPUAllocator: not enough memory",
    "CUDA error: out of memory",
)
"""What torch says in a bare RuntimeError: on a CPU always, on a GPU where others leave no room for so much as a context."""


def is_out_of_memory(error: BaseException) -> bool:
    """Did a device or this host run out of memory? A larger one may succeed, so nobody is to blame."""
    # torch's own class goes by its name: whoever reads this file need not import torch.
    if isinstance(error, (OutOfMemory, MemoryError)) or type(error).__name__ == "OutOfMemoryError":
        return True
    return isinstance(error, RuntimeError) and any(words in str(error) for words in _TORCH_WITHOUT_A_CLASS)


_PEER_IS_GONE = ("connection closed by peer", "connection reset", "broken pipe", "timed out", "socket", "nccl")
"""What gloo and NCCL say, in any case of letters, in a bare RuntimeError when a peer does not answer."""


def is_rank_lost(error: BaseException) -> bool:
    """Did a collective fail because a peer is gone? To be asked only where there are peers."""
    if any(kind.__name__ == "DistError" and kind.__module__.startswith("torch") for kind in type(error).__mro__):
        return True
    return type(error) is RuntimeError and any(words in str(error).lower() for words in _PEER_IS_GONE)


def _loss_as_json(loss: float) -> float | str:
    if math.isnan(loss):
        return "nan"
    return loss if math.isfinite(loss) else ("inf" if loss > 0 else "-inf")


def failure_of(error: BaseException, *, world: int = 1) -> Failure:
    """The document that tells the conductor why a stage of `world` ranks ended, without a traceback or a path in it."""
    if isinstance(error, Diverged):
        return Failure(code="diverged", message=str(error), step=error.step, loss=_loss_as_json(error.loss))
    if isinstance(error, EngineError):
        return Failure(code=error.code, message=str(error), retryable=error.retryable)
    if is_out_of_memory(error):
        return Failure(code="out_of_memory", message="the device ran out of memory", retryable=True)
    if world > 1 and is_rank_lost(error):
        message = f"expected {world} ranks to answer, one no longer does"
        return Failure(code="rank_lost", message=message, retryable=True)
    return Failure(code="internal", message=f"unexpected {type(error).__name__}; the log has the details")


def in_words(error: ValidationError) -> str:
    """A pydantic error as one sentence that names the fields and the rules, never the values."""
    return "; ".join(f"{'.'.join(map(str, e['loc'])) or 'value'}: {e['msg']}" for e in _plain(error))


def _plain(error: ValidationError) -> list[dict[str, Any]]:
    return [dict(e) for e in error.errors(include_url=False, include_input=False, include_context=False)]
