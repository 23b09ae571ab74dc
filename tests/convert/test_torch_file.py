"""PyTorch checkpoints: against PyTorch itself where it is installed, else against what was written."""

import struct
import subprocess
import sys
import textwrap
import zipfile
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

from convert import archive
from convert.tensor import Tensor
from convert.torch_file import read_torch, write_torch
from samjax.errors import InputError

DTYPES = ["f2", "f4", "f8", ml_dtypes.bfloat16, "i1", "i2", "i4", "i8", "u1", "?"]


def arrays(seed=0):
    """Every type; scalars, empty ones, a unit axis."""
    random = np.random.default_rng(seed)
    found = {}
    for kind in map(np.dtype, DTYPES):
        for shape in [(), (3,), (2, 1, 5), (0, 4), (7, 9)]:
            values = random.integers(0, 2 if kind.kind == "b" else 100, shape)
            found[f"{kind.name}.{len(shape)}d.{'x'.join(map(str, shape))}"] = np.asarray(values).astype(kind)
    return found


def assert_same(tensors, expected):
    assert list(tensors) == list(expected)
    for name, array in expected.items():
        tensor = tensors[name]
        loaded = tensor.load()
        for found in (tensor, loaded):
            assert (found.shape, found.dtype) == (array.shape, array.dtype), name
        assert type(loaded) is np.ndarray and loaded.flags.c_contiguous, name
        assert loaded.tobytes() == array.tobytes(), name


def saved(tmp_path, content, **settings):
    """What `read_torch` makes of `torch.save(content)`, in a model.pth."""
    torch = pytest.importorskip("torch")
    torch.save(content, tmp_path / "model.pth", **settings)
    return read_torch(tmp_path / "model.pth")


def to_numpy(tensor):
    torch = pytest.importorskip("torch")
    tensor = tensor.detach().contiguous()
    if tensor.dtype == torch.bfloat16:
        return tensor.view(torch.int16).numpy().view(ml_dtypes.bfloat16)
    return tensor.numpy()


def test_round_trip_is_exact_and_deterministic(tmp_path):
    expected = arrays()
    for name in ("a.pth", "b.pth"):
        write_torch(tmp_path / name, {name: Tensor.of(array) for name, array in expected.items()})
    assert_same(read_torch(tmp_path / "a.pth"), expected)
    assert (tmp_path / "a.pth").read_bytes() == (tmp_path / "b.pth").read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.pth", "b.pth"]


def test_not_a_number_keeps_its_bits(tmp_path):
    bits = np.array([0x7FC01234, 0x7F800001, 0xFFC00000], np.uint32)
    write_torch(tmp_path / "a.pth", {"x": Tensor.of(bits.view(np.float32))})
    assert read_torch(tmp_path / "a.pth")["x"].load().tobytes() == bits.tobytes()


def test_storages_are_aligned_and_the_zip_is_sound(tmp_path):
    write_torch(tmp_path / "a.pth", {name: Tensor.of(array) for name, array in arrays().items()})
    with zipfile.ZipFile(tmp_path / "a.pth") as file:
        assert file.testzip() is None
        data = (tmp_path / "a.pth").read_bytes()
        for entry in file.infolist():
            name, extra = struct.unpack("<HH", data[entry.header_offset + 26:entry.header_offset + 30])
            assert (entry.header_offset + 30 + name + extra) % 64 == 0, entry.filename


def test_files_beyond_4_gib(tmp_path, monkeypatch):
    """The 64-bit records, with the limit lowered so that a small file needs them."""
    monkeypatch.setattr(archive, "WIDE", 100)
    expected = arrays()
    write_torch(tmp_path / "a.pth", {name: Tensor.of(array) for name, array in expected.items()})
    monkeypatch.undo()
    assert b"PK\6\6" in (tmp_path / "a.pth").read_bytes()
    assert_same(read_torch(tmp_path / "a.pth"), expected)
    with zipfile.ZipFile(tmp_path / "a.pth") as file:
        assert file.testzip() is None
        assert any(len(file.read(entry)) >= 100 for entry in file.infolist())


