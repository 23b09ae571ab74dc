"""Checkpoints and metrics on disk: damaged, cut off, on a full disk."""

import contextlib
import resource
import shutil
import struct

import numpy as np
import pytest

from samjax.checkpoint import Checkpoints
from samjax.errors import InputError
from samjax.train.events import Events, _check
from samjax.train.metrics import Metrics, read


def state(seed=0, size=300):
    random = np.random.default_rng(seed)
    return {"step": np.int32(seed), "params": {"kernel": random.standard_normal(size).astype(np.float32)},
            "opt_state": ({"kernel": random.standard_normal(size).astype(np.float32)}, ()),
            "key": np.array([1, seed], np.uint32)}


def equal(a, b):
    import jax

    assert jax.tree.structure(a) == jax.tree.structure(b)
    jax.tree.map(np.testing.assert_array_equal, a, b)


def test_round_trip_and_what_is_kept(tmp_path):
    with Checkpoints(tmp_path, keep=2) as saved:
        assert saved.restore(state()) is None
        for step, found in ((1, 0.5), (2, 0.9), (3, 0.1), (4, None), (5, 0.2)):
            saved.save(step, state(step), {"batch": step}, {"note": step}, found)
    with Checkpoints(tmp_path, keep=2) as saved:
        found, position, meta = saved.restore(state())
    equal(found, state(5))
    assert (position, meta) == ({"batch": 5}, {"note": 5})
    assert {path.name for path in tmp_path.iterdir()} == {"2", "4", "5"}


def test_any_damage_is_noticed(tmp_path):
    """Each file of the newest checkpoint cut, emptied or gone: the newest comes back whole, or else the one before."""
    with Checkpoints(tmp_path / "good") as saved:
        saved.save(1, state(1), {}, {})
        saved.save(2, state(2), {}, {})
    files = [path.relative_to(tmp_path / "good") for path in (tmp_path / "good" / "2").rglob("*") if path.is_file()]
    gone_back = 0
    for number, file in enumerate(files):
        folder = tmp_path / str(number)
        shutil.copytree(tmp_path / "good", folder)
        content = (folder / file).read_bytes()
        (folder / file).write_bytes(content[:len(content) // 2])
        said = []
        with Checkpoints(folder, report=said.append) as saved:
            found, *_ = saved.restore(state())
        gone_back += int(found["step"]) == 1
        equal(found, state(int(found["step"])))
        assert bool(said) == (int(found["step"]) == 1)
    assert gone_back >= 3


def test_nothing_left(tmp_path):
    with Checkpoints(tmp_path) as saved:
        saved.save(1, state(1), {}, {})
    shutil.rmtree(tmp_path / "1" / "state")
    with Checkpoints(tmp_path) as saved, pytest.raises(InputError, match="no older checkpoint is left"):
        saved.restore(state())


def test_another_shape_is_refused(tmp_path):
    with Checkpoints(tmp_path) as saved:
        saved.save(1, state(1), {}, {})
        saved.wait()
        with pytest.raises(InputError, match="another run.*kernel"):
            saved.restore(state(size=301))


@contextlib.contextmanager
def full_disk(limit):
    """Files that would grow beyond the limit cannot be written."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_full_disk(tmp_path):
    """It is said, and the checkpoint before stays."""
    random = np.random.default_rng(0)
    big = state() | {"params": {"kernel": random.standard_normal(1 << 18).astype(np.float32)}}
    with Checkpoints(tmp_path, keep=1) as saved:
        saved.save(1, big, {}, {})
        saved.wait()
    saved = Checkpoints(tmp_path, keep=1)
    with full_disk(100_000), pytest.raises(InputError, match="is the disk full"):
        saved.save(2, big, {}, {})
        saved.wait()
    with contextlib.suppress(InputError):
        saved.__exit__(None)
    with Checkpoints(tmp_path, keep=1) as saved:
        found, *_ = saved.restore(big)
        equal(found, big)
        saved.save(3, big, {}, {})  # with room again it goes on
    assert (tmp_path / "3").is_dir()


def test_metrics_are_cut_where_a_run_goes_on(tmp_path):
    with Metrics(tmp_path) as log:
        log.rewind(0)
        log.evaluation(0, {"score": 1.0})
        for step in (1, 2, 3):
            log.step(step, {"loss": np.float32(step), "rate": float("nan")})
        log.evaluation(2, {"score": 2.0})
    with open(tmp_path / "metrics.jsonl", "a") as file:
        file.write('{"step": 4, "lo')
    assert len(read(tmp_path / "metrics.jsonl")[0]) == 3
    with Metrics(tmp_path) as log:
        log.rewind(2, {0})
        log.step(3, {"loss": 30.0})
    steps, evaluations = read(tmp_path / "metrics.jsonl")
    assert [(line["step"], line["loss"]) for line in steps] == [(1, 1.0), (2, 2.0), (3, 30.0)]
    assert steps[0]["rate"] is None
    assert [line["step"] for line in evaluations] == [0]


def test_events(tmp_path):
    """The records, read back by the format's description; the checksum's test vector is that of RFC 3720."""
    crc = struct.unpack("<I", _check(b"123456789"))[0]
    rotated = (crc - 0xA282EAD8) & 0xFFFFFFFF
    assert (rotated >> 17 | rotated << 15) & 0xFFFFFFFF == 0xE3069283
    events = Events(tmp_path)
    events.scalars(300, {"train/loss": 0.5})
    events.close()
    (path,) = tmp_path.iterdir()
    data, records = path.read_bytes(), []
    while data:
        (length,) = struct.unpack("<Q", data[:8])
        assert data[8:12] == _check(data[:8]) and data[12 + length:16 + length] == _check(data[12:12 + length])
        records.append(data[12:12 + length])
        data = data[16 + length:]
    assert b"brain.Event:2" in records[0] and len(records) == 2
    assert records[1][9:12] == b"\x10\xac\x02"  # field 2, varint 300
    assert records[1].endswith(b"\x0a\x0atrain/loss\x15" + struct.pack("<f", 0.5))
