"""samjax.seams: what belongs together, given exactly what each window would see of known masks."""

import numpy as np
import pytest

from samjax import runs
from samjax.seams import Piece, Seams

H, W = 300, 420
WINDOWS = [(x, y, x + 160, y + 160) for y in (0, 70, 140) for x in (0, 100, 200, 260)]  # overlaps of 60, 90 and 100


def rectangle(*boxes):
    out = np.zeros((H, W), bool)
    for x0, y0, x1, y1 in boxes:
        out[y0:y1, x0:x1] = True
    return out


def seen(window, mask, iou=0.9):
    """The piece of a mask that a window sees."""
    x0, y0, x1, y1 = WINDOWS[window]
    part = mask[y0:y1, x0:x1]
    ys, xs = np.nonzero(part)
    box = xs.min() + x0, ys.min() + y0, xs.max() + x0, ys.max() + y0
    cut = (x0 > 0 and box[0] < x0 + 4, y0 > 0 and box[1] < y0 + 4,
           x1 < W and box[2] >= x1 - 4, y1 < H and box[3] >= y1 - 4)
    return Piece(window, box, runs.of_mask(part, (x0, y0), H), iou, 0.95, (float(box[0]), float(box[1])), cut)


def objects(pieces, order=None, agreement=0.6):
    """The masks of all objects: bool (H, W), and the objects."""
    seams = Seams(WINDOWS, agreement, trim=20)
    for window in order if order is not None else range(len(WINDOWS)):
        seams.add(window, [piece for piece in pieces if piece.window == window])
    found = seams.objects()
    masks = []
    for one in found:
        flat = np.zeros(H * W, bool)
        for start, stop in zip(one.runs.start, one.runs.stop):
            flat[start:stop] = True
        masks.append(flat.reshape(W, H).T)
        assert one.box == runs.bounds(one.runs)
    return masks, found


def everywhere(mask, **how):
    """What all windows that it reaches see of a mask."""
    return [seen(i, mask, **how) for i, (x0, y0, x1, y1) in enumerate(WINDOWS) if mask[y0:y1, x0:x1].any()]


@pytest.mark.parametrize("box", [(5, 5, 400, 290), (90, 60, 330, 100), (150, 150, 170, 280), (0, 0, 420, 300)])
def test_parts_become_the_whole_in_any_order(box):
    mask = rectangle(box)
    random = np.random.default_rng(0)
    for _ in range(5):
        masks, found = objects(everywhere(mask), random.permutation(len(WINDOWS)))
        assert all((one == mask).all() for one in masks) and masks  # several where several windows see all of it
        assert all(one.iou == pytest.approx(0.9) and one.stability == pytest.approx(0.95) for one in found)
        assert {tuple(one.windows) for one in found} == {tuple(sorted(one.windows)) for one in found}


def test_scores_are_means_by_area():
    mask = rectangle((10, 10, 250, 30))
    pieces = [seen(0, mask, 0.8), seen(1, mask, 0.9), seen(2, mask, 1.0)]
    (one,), (joined,) = objects(pieces)
    areas = [piece.runs.area for piece in pieces]
    assert joined.iou == pytest.approx(np.dot([0.8, 0.9, 1.0], areas) / sum(areas))
    assert joined.points == [piece.point for piece in pieces] and joined.windows == [0, 1, 2] and (one == mask).all()


def test_fragments_of_what_is_whole_elsewhere_go():
    mask = rectangle((110, 20, 190, 60))  # whole in window 1, cut by windows 0 and, in rows, none
    masks, found = objects([seen(0, mask), seen(1, mask)])
    assert len(found) == 1 and found[0].windows == [1] and (masks[0] == mask).all()


@pytest.mark.parametrize("missing", range(3))
def test_what_is_not_continued_is_left_out(missing):
    pieces = [seen(i, rectangle((10, 10, 300, 30))) for i in range(3)]
    assert len(objects(pieces)[0]) == 1
    assert not any(one.sum() for one in objects([p for i, p in enumerate(pieces) if i != missing])[0])