def rezipped(source, target, **settings):
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w", **settings) as new:
        for entry in old.infolist():
            new.writestr(entry.filename, old.read(entry))


def test_deflated_archives(tmp_path):
    expected = arrays()
    write_torch(tmp_path / "a.pth", {name: Tensor.of(array) for name, array in expected.items()})
    rezipped(tmp_path / "a.pth", tmp_path / "b.pth", compression=zipfile.ZIP_DEFLATED)
    assert_same(read_torch(tmp_path / "b.pth"), expected)


def test_other_compressions_are_refused(tmp_path):
    write_torch(tmp_path / "a.pth", {"x": Tensor.of(np.zeros(3))})
    rezipped(tmp_path / "a.pth", tmp_path / "b.pth", compression=zipfile.ZIP_BZIP2)
    with pytest.raises(InputError, match="save it uncompressed"):
        read_torch(tmp_path / "b.pth")


@pytest.mark.parametrize("content, message", [
    (b"", "empty"), (b"<!DOCTYPE html>", "web page"), (b"version https://git-lfs", "not a PyTorch"),
    (b"PK\3\4", "damaged"),
])
def test_what_is_not_a_checkpoint(tmp_path, content, message):
    (tmp_path / "a.pth").write_bytes(content)
    with pytest.raises(InputError, match=message):
        read_torch(tmp_path / "a.pth")


def test_missing_files_and_folders(tmp_path):
    for path, message in [(tmp_path / "none.pth", "No such file"), (tmp_path, "is not a file"),
                          ("a\0b.pth", "cannot be read")]:
        with pytest.raises(InputError, match=message) as caught:
            read_torch(path)
        assert "\n" not in str(caught.value)


def test_a_file_cut_while_it_is_open(tmp_path):
    write_torch(tmp_path / "a.pth", {"x": Tensor.of(np.zeros(100_000))})
    tensor = read_torch(tmp_path / "a.pth")["x"]
    with open(tmp_path / "a.pth", "r+b") as file:
        file.truncate(5000)
    with pytest.raises(InputError, match="cut short"):
        tensor.load()


def test_a_file_replaced_while_it_is_open(tmp_path):
    """Converting a file onto itself: the old data are read to the end."""
    write_torch(tmp_path / "a.pth", {"x": Tensor.of(np.arange(9.0)), "y": Tensor.of(np.arange(5))})
    write_torch(tmp_path / "a.pth", read_torch(tmp_path / "a.pth"))
    assert_same(read_torch(tmp_path / "a.pth"), {"x": np.arange(9.0), "y": np.arange(5)})


def test_failed_writes_leave_nothing(tmp_path):
    def fail():
        raise InputError("unreadable")

    good = Tensor.of(np.zeros(3))
    with pytest.raises(InputError, match="unreadable"):
        write_torch(tmp_path / "a.pth", {"x": good, "y": Tensor((3,), np.dtype("f4"), fail)})
    with pytest.raises(ValueError, match="promised"):
        write_torch(tmp_path / "a.pth", {"x": Tensor((4,), np.dtype("f8"), good.load)})
    with pytest.raises(InputError, match="complex64"):
        write_torch(tmp_path / "a.pth", {"x": Tensor.of(np.zeros(3, np.complex64))})
    with pytest.raises(InputError, match="not text"):
        write_torch(tmp_path / "a.pth", {"\udc80": good})
    with pytest.raises(InputError, match="No such file"):
        write_torch(tmp_path / "none" / "a.pth", {"x": good})
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "folder").mkdir()
    with pytest.raises(InputError, match="cannot be written"):
        write_torch(tmp_path / "folder", {"x": good})
    assert [path.name for path in tmp_path.iterdir()] == ["folder"]


