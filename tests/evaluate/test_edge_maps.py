"""Edge maps: Canny's against plain hysteresis, SAM's against whole masks, on pictures whose edges are known."""

import numpy as np
import pytest
from conftest import SMALL_VIT
from plain import flood
from scipy import ndimage
from scipy.special import expit

from samjax.errors import InputError
from samjax.evaluate.edge_maps import canny, of_masks, outer_steepness, ridges, sam_edges, sobel
from samjax.evaluate.edges import thresholds
from samjax.geometry import logits_to_image
from samjax.predict import Sam

HW = 50, 70


def disc(radius, centre, hw):
    """Logits of a disc, positive inside."""
    y, x = np.mgrid[: hw[0], : hw[1]]
    return (radius - np.hypot(y - centre[0], x - centre[1])).astype(np.float32)


def grey(values):
    return np.repeat((255 * values).astype(np.uint8)[..., None], 3, axis=-1)


@pytest.mark.parametrize("angle", range(0, 180, 20))
def test_a_step_is_found_where_it_is(angle):
    """In any direction: a line no wider than two pixels, at the step, in one piece, weaker for less contrast."""
    y, x = np.mgrid[-40:41, -40:41]
    across = x * np.cos(np.radians(angle)) + y * np.sin(np.radians(angle))
    for find in (sobel, canny):
        strong, weak = (find(grey(0.2 + contrast * (across > 0.3)))[10:-10, 10:-10] for contrast in (0.6, 0.2))
        inside = across[10:-10, 10:-10]
        assert np.abs(inside[strong > 0]).max() <= 1.6
        assert (strong > 0).sum() <= 2 * 61 * 1.5 and ndimage.label(strong > 0, np.ones((3, 3)))[1] == 1
        assert strong.max() > 2 * weak.max() > 0
        assert strong.dtype == np.float32 and strong.max() <= 1


def test_canny_is_hysteresis_at_every_threshold():
    random = np.random.default_rng(0)
    pixels = grey(ndimage.gaussian_filter(random.random((40, 50)), 1.5) * 4 % 1)
    crests, edges = sobel(pixels, 1.0), canny(pixels, 1.0, 0.5)
    cuts = np.unique(edges[edges > 0])
    assert len(cuts) > 20
    for cut in [*cuts[::5], *thresholds(9)]:
        kept = np.zeros((40, 50), bool)
        for region in flood(crests >= np.float32(0.5) * np.float32(cut)):
            rows = tuple(zip(*region))
            kept[rows] = (crests[rows] >= np.float32(cut)).any()
        np.testing.assert_array_equal(edges >= np.float32(cut), kept)


def test_a_flat_picture_has_no_edges():
    flat = np.full((20, 30, 3), 90, np.uint8)
    assert not sobel(flat).any() and not canny(flat).any()
    assert not ridges(np.zeros((20, 30), np.float32)).any()


@pytest.mark.parametrize("angle", range(0, 180, 15))
def test_ridges_keep_the_crest(angle):
    y, x = np.mgrid[-30:31, -30:31]
    across = x * np.cos(np.radians(angle)) + y * np.sin(np.radians(angle))
    kept = ridges(np.exp(-(across**2) / 8).astype(np.float32))[5:-5, 5:-5]
    across = across[5:-5, 5:-5]
    assert np.abs(across[kept > 0]).max() <= 1 and (kept > 0)[np.abs(across) < 0.3].all()


def test_steepness_counts_on_the_outer_boundary_only():
    logits = disc(6.4, (15, 20), (31, 41))
    steep, mask = outer_steepness(logits), logits > 0
    near = np.zeros_like(mask)
    for y, x in np.argwhere(mask):
        near[y - 1 : y + 2, x - 1 : x + 2] = True
    np.testing.assert_array_equal(steep > 0, near & ~mask)
    p = np.pad(expit(logits), 1, mode="edge")
    y, x = np.argwhere(steep > 0)[3]
    window = p[y : y + 3, x : x + 3]
    weights = np.array([[1, 2, 1], [0, 0, 0], [-1, -2, -1]])
    assert steep[y, x] == pytest.approx(np.hypot((window * weights).sum(), (window * weights.T).sum()), rel=1e-5)
    assert not outer_steepness(np.full((5, 5), 3, np.float32)).any()  # a mask of everything has nothing around it


def whole(logits, keep):
    """The edges of some masks, upscaled whole."""
    values = logits_to_image(logits[keep], SMALL_VIT, (64, 90), HW)
    edges = np.max([outer_steepness(each) for each in values], axis=0)
    return ridges((edges - edges.min()) / np.ptp(edges))


def test_edges_of_masks():
    """A copy is suppressed, an empty mask does nothing, one that touches the border and one of a pixel count."""
    hw = SMALL_VIT.mask_size
    logits = np.stack([disc(4, (8, 10), hw), disc(4.2, (8, 10), hw) * 9, np.full(hw, -5, np.float32),
                       disc(3, (0, 0), hw), np.where(disc(0.5, (3, 18), hw) > 0, 2, -2).astype(np.float32)])
    edges = of_masks(logits, np.array([0.9, 0.8, 0.95, 0.5, 0.4]), SMALL_VIT, HW)
    np.testing.assert_allclose(edges, whole(logits, [0, 3, 4]), atol=1e-6)
    assert edges.shape == HW and edges.dtype == np.float32 and edges.max() == 1 and edges.min() == 0
    both = of_masks(logits, np.array([0.9, 0.8, 0.95, 0.5, 0.4]), SMALL_VIT, HW, 1.0)
    np.testing.assert_allclose(both, whole(logits, [0, 1, 3, 4]), atol=1e-6)
    assert not of_masks(logits[2:3], np.ones(1), SMALL_VIT, HW).any()
    assert not of_masks(logits[:0], np.ones(0), SMALL_VIT, HW).any()


def test_a_model_s_edges(small_vit):
    """Its grid's masks as `segment` gives them; more points than one call decodes."""
    sam = Sam(*small_vit)
    image = np.random.default_rng(0).integers(0, 256, (*HW, 3), np.uint8)
    edges = sam_edges(sam, image, 9)
    at = (np.arange(9) + 0.5) / 9
    points = np.array([[[x * HW[1], y * HW[0]]] for y in at for x in at])
    answer = sam.segment(sam.encode(image), points=points, labels=np.ones((81, 1), int))
    expected = of_masks(answer.logits.reshape(-1, *SMALL_VIT.mask_size), answer.iou.ravel(), SMALL_VIT, HW)
    assert edges.any()
    np.testing.assert_allclose(edges, expected, atol=1e-5)
    with pytest.raises(InputError, match="points"):
        sam_edges(sam, image, 0)
