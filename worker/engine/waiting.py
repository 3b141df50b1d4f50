"""How long a thread spins at a barrier before it sleeps. Read when torch loads, so it is in the environment before.

A thread that spins for one that has no core keeps it from getting one: with a single busy neighbour on two cores, small
networks ran 7 times slower than with sleeping threads. But a short spin, of some microseconds, spares the wake-up where a core
is free: a small network takes three quarters of the time a step on two idle cores, 1.3 times as long beside a busy neighbour.
"""

from __future__ import annotations

from collections.abc import Mapping

WAITING: Mapping[str, str] = {"OMP_WAIT_POLICY": "passive", "GOMP_SPINCOUNT": "3000"}
"""Environment variables, for what nobody has set. The second is libgomp's alone."""
