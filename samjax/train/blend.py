"""Part of the way back: a tuned model's parameters mixed with those it began from (WiSE-FT of Wortsman et al., 2022).

A model that has seen little of one kind of picture may have moved farther than it had to. Somewhere on the straight
line to where it began it can be as good on that kind, and has forgotten less of all others (experiments/finetune.py).
"""

from collections.abc import Callable, Mapping

import numpy as np

SHARES = (0.75, 0.5, 0.25)  # of the tuned parameters, that are tried
SLACK = 1.0  # points of the score that less forgetting may cost


def blend(before: Mapping[str, np.ndarray], after: Mapping[str, np.ndarray], share: float) -> dict[str, np.ndarray]:
    """path -> array: before + share (after - before); what is the same stays as it is, to the bit."""
    return {path: value if before[path] is value or np.array_equal(before[path], value)
            else ((1 - share) * before[path] + share * value).astype(value.dtype) for path, value in after.items()}


def choose(whole: float, score: Callable[[float], float]) -> float:
    """The share to be kept: the least whose score is within SLACK of the best.

    whole: the score of the tuned parameters themselves. score(share) is asked for SHARES, in turn.
    """
    scores = {1.0: whole} | {share: score(share) for share in SHARES}
    enough = max(scores.values()) - SLACK
    return min(share for share, value in scores.items() if value >= enough)
