"""samjax.suppress: the same as comparing all with all."""

import time

import numpy as np
import pytest

from samjax import runs
from samjax.ops.boxes import nms
from samjax.suppress import box_nms, mask_nms, without_groups


def boxes_at_random(random, n, side):
    low = random.integers(0, side, (n, 2))
    size = (side * 0.5 ** random.uniform(0, 8, (n, 1)) * random.uniform(0.3, 1, (n, 2))).astype(int)
    boxes = np.concatenate([low, low + size], axis=1)
    copies = boxes[random.integers(0, n, n)] + random.integers(-3, 4, (n, 4))
    return np.concatenate([boxes, copies])


@pytest.mark.parametrize("threshold", [0, 0.01, 0.3, 0.7, 0.95, 1])
def test_boxes_as_all_with_all(threshold):
    for seed in range(12):
        random = np.random.default_rng(seed)
        boxes = boxes_at_random(random, 150, 1000 if seed % 2 else 60)
        boxes[:5, 2:] = boxes[:5, :2]  # boxes without area
        scores = random.choice([0.1, 0.5, 0.7, 0.9], len(boxes)) if seed % 3 else random.random(len(boxes))
        kept = box_nms(boxes, scores, threshold)
        np.testing.assert_array_equal(kept, nms(boxes, scores, threshold))
        assert 0 < len(kept) < len(boxes) or threshold > 0.9
    assert len(box_nms(np.zeros((0, 4)), np.zeros(0), threshold)) == 0


@pytest.mark.parametrize("threshold", [0, 0.2, 0.7, 1])
def test_masks_as_all_with_all(threshold):
    random = np.random.default_rng(0)
    plain = []
    for x0, y0, x1, y1 in boxes_at_random(random, 40, 60):
        mask = np.zeros((70, 80), bool)
        mask[max(y0, 0) : y1, max(x0, 0) : x1] = True
        mask[tuple(random.integers(0, 70, (2, random.integers(3))))] = True  # specks
        plain.append(mask)
    scores = random.random(len(plain))
    expected = []
    for i in np.argsort(-scores):
        iou = [(plain[i] & plain[j]).sum() / max(1, (plain[i] | plain[j]).sum()) for j in expected]
        if not any(value > threshold for value in iou):
            expected.append(i)
    found = mask_nms([runs.of_mask(mask, (0, 0), 70) for mask in plain], scores, threshold)
    np.testing.assert_array_equal(found, expected)
    assert 0 < len(expected) < len(plain) or threshold == 1


def test_groups_of_known_masks_are_left_out():
    def mask(*boxes):
        out = np.zeros((300, 300), bool)
        for x0, y0, x1, y1 in boxes:
            out[y0:y1, x0:x1] = True
        return runs.of_mask(out, (0, 0), 300)

    a, b, c = (10, 10, 60, 70), (100, 20, 200, 90), (20, 150, 120, 280)
    nearly_b = 102, 20, 200, 92
    speck = 250, 250, 256, 256
    masks = [mask(a, b), mask(a), mask(nearly_b), mask(b, c), mask(a, speck), mask(a, (61, 10, 99, 70), b),
             mask((10, 10, 35, 70), c), mask(a, b, speck)]
    #        both known         known            c is not known   one part    one part, not two
    assert without_groups(masks, 0.7) == [1, 2, 3, 4, 5, 6]
    assert without_groups([], 0.7) == []
    assert without_groups([*masks, mask(c)], 0.7) == [1, 2, 4, 5, 6, 8]


def test_the_cost_grows_with_the_number_not_with_its_square():
    random = np.random.default_rng(0)

    def seconds(n):
        low = random.integers(0, int(30 * n**0.5), (n, 2))  # equally dense
        boxes, scores = np.concatenate([low, low + 40], axis=1), random.random(n)
        start = time.process_time()
        box_nms(boxes, scores, 0.7)
        return time.process_time() - start

    seconds(1000)
    assert seconds(16_000) < 32 * seconds(2_000)  # eight times, were time exact; with squares 64 times
