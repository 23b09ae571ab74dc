"""What the processes of one run must agree on, since a step is of all of them together."""

from collections.abc import Sequence

import jax
import numpy as np

EVERY = 10  # steps between two questions whether to stop: each waits for the step at hand


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