def test_a_full_disk_leaves_what_was_there(tmp_path):
    """A limit on the file's size stands for the full disk; it holds for the process, hence another one."""
    pytest.importorskip("resource")
    write_torch(tmp_path / "a.pth", {"x": Tensor.of(np.arange(3.0))})
    script = textwrap.dedent("""
        import resource, sys
        import numpy as np
        from convert.tensor import Tensor
        from convert.torch_file import write_torch
        from convert.safetensors import write_safetensors
        from samjax.errors import InputError
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
        for write in (write_torch, write_safetensors):
            try:
                write(sys.argv[1], {"x": Tensor.of(np.zeros(100)), "y": Tensor.of(np.zeros(100_000))})
            except InputError as error:
                assert "cannot be written: File too large" in str(error), error
            else:
                raise SystemExit("no error")
    """)
    root = Path(__file__).resolve().parents[2]
    subprocess.run([sys.executable, "-c", script, tmp_path / "a.pth"], cwd=root, check=True)
    assert [path.name for path in tmp_path.iterdir()] == ["a.pth"]
    assert_same(read_torch(tmp_path / "a.pth"), {"x": np.arange(3.0)})


@pytest.mark.torch
@pytest.mark.parametrize("settings", [{}, {"pickle_protocol": 4}, {"_use_new_zipfile_serialization": False}],
                         ids=["zip", "protocol 4", "before 1.6"])
def test_reads_what_torch_saves(tmp_path, settings):
    torch = pytest.importorskip("torch")
    torch.manual_seed(0)
    base = torch.randn(6, 8)
    content = {
        "plain": base, "transposed": base.T, "slice": base[2:5, 1:7:2], "row": base[3], "scalar": base[1, 1],
        "expanded": torch.tensor([1.0, 2.0])[:, None].expand(2, 3), "empty": torch.zeros(0, 3),
        "empty slice": base[:, 8:], "parameter": torch.nn.Parameter(torch.randn(3)),
        "unit": base[:1, None], "bf16": torch.randn(3, 5).bfloat16(), "half": torch.randn(4).half(),
        "double": torch.randn(2).double(), "bool": torch.tensor([[True, False]]).T, "long": torch.tensor(7),
        "int": torch.arange(5).int(), "short": torch.arange(5).short(), "char": torch.arange(-3, 3).char(),
        "byte": torch.arange(6).byte(),
    }
    expected = {name: to_numpy(value) for name, value in content.items()}
    assert_same(saved(tmp_path, content, **settings), expected)


@pytest.mark.torch
def test_reads_types_without_a_storage_class(tmp_path):
    torch = pytest.importorskip("torch")
    content = {"u16": torch.arange(6).to(torch.uint16).reshape(2, 3), "u32": torch.arange(4).to(torch.uint32)}
    assert_same(saved(tmp_path, content), {name: value.numpy() for name, value in content.items()})


@pytest.mark.torch
@pytest.mark.parametrize("key", ["state_dict", "model_state_dict", "model"])
def test_unwraps_training_checkpoints(tmp_path, key):
    torch = pytest.importorskip("torch")
    model = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.BatchNorm1d(3))
    optimiser = torch.optim.AdamW(model.parameters())
    model(torch.randn(4, 2)).sum().backward()
    optimiser.step()
    wrapped = {f"module.{name}": value for name, value in model.state_dict().items()}
    content = {"epoch": 3, "optimizer": optimiser.state_dict(), "score": np.float64(0.5),
               "size": torch.Size([1, 2]), "device": torch.device("cpu"), "type": torch.float16, key: wrapped}
    expected = {name: to_numpy(value) for name, value in model.state_dict().items()}
    assert expected["1.num_batches_tracked"].shape == ()
    assert_same(saved(tmp_path, content), expected)


@pytest.mark.torch
@pytest.mark.parametrize("content, message", [
    ({"x": 3}, "no tensors"), ({}, "no tensors"), ([1, 2], "no dictionary"),
    ({"x": "tensor", "y": 1}, "'y' among its tensors"), ({1: "tensor"}, "among its tensors"),
    ({"x": "tensor", "big": "expanded"}, "contiguous"),
])
def test_what_is_not_a_dictionary_of_tensors(tmp_path, content, message):
    torch = pytest.importorskip("torch")
    made = {"tensor": torch.zeros(3), "expanded": torch.zeros(1).expand(1 << 30)}
    if isinstance(content, dict):
        content = {key: made.get(value, value) for key, value in content.items()}
    with pytest.raises(InputError, match=message):
        saved(tmp_path, content)


