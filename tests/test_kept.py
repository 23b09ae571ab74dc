"""samjax.kept: windows' pieces come back as they were, whatever happens to their files."""

import numpy as np
import pytest

from samjax import runs
from samjax.kept import Kept
from samjax.seams import Piece

HEIGHT = 50

MARK = (0, 16, 1024, 1040, 123456789)


def piece(seed):
    random = np.random.default_rng(seed)
    mask, corner = random.random((7, 9)) > 0.4, (int(random.integers(0, 900)), int(random.integers(0, HEIGHT - 7)))
    box = (*corner, corner[0] + 8, corner[1] + 6)
    return Piece(3, box, runs.of_mask(mask, corner, HEIGHT), float(random.random()), float(random.random()),
                 tuple(random.random(2).tolist()), tuple((random.random(4) > 0.5).tolist()))


def same(one, two):
    assert one._replace(runs=None) == two._replace(runs=None) and one.runs.height == two.runs.height
    assert one.runs.start.dtype == two.runs.start.dtype
    np.testing.assert_array_equal(one.runs.start, two.runs.start)
    np.testing.assert_array_equal(one.runs.stop, two.runs.stop)


@pytest.mark.parametrize("pieces", [[], [piece(0)], [piece(seed) for seed in range(9)], [
    piece(1)._replace(runs=runs.of_mask(np.zeros((1, 1), bool), (0, 0), HEIGHT)), piece(2)]], ids=len)
def test_round_trip(tmp_path, pieces):
    kept = Kept(tmp_path / "deep" / "folder", "key")
    assert kept.load(HEIGHT) == {}
    kept.put(3, MARK, pieces)
    found = Kept(tmp_path / "deep" / "folder", "key").load(HEIGHT)
    (mark, read), = found.values()
    assert list(found) == [3] and mark == MARK and len(read) == len(pieces)
    for one, two in zip(read, pieces):
        same(one, two)
        assert all(type(a) is type(b) for a, b in zip(one, two))


def test_what_is_of_another_key_or_damaged_is_not_used(tmp_path):
    kept = Kept(tmp_path, "key")
    for index in range(4):
        kept.put(index, MARK, [piece(index)])
    assert Kept(tmp_path, "other").load(HEIGHT) == {}
    data = (tmp_path / "window-000001.npz").read_bytes()
    (tmp_path / "window-000001.npz").write_bytes(data[:-30])
    (tmp_path / "window-000002.npz").write_bytes(b"")
    (tmp_path / "window-000009.npz").write_bytes(b"something else")
    assert sorted(kept.load(HEIGHT)) == [0, 3]
    kept.put(1, MARK, [piece(5)])
    same(kept.load(HEIGHT)[1][1][0], piece(5)._replace(window=1))


def test_clear_leaves_others_files(tmp_path):
    kept = Kept(tmp_path / "tiles", "key")
    kept.clear()
    kept.put(0, MARK, [piece(0)])
    (tmp_path / "tiles" / ".window-1.77.tmp").write_bytes(b"of a process that was killed")
    (tmp_path / "tiles" / "theirs.npz").write_bytes(b"1")
    kept.clear()
    assert [path.name for path in (tmp_path / "tiles").iterdir()] == ["theirs.npz"]
    (tmp_path / "tiles" / "theirs.npz").unlink()
    kept.clear()
    assert not (tmp_path / "tiles").exists()


def test_no_room_is_no_reason_to_stop(tmp_path, monkeypatch):
    def full(*args, **settings):
        raise OSError(28, "No space left on device")

    kept = Kept(tmp_path, "key")
    monkeypatch.setattr(np, "savez_compressed", full)
    kept.put(0, MARK, [piece(0)])
    assert not list(tmp_path.iterdir())
