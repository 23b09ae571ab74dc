"""The simulated annotator: where its clicks fall, what they say, and when there are none."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import SMALL_VIT
from scipy.stats import chisquare, kstest

from samjax.train import simulate
from samjax.train.recipe import MASK_GENERATION, Recipe

CONFIG, RECIPE = SMALL_VIT, Recipe()  # a frame of 64 x 96 pixels, grids of 16 x 24 cells of 4 x 4 pixels
GRID, SIZE = CONFIG.mask_size, jnp.array([50, 96])
INSIDE = simulate.inside_picture(CONFIG, GRID, SIZE)
KEYS = jax.random.split(jax.random.key(1), 4000)


def blob(*, rows, columns, grid=GRID):
    mask = np.zeros(grid, bool)
    mask[rows, columns] = True
    return jnp.array(mask)


MASK = blob(rows=slice(3, 10), columns=slice(5, 18)) & ~blob(rows=slice(5, 7), columns=slice(8, 12))


def first(recipe, mask=MASK, keys=KEYS, inside=INSIDE, size=SIZE):
    prompt = lambda key: simulate.first_prompt(CONFIG, recipe, key, mask, inside, size)
    return jax.tree.map(np.asarray, jax.jit(jax.vmap(prompt))(keys))


def cells(points):
    """(row, column) of the cells that pixels lie in."""
    return points[..., 1].astype(int) // 4, points[..., 0].astype(int) // 4


def uniform(points, region):
    """p-value of the points' cells being uniform in the region, none of them outside."""
    counts = np.zeros(region.shape, int)
    np.add.at(counts, cells(points), 1)
    assert not counts[~region].any()
    return chisquare(counts[region]).pvalue


def test_inside_counts_cells_by_their_centres():
    assert np.asarray(INSIDE).sum(0)[0] == 12  # centres 2, 6 ... 46 lie above 50; the next, 50, does not
    assert np.asarray(INSIDE).all(0).sum() == 0 and np.asarray(INSIDE).any(0).all()


def test_first_points_are_uniform_in_the_mask():
    points, labels = first(replace(RECIPE, boxes=0.0))
    assert (labels == [1, -1] + [-2] * 8).all() and labels.shape == (4000, 10)
    assert uniform(points[:, 0], np.asarray(MASK)) > 1e-3
    assert (points == np.floor(points)).all()
    inside_cell = (points[:, 0] % 4).astype(int)
    assert chisquare(np.bincount(inside_cell @ [1, 4], minlength=16)).pvalue > 1e-3


def test_points_do_not_fall_beside_the_picture():
    """A mask that reaches into the padding, and a cell that the picture's edge cuts through."""
    points, _ = first(replace(RECIPE, boxes=0.0), blob(rows=slice(10, 16), columns=slice(20, 24)))
    assert points[:, 0, 1].max() == 47 and points[:, 0, 1].min() == 40
    size = jnp.array([47, 95])
    inside = simulate.inside_picture(CONFIG, GRID, size)
    points, _ = first(replace(RECIPE, boxes=0.0), blob(rows=11, columns=23), inside=inside, size=size)
    assert points[:, 0].max(0).tolist() == [94, 46] and points[:, 0].min(0).tolist() == [92, 44]


def test_finer_masks_give_finer_points():
    mask = blob(rows=33, columns=70, grid=CONFIG.image_size)
    inside = simulate.inside_picture(CONFIG, CONFIG.image_size, SIZE)
    points, _ = first(replace(RECIPE, boxes=0.0), mask, inside=inside)
    assert (points[:, 0] == [70, 33]).all()


def test_even_odds_of_points_and_boxes():
    _, labels = first(RECIPE)
    boxes = (labels[:, 0] == 2).sum()
    assert abs(boxes - 2000) < 4 * np.sqrt(1000)
    assert (labels[:, :2][labels[:, 0] == 2] == [2, 3]).all()
    assert (first(MASK_GENERATION)[1][:, 0] == 1).all()


def test_the_masks_box_in_pixels():
    np.testing.assert_array_equal(simulate.mask_box(CONFIG, MASK), [5 * 4, 3 * 4, 18 * 4, 10 * 4])


def test_box_noise_is_a_tenth_of_the_side():
    """In a frame so large that nothing is cut off."""
    config = replace(CONFIG, image_size=(4096, 4096))
    mask = blob(rows=slice(100, 110), columns=slice(400, 440), grid=config.mask_size)
    noisy = lambda key: simulate.noisy_box(config, RECIPE, key, mask, jnp.array([4096, 4096]))
    noise = np.asarray(jax.vmap(noisy)(KEYS)) - np.array([[1600, 400], [1760, 440]])
    for axis, side in ((0, 160), (1, 40)):
        for corner in (0, 1):
            assert kstest(noise[:, corner, axis] / (0.1 * side), "norm").pvalue > 1e-3


