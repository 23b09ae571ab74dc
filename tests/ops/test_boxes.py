"""samjax.ops.boxes against plain loops and the stand-in for torchvision."""

import numpy as np
import pytest
from plain import plain_nms

from samjax.ops.boxes import crop_boxes, near_inner_edge, nms, xywh


def some_boxes(seed, n, size=60):
    """Whole-number boxes that overlap a good deal, and scores with many ties."""
    random = np.random.default_rng(seed)
    corner, side = random.integers(0, size, (n, 2)), random.integers(0, size // 2, (n, 2))
    return np.concatenate([corner, corner + side], axis=1), random.integers(0, 12, n).astype(np.float32) / 12


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("threshold", [0.0, 0.3, 0.7, 1.0])
def test_nms_is_the_plain_loop(seed, threshold):
    boxes, scores = some_boxes(seed, 150)
    assert nms(boxes, scores, threshold).tolist() == plain_nms(boxes, scores, threshold)


def test_nms_of_nothing_and_of_empty_boxes():
    assert nms(np.zeros((0, 4)), np.zeros(0), 0.7).shape == (0,)
    flat = np.array([[0, 0, 0, 0], [0, 0, 0, 0], [0, 0, 0, 9], [0, 0, 0, 0], [0, 0, 0, 9]])
    assert nms(flat, np.arange(5), 0.7).tolist() == [4, 3]  # of equal ones the best
    assert nms(flat, np.arange(5), 1.0).tolist() == [4, 3, 2, 1, 0]


def test_an_overlap_at_the_threshold_stays():
    boxes = np.array([[0, 0, 10, 10], [0, 0, 10, 5], [0, 0, 10, 6]])
    assert nms(boxes, np.array([3.0, 2.0, 1.0]), 0.5).tolist() == [0, 1]


@pytest.mark.torch
@pytest.mark.parametrize("n", [0, 40, 1500])
def test_nms_is_torchvisions(n):
    torch = pytest.importorskip("torch")
    from torchvision_standin import batched_nms

    boxes, scores = some_boxes(n, n, 300)
    theirs = batched_nms(torch.tensor(boxes).float(), torch.tensor(scores), torch.zeros(n), 0.7)
    assert nms(boxes, scores, 0.7).tolist() == theirs.tolist()


def test_crops_of_a_photograph():
    found = crop_boxes((534, 800), 1, 512 / 1500)
    # As SamAutomaticMaskGenerator lays them: 182 px in common, columns before rows.
    assert found == [((0, 0, 800, 534), 0), ((0, 0, 491, 358), 1), ((0, 176, 491, 534), 1),
                     ((309, 0, 800, 358), 1), ((309, 176, 800, 534), 1)]


@pytest.mark.torch
@pytest.mark.parametrize("image_hw", [(534, 800), (1201, 333), (64, 64), (37, 4001)])
def test_crops_are_the_official_ones(image_hw):
    pytest.importorskip("torch")
    import torchvision_standin

    torchvision_standin.install()
    amg = pytest.importorskip("segment_anything.utils.amg")
    for layers, overlap in ((0, 0.3), (1, 0.0), (3, 512 / 1500)):
        boxes, indices = amg.generate_crop_boxes(image_hw, layers, overlap)
        assert crop_boxes(image_hw, layers, overlap) == [(tuple(box), i) for box, i in zip(boxes, indices)]


@pytest.mark.parametrize("image_hw", [(1, 1), (2, 900), (5, 3)])
def test_crops_of_a_tiny_picture_are_never_empty(image_hw):
    found = crop_boxes(image_hw, 4, 512 / 1500)
    assert found[0] == ((0, 0, image_hw[1], image_hw[0]), 0)
    for (x0, y0, x1, y1), _ in found:
        assert 0 <= x0 < x1 <= image_hw[1] and 0 <= y0 < y1 <= image_hw[0]


@pytest.mark.parametrize("box, near", [
    ((100, 100, 200, 200), False), ((120, 140, 200, 200), True), ((121, 140, 200, 200), False),
    ((121, 0, 200, 280), True), ((121, 0, 200, 279), False), ((121, 20, 379, 279), False), ((121, 21, 380, 279), True),
])
def test_only_the_crops_inner_sides_count(box, near):
    """The crop's top is the picture's; the others are inner sides. (The first box lies beyond the left one.)"""
    crop = (100 if near or box[0] > 100 else 50, 0, 400, 300)
    assert near_inner_edge(box, crop, (900, 900)).tolist() == [near]


def test_width_is_last_minus_first():
    assert xywh(np.array([3, 4, 10, 20])) == [3, 4, 7, 16]