@pytest.mark.torch
def test_refuses_whole_modules_and_programs(tmp_path):
    torch = pytest.importorskip("torch")
    with pytest.raises(InputError, match=r"torch\.nn\.modules\.linear\.Linear.*state_dict"):
        saved(tmp_path, torch.nn.Linear(2, 2))
    torch.jit.script(torch.nn.Linear(2, 2)).save(tmp_path / "b.pt")
    with pytest.raises(InputError, match="TorchScript"):
        read_torch(tmp_path / "b.pt")


@pytest.mark.torch
@pytest.mark.parametrize("mmap", [False, True])
@pytest.mark.parametrize("wide", [100, archive.WIDE])
def test_torch_loads_what_is_written(tmp_path, monkeypatch, mmap, wide):
    torch = pytest.importorskip("torch")
    monkeypatch.setattr(archive, "WIDE", wide)
    expected = arrays()
    write_torch(tmp_path / "a.pth", {name: Tensor.of(array) for name, array in expected.items()})
    loaded = torch.load(tmp_path / "a.pth", weights_only=True, mmap=mmap)
    assert list(loaded) == list(expected) and type(loaded).__name__ == "OrderedDict"
    for name, array in expected.items():
        value = to_numpy(loaded[name])
        assert (value.shape, value.dtype) == (array.shape, array.dtype), name
        assert value.tobytes() == array.tobytes(), name
        assert loaded[name].stride() == torch.empty(array.shape).stride(), name


@pytest.mark.torch
def test_a_module_loads_what_is_written_strictly(tmp_path):
    torch = pytest.importorskip("torch")
    model = torch.nn.Sequential(torch.nn.Conv2d(2, 3, 1), torch.nn.BatchNorm2d(3))
    write_torch(tmp_path / "b.pth", saved(tmp_path, model.state_dict()))
    other = torch.nn.Sequential(torch.nn.Conv2d(2, 3, 1), torch.nn.BatchNorm2d(3))
    other.load_state_dict(torch.load(tmp_path / "b.pth", weights_only=True), strict=True)
    for old, new in zip(model.state_dict().values(), other.state_dict().values()):
        assert torch.equal(old, new)


STREAM = textwrap.dedent("""
    import resource, sys
    from pathlib import Path
    import numpy as np
    from convert.safetensors import read_safetensors, write_safetensors
    from convert.torch_file import read_torch, write_torch
    source, target = map(Path, sys.argv[1:])
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    read = read_torch if source.suffix == ".pth" else read_safetensors
    write = write_torch if target.suffix == ".pth" else write_safetensors
    write(target, read(source))
    print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024)
""")


@pytest.mark.slow
def test_memory_of_a_streaming_copy(tmp_path):
    """400 MB to safetensors and back in a twentieth of that: 8 MB a tensor."""
    pytest.importorskip("resource")
    random = np.random.default_rng(0)
    block = random.integers(0, 1 << 32, 2 << 20, np.uint32)

    def tensor(i):
        return Tensor((2048, 1024), np.dtype("f4"), lambda: np.roll(block, i).view("f4").reshape(2048, 1024))

    tensors = {f"{i:02}": tensor(i) for i in range(50)}
    paths = [tmp_path / name for name in ("a.pth", "b.safetensors", "c.pth")]
    write_torch(paths[0], tensors)
    size = paths[0].stat().st_size
    assert size > 400e6
    for source, target in zip(paths, paths[1:]):
        root = Path(__file__).resolve().parents[2]
        peak = subprocess.run([sys.executable, "-c", STREAM, source, target], cwd=root, check=True,
                              capture_output=True, text=True).stdout
        assert int(peak) < size / 20
    assert paths[0].read_bytes() == paths[2].read_bytes()
