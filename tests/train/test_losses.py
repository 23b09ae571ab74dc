"""Losses by hand, by plain loops, and what learns from them."""

import math
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from samjax.train.losses import dice_loss, focal_loss, judge, mask_iou, most_confident
from samjax.train.recipe import Recipe

RECIPE = Recipe()
ALL, FIRST, LATER = jnp.ones(4, bool), jnp.array([False, True, True, True]), jnp.array([True, False, False, False])


def sigmoid(x):
    return 1 / (1 + math.exp(-x))


def plain_focal(logits, mask, alpha=0.25, gamma=2.0):
    total = 0.0
    for x, t in zip(logits.ravel().tolist(), mask.ravel().tolist()):
        p = sigmoid(x) if t else 1 - sigmoid(x)
        total -= (alpha if t else 1 - alpha) * (1 - p) ** gamma * math.log(p)
    return total / logits.size


def plain_dice(logits, mask):
    p = [sigmoid(x) for x in logits.ravel().tolist()]
    t = mask.ravel().tolist()
    return 1 - (2 * sum(a * b for a, b in zip(p, t)) + 1) / (sum(p) + sum(t) + 1)


@pytest.fixture
def example():
    random = np.random.default_rng(0)
    return random.normal(0, 2, (4, 6, 5)).astype(np.float32), random.random((6, 5)) < 0.4, random.random(4, np.float32)


def test_focal_by_hand():
    """p = 1/2 everywhere: a foreground pixel costs 1/4 . 1/4 . log 2, a background one 3/4 . 1/4 . log 2."""
    mask = jnp.array([[True, False]])
    np.testing.assert_allclose(focal_loss(jnp.zeros((1, 2)), mask), (1 / 16 + 3 / 16) * math.log(2) / 2, rtol=1e-6)


def test_dice_by_hand():
    """p = 1/2 on two pixels, one of them foreground: 1 - (2 . 1/2 + 1) / (1 + 1 + 1)."""
    np.testing.assert_allclose(dice_loss(jnp.zeros((1, 2)), jnp.array([[True, False]])), 1 / 3, rtol=1e-6)


@pytest.mark.parametrize("alpha, gamma", [(0.25, 2.0), (0.5, 0.0), (0.3, 1.5)])
def test_focal_against_a_loop(example, alpha, gamma):
    logits, mask, _ = example
    expected = [plain_focal(x, mask, alpha, gamma) for x in logits]
    np.testing.assert_allclose(focal_loss(jnp.array(logits), mask, alpha, gamma), expected, rtol=1e-5)


def test_dice_against_a_loop(example):
    logits, mask, _ = example
    np.testing.assert_allclose(dice_loss(jnp.array(logits), mask), [plain_dice(x, mask) for x in logits], rtol=1e-5)


def test_iou_by_hand():
    a, b = jnp.array([[1, 1, 0, 0]], bool), jnp.array([[0, 1, 1, 0]], bool)
    assert mask_iou(a, b) == pytest.approx(1 / 3) and mask_iou(a, a) == 1
    assert mask_iou(a & ~a, b & ~b) == 0


def test_losses_are_finite_with_any_logits_and_masks():
    logits = jnp.array([-1e4, -100.0, 0.0, 100.0, 1e4])[:, None, None] * jnp.ones((5, 2, 2))
    for mask in (jnp.zeros((2, 2), bool), jnp.ones((2, 2), bool)):
        for loss in (focal_loss, dice_loss):
            value, gradient = jax.value_and_grad(lambda x, loss=loss, mask=mask: loss(x, mask).sum())(logits)
            assert jnp.isfinite(value) and jnp.isfinite(gradient).all()


def test_judge_adds_twenty_to_one(example):
    logits, mask, predicted = example
    inside = jnp.ones_like(mask)
    terms = judge(RECIPE, jnp.array(logits), jnp.array(predicted), jnp.array(mask), inside, FIRST)
    totals = [20 * plain_focal(x, mask) + plain_dice(x, mask) for x in logits]
    least = 1 + int(np.argmin(totals[1:]))
    iou = [((x > 0) & mask).sum() / ((x > 0) | mask).sum() for x in logits]
    np.testing.assert_allclose(terms.loss, totals[least] + (predicted[least] - iou[least]) ** 2, rtol=1e-5)
    np.testing.assert_allclose(terms.focal, plain_focal(logits[least], mask), rtol=1e-5)
    np.testing.assert_allclose(terms.dice, plain_dice(logits[least], mask), rtol=1e-5)
    np.testing.assert_allclose(terms.iou, iou[1 + int(np.argmax(predicted[1:]))], rtol=1e-6)
    np.testing.assert_allclose(terms.oracle, max(iou[1:]), rtol=1e-6)


@pytest.mark.parametrize("allowed", [FIRST, LATER])
def test_only_the_mask_of_least_loss_learns(example, allowed):
    logits, mask, predicted = example
    logits[0] = np.where(mask, 9, -9)  # the best, but not an answer to a first prompt

    def loss(logits, predicted):
        return judge(RECIPE, logits, predicted, jnp.array(mask), jnp.ones_like(mask), allowed).loss

    by_logits, by_iou = jax.grad(loss, (0, 1))(jnp.array(logits), jnp.array(predicted))
    totals = 20 * focal_loss(jnp.array(logits), mask) + dice_loss(jnp.array(logits), mask)
    least = int(np.argmin(np.where(allowed, totals, np.inf)))
    learns = np.arange(4) == least
    assert (np.abs(by_logits).sum((1, 2)) > 0).tolist() == learns.tolist()
    assert (np.abs(by_iou) > 0).tolist() == learns.tolist()
    assert least == 0 if allowed is LATER else least > 0


def test_the_score_head_may_learn_from_all(example):
    logits, mask, predicted = example
    recipe = replace(RECIPE, iou_of="all")
    loss = lambda p: judge(recipe, jnp.array(logits), p, jnp.array(mask), jnp.ones_like(mask), FIRST)
    iou = np.array([((x > 0) & mask).sum() / ((x > 0) | mask).sum() for x in logits])
    np.testing.assert_allclose(loss(predicted).iou_loss, ((predicted - iou)[1:] ** 2).mean(), rtol=1e-5)
    gradient = jax.grad(lambda p: loss(p).loss)(jnp.array(predicted))
    np.testing.assert_allclose(gradient, np.where(FIRST, 2 * (predicted - iou) / 3, 0), rtol=1e-4, atol=1e-7)


def test_iou_is_of_the_picture_alone(example):
    logits, mask, predicted = example
    inside = jnp.arange(6)[:, None] < jnp.full((1, 5), 4)
    terms = judge(RECIPE, jnp.array(logits), jnp.array(predicted), jnp.array(mask), inside, LATER)
    a, b = logits[0, :4] > 0, mask[:4]
    np.testing.assert_allclose(terms.iou, (a & b).sum() / (a | b).sum(), rtol=1e-6)


def test_most_confident_is_an_allowed_one():
    predicted = jnp.array([9.0, 0.1, 0.3, 0.2])
    assert most_confident(predicted, FIRST) == 2 and most_confident(predicted, LATER) == 0
    assert most_confident(-predicted, FIRST) == 1