def test_other_masks_at_the_seam_do_not_matter():
    """A fragment of two shapes agrees with one of them in a corner, and is no part of it."""
    disc, other = rectangle((90, 60, 250, 150)), rectangle((60, 170, 240, 290))
    both = disc | other
    pieces = everywhere(disc) + [seen(i, both, 0.95) for i in (4, 9)]
    random = np.random.default_rng(1)
    for _ in range(5):
        masks, _ = objects(pieces, random.permutation(len(WINDOWS)))
        assert masks and all((one == disc).all() for one in masks)


def test_a_second_look_at_what_was_joined_wrongly():
    """Two windows take two shapes for one: its parts agree. One shape is seen whole in a window of its own."""
    a, b = rectangle((60, 20, 200, 60)), rectangle((60, 60, 200, 120))
    seams = Seams(WINDOWS, 0.6, trim=20)
    for window in (0, 1):
        seams.add(window, [seen(window, a | b)])
    ((pieces, continued),) = seams.doubtful()
    assert [piece.window for piece in pieces] == [0, 1] and continued
    assert [one.runs.area for one in seams.objects()] == [(a | b).sum()]

    def found(mask, cut=(False,) * 4):
        ys, xs = np.nonzero(mask)
        box = tuple(int(v) for v in (xs.min(), ys.min(), xs.max(), ys.max()))
        piece = Piece(len(WINDOWS), box, runs.of_mask(mask, (0, 0), H), 0.9, 0.95, box[:2], cut)
        return sorted(one.runs.area for one in seams.objects([piece]))

    assert found(b) == [b.sum()]  # six tenths of what either window saw
    assert found(a) == [a.sum(), (a | b).sum()]  # four tenths are not enough to say that the whole is wrong
    assert found(b, cut=(False, True, False, False)) == [(a | b).sum()]


def test_a_part_of_its_own_leaves_what_is_joined_alone():
    """A tree in the corner of a field is all that the last window shows of the field."""
    field, tree = rectangle((20, 20, 310, 120)), rectangle((255, 25, 310, 118))
    pieces = [seen(i, field) for i in (0, 1, 2)] + [seen(3, rectangle((262, 20, 310, 120)))]
    seams = Seams(WINDOWS, 0.6, trim=20)
    for window in range(4):
        seams.add(window, [piece for piece in pieces if piece.window == window])
    again = Piece(99, (255, 25, 309, 117), runs.of_mask(tree, (0, 0), H), 0.9, 0.95, (0, 0), (False,) * 4)
    areas = [one.runs.area for one in seams.objects([again])]
    assert sorted(areas) == sorted([*(one.runs.area for one in seams.objects()), tree.sum()]) and max(areas) > 28_000


def test_what_no_other_window_continues_is_in_doubt():
    lone = seen(0, rectangle((60, 20, 200, 60)))
    seams = Seams(WINDOWS, 0.6, trim=20)
    seams.add(0, [lone, seen(0, rectangle((10, 10, 40, 40)))])
    assert seams.doubtful() == [([lone], False)] and len(seams.objects()) == 1


def test_two_legs_in_one_window_may_be_of_one_object():
    """A bracket whose legs the second window sees as two masks."""
    bracket = rectangle((110, 10, 140, 130), (110, 10, 280, 50), (110, 90, 275, 130))
    legs = [rectangle((110, 10, 280, 50)), rectangle((110, 90, 275, 130))]
    window = 2  # x from 200
    pieces = [seen(1, bracket), *(seen(window, leg) for leg in legs)]
    assert objects(pieces)[0] == []  # neither is as much of it as agreement asks for
    masks, _ = objects(pieces, agreement=0.4)
    assert len(masks) == 1 and (masks[0] == bracket).all()


def test_what_disagrees_is_not_joined():
    a, b = rectangle((50, 20, 200, 60)), rectangle((50, 55, 200, 140))
    assert objects([seen(0, a), seen(1, b)])[0] == []
    assert objects([])[1] == []
