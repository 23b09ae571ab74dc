"""What the processes of one run must agree on, since a step is of all of them together."""

from collections.abc import Callable, Sequence
from typing import TypeVar

import jax
import numpy as np

from samjax.errors import InputError

Result = TypeVar("Result")

FAILED = 1000  # in place of a signal's number; the process that failed is added to it
SECONDS = 5.0  # about so long between two questions whether to stop: each waits for the step at hand


def gathered(values) -> np.ndarray:
    """(processes, ...): every process's numbers, the same everywhere; in float32 or int32 where there are several.

    All processes must ask at the same moment.
    """
    values = np.asarray(values)
    if jax.process_count() == 1:
        return values[None]
    from jax.experimental import multihost_utils

    return np.asarray(multihost_utils.process_allgather(values))


def attempted(work: Callable[[], Result]) -> Result:
    """work(), which all processes call and any may fail at: then all raise, the others an InputError."""
    result = error = None
    try:
        result = work()
    except BaseException as problem:  # a signal's too
        error = problem
    failed = gathered(np.int32(error is not None))
    if error is not None:
        raise error
    if failed.any():
        raise elsewhere(int(failed.argmax()))
    return result


def elsewhere(process: int) -> InputError:
    """What the others raise where one process failed."""
    return InputError(f"process {process} failed, and says why; the last checkpoint stays: the same command goes on")


def dealt(count: int) -> Sequence[int]:
    """Which of so many items are this process's."""
    return range(jax.process_index(), count, jax.process_count())


class Alarm:
    """What came to any of the processes, all of which ask before each step; they answer each other now and then."""

    def __init__(self):
        self._next = 0

    def __call__(self, step: int, number: int, pace: float | None, must: bool = False) -> int:
        """The largest number of all processes, or 0 if it is not yet time to ask.

        pace: seconds a step takes, if that is known. must: ask in any case, as all do then.
        """
        if jax.process_count() == 1:
            return number
        if step < self._next and not must:
            return 0
        numbers, paces = gathered(np.array([number, pace or SECONDS], np.float32)).T
        self._next = step + max(int(SECONDS / paces.max()), 1)
        return int(numbers.max())
