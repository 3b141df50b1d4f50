"""What can go wrong with a store, by what a caller can do about it.

StoreError
├── Missing            no object has this name
├── Corrupt            bytes that do not hash to their name
├── StoreUnavailable   no answer, or a passing one: another attempt may meet a store that works
└── StoreRefused       it answers and will not: full, read-only, no permission, no such bucket
"""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager


class StoreError(Exception):
    """The store cannot do what was asked."""


class Missing(StoreError):
    """No object has this name."""


class Corrupt(StoreError):
    """An object's bytes do not hash to its name."""


class StoreUnavailable(StoreError):
    """The store does not answer, or not now."""


class StoreRefused(StoreError):
    """The store answers, and will not do it."""


REFUSALS = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.EFBIG})


@contextmanager
def named(what: str) -> Iterator[None]:
    """Errors of the operating system as errors of the store. Their text names the deed and the cause, never a path."""
    try:
        yield
    except FileNotFoundError as error:
        raise Missing(f"{what}: there is no such object") from error
    except OSError as error:
        kind = StoreRefused if error.errno in REFUSALS else StoreUnavailable
        cause = errno.errorcode.get(error.errno, str(error.errno)) if error.errno is not None else type(error).__name__
        raise kind(f"{what}: {cause}") from error
