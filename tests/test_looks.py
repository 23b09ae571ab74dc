"""samjax.looks: where the second windows lie; what they mend is in test_tiling.py and test_seams.py."""

import numpy as np
import pytest

from samjax.looks import EDGE
from samjax.looks import looks as looks_at
from samjax.runs import Runs
from samjax.seams import Group, Piece
from samjax.settings import Settings
from samjax.tiles import Tiling, patch

EMPTY = Runs(np.zeros(0, np.int64), np.zeros(0, np.int64), 1)
HW = 900, 1300


def looks(groups, layout, hw, continued=False):
    return looks_at([Group(pieces, continued) for pieces in groups], layout, hw)


def plan(scale=1.0, hw=HW):
    return Tiling(tile=256, halo=64, scale=scale, spacing=32).plan(1024, hw, Settings())


def piece(*box, cut=(False,) * 4, point=None):
    return Piece(0, box, EMPTY, 0.9, 0.9, point or (box[0] + 1.0, box[1] + 1.0), cut)


def test_whatever_fits_is_seen_whole_by_the_window_that_has_its_points():
    random, layout = np.random.default_rng(0), plan()
    groups = []
    for _ in range(60):
        x, y, w, h = random.integers(0, 1100), random.integers(0, 700), *random.integers(10, 200, 2)
        groups.append([piece(x, y, min(x + w, 1299), min(y + h, 899), point=(float(x), float(y)))])
    found = looks(groups, layout, HW)
    assert 5 < len(found) < len(groups)  # windows are shared
    for (one,) in groups:
        x0, y0, x1, y1 = one.box
        (look,) = [look for look in found if (look.points == one.point).all(-1).any()]
        left, top, right, bottom = look.window
        assert (right - left, bottom - top) == (256, 256) or right == 1300 or bottom == 900
        assert left % 16 == top % 16 == 0
        assert (left == 0 or left + EDGE <= x0) and (top == 0 or top + EDGE <= y0)
        assert (right == 1300 or x1 < right - EDGE) and (bottom == 900 or y1 < bottom - EDGE)
    assert sum(len(look.points) for look in found) == len({group[0].point for group in groups})


@pytest.mark.parametrize("cut, room", [
    ((True, False, False, False), (120, 0, 48, 0)), ((False, False, True, False), (48, 0, 120, 0)),
    ((False, True, False, False), (0, 120, 0, 48)), ((False, False, False, True), (0, 48, 0, 120)),
    ((True, False, True, False), (80, 0, 80, 0))])
def test_there_is_most_room_where_it_goes_on(cut, room):
    """The halo less a patch, 48 px, at least beside an end that is known, all that is left at the other."""
    (look,) = looks([[piece(500, 400, 550, 450, cut=cut)]], plan(), HW)
    left, top, right, bottom = look.window
    for have, least in zip((500 - left, 400 - top, right - 550, bottom - 450), room):
        assert have >= least


def test_a_side_that_another_part_goes_on_beyond_is_not_open():
    parts = [piece(400, 400, 500, 450, cut=(False, False, True, False)), piece(440, 400, 540, 450)]
    (look,) = looks([parts], plan(), HW)
    assert abs((look.window[0] + look.window[2]) / 2 - 470) <= 16  # in the middle


def test_what_no_window_holds_is_not_looked_at():
    assert looks([[piece(100, 100, 350, 200)], [piece(100, 100, 200, 700)]], plan(), HW) == []
    assert looks([], plan(), HW) == []


def test_pieces_of_what_no_window_holds_are_looked_at():
    """A group that is of two objects, one of which is nearly whole, and is not continued."""
    disc = piece(400, 400, 520, 520, cut=(False, True, False, False))
    group = [disc, piece(300, 300, 555, 420)]
    (look,) = looks([group], plan(), HW)
    assert look.points.tolist() == [[401, 401]] and look.window[1] <= 400 - 80
    assert looks([group], plan(), HW, continued=True) == []


def test_no_more_windows_than_the_plan_has_and_of_these_the_busiest():
    hw = 256, 900
    layout = plan(hw=hw)
    lone = [[piece(x, 20, x + 30, 230, point=(x + 9.0, 50.0))] for x in range(0, 870, 36)]
    wide = [[piece(x, 20, x + 200, 230, point=(x + 9.0, 50.0))] for x in range(0, 700, 23)]
    for groups in (lone, wide):
        found = looks(groups, layout, hw)
        assert len(found) <= len(layout.windows)
    assert len(found) == len(layout.windows) < len(wide)
    crowd = [[piece(760, 20 + i, 820, 120, point=(770.0, 30.0 + i))] for i in range(9)]
    assert any(len(look.points) > 8 for look in looks(wide + crowd, layout, hw))


@pytest.mark.parametrize("box, hw, fits", [
    ((5, 10, 240, 230), (256, 900), True),  # as high as the picture
    ((0, 0, 246, 246), HW, True), ((0, 0, 249, 100), HW, False),  # up to the picture's corner
    ((1066, 666, 1299, 899), HW, True), ((0, 0, 299, 199), (200, 300), False), ((0, 0, 249, 199), (200, 256), True)])
def test_no_room_is_asked_for_where_the_picture_ends(box, hw, fits):
    found = looks([[piece(*box)]], plan(hw=hw), hw)
    assert len(found) == fits
    for look in found:
        assert look.window[0] <= box[0] and look.window[2] > box[2]


def test_a_known_end_is_never_cut():
    """However narrow the halo and wherever the patches lie."""
    layout = Tiling(512, 16, 1.0, 16).plan(1024, (2000, 2000), Settings())
    for x in range(480, 700, 7):
        (look,) = looks([[piece(x, 700, x + 99, 799, cut=(True, False, False, False), point=(x + 1.0, 750.0))]], layout,
                        (2000, 2000))
        assert look.window[2] - (x + 100) >= EDGE and x - look.window[0] > 300


def test_points_outside_of_the_window_are_not_asked():
    group = [piece(900, 20, 1020, 100, point=(200.0, 300.0)), piece(910, 20, 1020, 100, point=(950.0, 50.0))]
    (look,) = looks([group], plan(), HW)
    assert look.points.tolist() == [[950, 50]]
    assert looks([group[:1]], plan(), HW) == []


@pytest.mark.parametrize("scale, step", [(1.0, 16), (2.0, 8), (2 / 3, 24), (0.7, 1), (32.0, 1)])
def test_windows_begin_at_patches(scale, step):
    assert patch(scale) == step
    if scale <= 2:
        for look in looks([[piece(501, 403, 560, 450)]], plan(scale), HW):
            assert look.window[0] % step == look.window[1] % step == 0