def test_box_noise_ends_at_twenty_pixels():
    config = replace(CONFIG, image_size=(1024, 1024))
    mask = blob(rows=slice(100, 150), columns=slice(50, 206), grid=config.mask_size)  # sides of 200 and 624 pixels
    noisy = lambda key: simulate.noisy_box(config, RECIPE, key, mask, jnp.array([1024, 1024]))
    noise = np.asarray(jax.vmap(noisy)(KEYS)) - np.array([[200, 400], [824, 600]])
    assert np.abs(noise).max() == 20
    assert (np.abs(noise[..., 0]) == 20).mean() > 0.7  # sigma 62: three quarters lie beyond
    assert 0.2 < (np.abs(noise[..., 1]) == 20).mean() < 0.45  # sigma 20: a third


def test_boxes_stay_in_the_picture_and_in_order():
    points, labels = first(replace(RECIPE, boxes=1.0), blob(rows=slice(0, 16), columns=slice(0, 24)))
    assert (labels[:, :2] == [2, 3]).all()
    boxes = points[:, :2].reshape(-1, 4)
    assert (boxes >= 0).all() and (boxes[:, [0, 2]] <= 96).all() and (boxes[:, [1, 3]] <= 50).all()
    assert (boxes[:, 0] < boxes[:, 2]).all() and (boxes[:, 1] < boxes[:, 3]).all()


def test_an_empty_mask_gets_no_foreground_point():
    for boxes in (0.0, 1.0):
        points, labels = first(replace(RECIPE, boxes=boxes), jnp.zeros(GRID, bool), KEYS[:8])
        assert (labels == [-2, -1] + [-2] * 8).all() and np.isfinite(points).all()


@pytest.mark.parametrize("misses, alarms", [(True, False), (False, True), (True, True)])
def test_corrections_are_uniform_in_the_error_and_say_which(misses, alarms):
    missed = MASK & blob(rows=slice(3, 6), columns=slice(5, 12)) if misses else MASK & ~MASK
    false = ~MASK & INSIDE & blob(rows=slice(9, 16), columns=slice(2, 9)) if alarms else MASK & ~MASK
    prediction = (MASK & ~missed) | false | ~INSIDE  # errors in the padding do not count
    empty = jnp.zeros((10, 2)), jnp.full(10, -2)

    @jax.jit
    @jax.vmap
    def correct(key):
        return simulate.correct(CONFIG, key, *empty, 4, MASK, prediction, INSIDE, SIZE)

    points, labels = jax.tree.map(np.asarray, correct(KEYS))
    assert uniform(points[:, 4], np.asarray(missed | false)) > 1e-3
    row, column = cells(points[:, 4])
    assert (labels[:, 4] == np.asarray(missed)[row, column]).all()
    assert (np.delete(labels, 4, 1) == -2).all() and not np.delete(points, 4, 1).any()


def test_a_perfect_prediction_gets_no_point():
    points, labels = jnp.ones((10, 2)), jnp.array([1, -1] + [-2] * 8)
    _, after = simulate.correct(CONFIG, KEYS[0], points, labels, 2, MASK, MASK | ~INSIDE, INSIDE, SIZE)
    np.testing.assert_array_equal(after, labels)


@pytest.mark.parametrize("recipe", [RECIPE, MASK_GENERATION, replace(RECIPE, points=1), replace(RECIPE, refinements=1),
                                    replace(RECIPE, refinements=0, points=3), replace(RECIPE, points=1, refinements=0)])
def test_the_pattern_of_rounds(recipe):
    """Every slot is filled once and in order; one round without a point is last, the other at any place before."""
    plains = np.unique(jax.vmap(lambda key: simulate.plain_round(recipe, key))(KEYS))
    assert plains.tolist() == list(range(1, recipe.points + 1))
    for plain in plains:
        slots = [int(simulate.point_slot(recipe, jnp.array(plain), jnp.array(i))) for i in range(recipe.rounds)]
        given = [slot for slot in slots if slot <= recipe.points]
        assert given == list(range(2, recipe.points + 1))
        assert slots[0] > recipe.points
        if recipe.refinements:
            assert slots[-1] > recipe.points
        if recipe.refinements == 2:
            assert slots[plain] > recipe.points


def test_plain_rounds_are_uniform():
    plains = np.asarray(jax.vmap(lambda key: simulate.plain_round(RECIPE, key))(KEYS))
    assert chisquare(np.bincount(plains)[1:]).pvalue > 1e-3


def test_a_cell_more_seldom_changes_the_draw():
    region = np.asarray(MASK)
    more = region.copy()
    more[0, 0] = True
    draw = lambda region: jax.vmap(lambda key: simulate.uniform_cell(key, jnp.array(region)))(KEYS)
    (row, column), (row2, column2) = draw(region), draw(more)
    changed = np.mean((row != row2) | (column != column2))
    assert changed < 3 / region.sum()
