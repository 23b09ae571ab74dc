"""What the processes of one run must agree on, since a step is of all of them together."""

from collections.abc import Sequence

import jax
import numpy as np

SECONDS = 5.0  # about so long between two questions whether to stop: each waits for the step at hand


def gathered(values) -> np.ndarray:
    """(processes, ...): every process's numbers, the same everywhere. All processes must ask at the same moment."""
    values = np.asarray(values)
    if jax.process_count() == 1:
        return values[None]
    from jax.experimental import multihost_utils

    return np.asarray(multihost_utils.process_allgather(values))


def dealt(count: int) -> Sequence[int]:
    """Which of so many items are this process's."""
    return range(jax.process_index(), count, jax.process_count())


class Alarm:
    """What came to any of the processes, all of which ask before each step; they answer each other now and then."""

    def __init__(self):
        self._next = 0

    def __call__(self, step: int, number: int, pace: float | None) -> int:
        """The largest number of all processes, or 0 if it is not yet time to ask. pace: seconds a step takes, if that
        is known."""
        if jax.process_count() == 1:
            return number
        if step < self._next:
            return 0
        numbers, paces = gathered(np.array([number, pace or SECONDS], np.float32)).T
        self._next = step + max(int(SECONDS / paces.max()), 1)
        return int(numbers.max())
