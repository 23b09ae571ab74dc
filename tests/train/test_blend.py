"""Mixtures of tuned parameters and those they began from."""

import numpy as np
import pytest

from samjax.train.blend import SHARES, SLACK, blend, choose


def test_on_the_line_and_what_is_equal_stays_to_the_bit():
    random = np.random.default_rng(0)
    before = {"a": random.normal(size=(3, 4)).astype(np.float32), "b": np.float32([0.1, 0.2])}
    after = {"a": before["a"] + np.float32(1), "b": before["b"].copy()}
    for share in (*SHARES, 1.0):
        mixed = blend(before, after, share)
        np.testing.assert_allclose(mixed["a"], before["a"] + share, atol=1e-6)
        np.testing.assert_array_equal(mixed["b"], before["b"])
        assert all(value.dtype == np.float32 for value in mixed.values())
    np.testing.assert_array_equal(blend(before, after, 1.0)["a"], after["a"])


BOTH = ("point", "box")


def chosen(rows: dict, kinds=BOTH) -> float:
    """rows: share -> (point, box)."""
    scores = {share: {"point": point, "box": box, "score": (point + box) / 2} for share, (point, box) in rows.items()}
    asked = []
    share = choose(scores[1], lambda share: asked.append(share) or scores[share], kinds)
    assert tuple(asked) == (*SHARES, 0.0) and SLACK == 1.0
    return share


@pytest.mark.parametrize("scores, kept", [
    ({1: 60.0, 0.75: 59.9, 0.5: 59.1, 0.25: 50.0}, 0.5),  # 0.5 costs less than a point
    ({1: 60.0, 0.75: 58.9, 0.5: 57.0, 0.25: 50.0}, 1.0),
    ({1: 60.0, 0.75: 62.0, 0.5: 61.5, 0.25: 60.5}, 0.5),  # the best is not the whole way
    ({1: 60.0, 0.75: 55.0, 0.5: 50.0, 0.25: 59.5}, 0.25),
])
def test_the_least_share_that_costs_little(scores, kept):
    assert chosen({share: (value, value) for share, value in scores.items()} | {0: (40.0, 40.0)}) == kept


@pytest.mark.parametrize("kinds, kept", [(BOTH, 0.5), (("point",), 1.0), (("box",), 0.5)])
def test_no_kind_of_prompt_that_was_trained_gets_worse_where_that_can_be(kinds, kept):
    rows = {1: (60, 72), 0.75: (57, 72.5), 0.5: (54, 74.1), 0.25: (47, 75), 0: (40, 74)}
    assert chosen(rows, kinds) == kept


def test_boxes_worse_at_every_share_leave_the_choice_to_the_score():
    assert chosen({1: (60, 72), 0.75: (58, 71), 0.5: (50, 70), 0.25: (47, 70), 0: (40, 74)}) == 1.0
