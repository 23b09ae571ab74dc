"""The safetensors format, against its own package where that is installed."""

import json
import struct

import ml_dtypes
import numpy as np
import pytest

from convert.safetensors import MAX_HEADER, read_metadata, read_safetensors, write_safetensors
from convert.tensor import Tensor
from samjax.errors import InputError

DTYPES = ["f2", "f4", "f8", ml_dtypes.bfloat16, "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "?"]


def arrays(seed=0):
    random = np.random.default_rng(seed)
    found = {}
    for kind in map(np.dtype, DTYPES):
        for shape in [(), (3,), (0, 4), (7, 1, 9)]:
            values = random.integers(0, 2 if kind.kind == "b" else 100, shape)
            found[f"{kind.name} {shape} é"] = np.asarray(values).astype(kind)
    return found


def assert_same(tensors, expected):
    assert tensors.keys() == expected.keys()
    for name, array in expected.items():
        tensor, loaded = tensors[name], tensors[name].load()
        for found in (tensor, loaded):
            assert (found.shape, found.dtype) == (array.shape, array.dtype), name
        assert type(loaded) is np.ndarray and loaded.tobytes() == array.tobytes(), name


def write_raw(path, header, data=b"", size=None):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text) if size is None else size) + text + data)


def test_round_trip_is_exact_and_deterministic(tmp_path):
    expected, notes = arrays(), {"format": "pt", "é": "\n"}
    for name, items in [("a", list(expected.items())), ("b", list(expected.items())[::-1])]:
        write_safetensors(tmp_path / name, {key: Tensor.of(array) for key, array in items}, notes)
    assert_same(read_safetensors(tmp_path / "a"), expected)
    assert read_metadata(tmp_path / "a") == notes
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b"]


def test_no_tensors_and_no_notes(tmp_path):
    write_safetensors(tmp_path / "a", {})
    assert read_safetensors(tmp_path / "a") == {} and read_metadata(tmp_path / "a") == {}


def test_reads_what_the_package_writes(tmp_path):
    package = pytest.importorskip("safetensors.numpy")
    expected = {name: array for name, array in arrays().items() if array.dtype != ml_dtypes.bfloat16}
    package.save_file(expected, tmp_path / "a", metadata={"format": "np"})
    assert_same(read_safetensors(tmp_path / "a"), expected)
    assert read_metadata(tmp_path / "a") == {"format": "np"}


def test_the_package_reads_what_is_written(tmp_path):
    package = pytest.importorskip("safetensors")
    expected = arrays()
    tensors = {name: Tensor.of(array) for name, array in expected.items()}
    write_safetensors(tmp_path / "a", tensors, {"a": "b"})
    with package.safe_open(tmp_path / "a", "numpy") as file:
        assert set(file.keys()) == set(expected) and file.metadata() == {"a": "b"}
        for name, array in expected.items():
            loaded = file.get_tensor(name)
            assert loaded.shape == array.shape and loaded.tobytes() == array.tobytes(), name
            assert loaded.dtype == array.dtype, name


@pytest.mark.torch
def test_writes_the_bytes_that_the_package_writes(tmp_path):
    torch = pytest.importorskip("torch")
    package = pytest.importorskip("safetensors.torch")
    torch.manual_seed(0)
    content = {"b": torch.randn(3, 5), "a": torch.randn(4), "c": torch.randn(3).half(), "n": torch.tensor(3)}
    package.save_file(content, tmp_path / "a", metadata={"format": "pt"})
    tensors = {name: Tensor.of(value.numpy()) for name, value in content.items()}
    write_safetensors(tmp_path / "b", tensors, {"format": "pt"})
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def entry(dtype="F32", shape=(2,), offsets=(0, 8)):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets)}


@pytest.mark.parametrize("header, data", [
    ({"x": entry()}, bytes(7)),  # too few
    ({"x": entry()}, bytes(9)),  # too many
    ({"x": entry(offsets=(1, 9))}, bytes(9)),  # a gap
    ({"x": entry(), "y": entry(offsets=(4, 12))}, bytes(12)),  # an overlap
    ({"x": entry(), "y": entry()}, bytes(8)),  # the same place
    ({"x": entry(offsets=(8, 0))}, bytes(8)),
    ({"x": entry(offsets=(-8, 0))}, bytes(8)),
    ({"x": entry(offsets=(0, 8, 8))}, bytes(8)),
    ({"x": entry(offsets=(0, 8.0))}, bytes(8)),
    ({"x": entry(shape=(3,))}, bytes(8)),
    ({"x": entry(shape=(-2, -1))}, bytes(8)),
    ({"x": entry(shape=(True, 2))}, bytes(8)),
    ({"x": entry(shape=(1,) * 33 + (2,))}, bytes(8)),
    ({"x": entry(shape=(0, 1 << 61), offsets=(0, 0))}, b""),
    ({"x": entry(shape=(1 << 40, 1 << 40), offsets=(0, 1 << 61))}, b""),
    ({"x": entry("F128")}, bytes(8)),
    ({"x": entry("f32")}, bytes(8)),
    ({"x": entry(["F32"])}, bytes(8)),
    ({"x": {**entry(), "more": 1}}, bytes(8)),
    ({"x": {"dtype": "F32", "shape": [2]}}, bytes(8)),
    ({"x": 3}, bytes(8)),
    ({"__metadata__": {"a": 1}, "x": entry()}, bytes(8)),
    ({"__metadata__": [], "x": entry()}, bytes(8)),
    ([], b""),
    (b'{"x":' + b'{"a":' * 100_000, b""),
    (b'{"x":' + b"[" * 100_000, b""),
    (b'{"x":[' + b"[]," * 3_000_000 + b"]}", b""),
    (b'{"x":' + b"9" * 10_000 + b"}", b""),
    (b'{"a":1,"a":1}', b""),
    (b'{"\xff":1}', b""),
    (b" {}", b""),
    (b"{}{}", b""),
])
def test_refuses_what_the_format_does_not_allow(tmp_path, header, data):
    write_raw(tmp_path / "a\nb", header, data)
    with pytest.raises(InputError) as caught:
        read_safetensors(tmp_path / "a\nb")
    assert "\n" not in str(caught.value) and r"a\nb" in str(caught.value)


@pytest.mark.parametrize("size", [0, 1, 3, 1 << 20, MAX_HEADER + 1, (1 << 64) - 1])
def test_refuses_header_sizes_that_cannot_be(tmp_path, size):
    write_raw(tmp_path / "a", {}, size=size)
    with pytest.raises(InputError):
        read_safetensors(tmp_path / "a")


def test_the_same_tensor_twice_is_refused(tmp_path):
    one = json.dumps(entry(offsets=(0, 8))).encode()
    write_raw(tmp_path / "a", b'{"x":' + one + b',"x":' + one + b"}", bytes(8))
    with pytest.raises(InputError, match="header"):
        read_safetensors(tmp_path / "a")


def test_failed_writes_leave_nothing(tmp_path):
    good = Tensor.of(np.zeros(3))
    for name, tensor, message in [("x", Tensor.of(np.zeros(3, complex)), "complex128"),
                                  ("__metadata__", good, "hold"), ("\udc80", good, "not text")]:
        with pytest.raises(InputError, match=message):
            write_safetensors(tmp_path / "a", {name: tensor})
    with pytest.raises(ValueError, match="promised"):
        write_safetensors(tmp_path / "a", {"x": Tensor((4,), np.dtype("f8"), good.load)})
    with pytest.raises(InputError, match="cannot be written"):
        write_safetensors(tmp_path / "none" / "a", {"x": good})
    assert list(tmp_path.iterdir()) == []
