"""Broken and hostile checkpoints: each loads to something valid, or raises an error of one line.

None runs code, takes memory beyond measure, or takes long.
"""

import collections
import contextlib
import io
import json
import os
import pickle
import random
import struct
import subprocess
import sys
import time
import zipfile

import numpy as np
import pytest

from convert import pickles
from convert.safetensors import read_metadata, read_safetensors, write_safetensors
from convert.tensor import Tensor
from convert.torch_file import read_torch, write_torch
from samjax.errors import InputError

MEMORY = 512 << 20  # bytes that reading a small file may reserve
SECONDS = 5
_watched = []  # events of the kinds below while `sandbox` is open
_watching = False
FORBIDDEN = ("exec", "compile", "import", "pickle.", "os.", "subprocess.", "ctypes.", "marshal.", "socket.",
             "shutil.", "webbrowser.", "sys.")


def _watch(event, arguments):
    writes = event == "open" and arguments[2] & (os.O_WRONLY | os.O_RDWR)
    if _watching and (writes or event.startswith(FORBIDDEN)):
        _watched.append((event, arguments))


sys.addaudithook(_watch)  # for good: a hook cannot be taken away


@contextlib.contextmanager
def sandbox():
    """Fail if the block runs code, takes much memory, or takes long."""
    global _watching
    resource = pytest.importorskip("resource")
    with open("/proc/self/statm" if os.path.exists("/proc/self/statm") else os.devnull) as file:
        used = int((file.read() or "0").split()[0]) * resource.getpagesize()
    old = resource.getrlimit(resource.RLIMIT_AS)
    if used:
        resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY, old[1]))
    _watched.clear()
    start = time.process_time()
    _watching = True
    try:
        yield
    finally:
        _watching = False
        resource.setrlimit(resource.RLIMIT_AS, old)
    assert time.process_time() - start < SECONDS
    assert not _watched, _watched


def attempt(read, path):
    """Read and load everything. Returns the error's message, or None; any other exception is a failure."""
    try:
        for tensor in read(path).values():
            array = tensor.load()
            assert array.shape == tensor.shape and array.dtype == tensor.dtype and array.flags.c_contiguous
            assert tensor.data().nbytes == array.nbytes
    except InputError as error:
        message = str(error)
        assert message.isprintable() and str(path) in message and len(message) < 600, message
        return message
    return None


def hostile(tmp_path, content, read=read_torch):
    """The message for a file that must be refused."""
    (tmp_path / "a.pth").write_bytes(content)
    with sandbox():
        message = attempt(read, tmp_path / "a.pth")
    assert message is not None
    assert [path.name for path in tmp_path.iterdir()] == ["a.pth"]
    return message


def small():
    rng = np.random.default_rng(0)
    kinds = {"a.weight": ("f4", (3, 4)), "a.bias": ("f4", (3,)), "b": ("f2", (2, 2, 2)), "n": ("i8", ()),
             "e": ("f4", (0, 2)), "t": ("?", (5,))}
    return {name: Tensor.of(np.asarray(rng.integers(0, 2, shape)).astype(kind))
            for name, (kind, shape) in kinds.items()}


def zipped(files, compression=zipfile.ZIP_STORED):
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", compression) as file:
        for name, data in files.items():
            file.writestr(name, data)
    return out.getvalue()


def checkpoint(index, **storages):
    """A zip with this pickle."""
    return zipped({"a/data.pkl": index, **{f"a/data/{key[1:]}": data for key, data in storages.items()}})


# -- pickles that would call code ----------------------------------------------------------------------------


class Calls:
    """Pickled, asks for function(*arguments)."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


def attacks(sentinel):
    command = f"touch {sentinel}"
    script = f"open({str(sentinel)!r}, 'w')"
    touch = ["touch", str(sentinel)]
    for function, *arguments in [
            (os.system, command), (eval, script), (exec, script), (subprocess.Popen, touch),
            (subprocess.check_output, touch), (open, str(sentinel), "w"), (getattr, "", "join"),
            (__import__, "antigravity"), (map, print, [1]), (type, "X", (), {}), (bytearray, 1 << 40),
            (np.zeros, 1 << 40), (np.load, str(sentinel)), (pickle.loads, b"."), (collections.deque, [1]),
            (compile, script, "", "exec"), (os.putenv, "A", "b"), (os.kill, 0, 0)]:
        for protocol in range(6):
            yield pickle.dumps({"x": Calls(function, *arguments)}, protocol)
            yield pickle.dumps({Calls(function, *arguments): 1}, protocol)
    text = command.encode()
    yield b"cos\nsystem\n(S'" + text + b"'\ntR."  # the oldest text form
    yield b"(S'" + text + b"'\nios\nsystem\n."  # INST
    yield b"\x80\x02(cos\nsystem\nX" + struct.pack("<I", len(text)) + text + b"o."  # OBJ
    yield b"\x80\x02cos\nsystem\n)\x81."  # NEWOBJ
    yield b"\x80\x02ccollections\nOrderedDict.__init__.__globals__\n."
    yield b"\x80\x04\x8c\x0bcollections\x8c\x1bOrderedDict.__init__.__func__\x93."
    yield b"\x80\x02ctorch._utils\n_rebuild_tensor_v2.__globals__\n."
    yield b"\x80\x02ctorch.hub\nload\n(X\x01\x00\x00\x00atR."
    yield b"\x80\x02ctorch.serialization\nload\nX\x01\x00\x00\x00a\x85R."
    yield b"\x80\x02ctorch.storage\n_load_from_bytes\nC\x01.\x85R."
    yield b"\x80\x02\x82\x01."  # EXT1: a registered extension
    yield b"\x80\x02Pabc\n."  # PERSID


def test_pickles_that_call_code_run_nothing(tmp_path):
    (tmp_path / "work").mkdir()
    sentinel = tmp_path / "sentinel"
    count = 0
    for index in attacks(sentinel):
        old = struct.pack("<B", 0x80) + bytes.fromhex("028a0a6cfc9c46f9206aa850192e") + b"\x80\x02M\xe9\x03."
        old += pickle.dumps({"little_endian": True}, 2)
        for content in (checkpoint(index), index, old + index):
            hostile(tmp_path / "work", content)
            count += 1
    assert count > 600 and not sentinel.exists()


def test_a_forbidden_global_is_named(tmp_path):
    message = hostile(tmp_path, checkpoint(pickle.dumps({"x": Calls(os.system, "true")}, 2)))
    assert "posix.system" in message and "not run" in message
    message = hostile(tmp_path, checkpoint(b"\x80\x02c" + b"a\\n" * 300 + b"\n\x1b[2J\n."))
    assert r"\x1b" in message


def test_the_sandbox_notices(tmp_path):
    """That the checks above can fail."""
    call = pickle.dumps(Calls(len, ""))
    for act in (lambda: os.system("true"), lambda: eval("1"), lambda: pickle.loads(call)):
        with pytest.raises(AssertionError), sandbox():
            act()
    if os.path.exists("/proc/self/statm"):
        with pytest.raises(MemoryError), sandbox():
            np.zeros(2 * MEMORY, np.uint8)


# -- pickles that would take all memory or time --------------------------------------------------------------


def view(shape=(2,), strides=(1,), offset=0, count=2, kind="FloatStorage", key="0", wrap=None):
    """A pickle of {"x": tensor}."""
    def integers(values):
        return b"(" + b"".join(integer(value) for value in values) + b"t"

    def integer(value):
        return b"\x8a\x20" + value.to_bytes(32, "little", signed=True)

    def text(value):
        return b"X" + struct.pack("<I", len(value)) + value.encode()

    storage = b"(" + text("storage") + b"ctorch\n" + kind.encode() + b"\n" + text(key) + text("cpu")
    body = (b"ctorch._utils\n_rebuild_tensor_v2\n(" + storage + integer(count) + b"tQ" + integer(offset)
            + integers(shape) + integers(strides) + b"\x89ccollections\nOrderedDict\n)RtR")
    return b"\x80\x02}" + text("x") + body + b"s."


def test_the_pickles_made_here_are_read(tmp_path):
    (tmp_path / "a.pth").write_bytes(checkpoint(view(), _0=bytes(8)))
    assert attempt(read_torch, tmp_path / "a.pth") is None


@pytest.mark.parametrize("settings", [
    {"shape": (3,)}, {"shape": (1 << 62,)}, {"shape": (1 << 40,), "strides": (0,)}, {"shape": (-1,)},
    {"offset": 1}, {"offset": -1}, {"strides": (-1,)}, {"strides": (2,)}, {"strides": (1 << 61,)},
    {"strides": (1, 1)}, {"shape": (1 << 31, 1 << 31), "strides": (0, 0)},
    {"shape": (0, 1 << 61), "strides": (0, 0)},
    {"shape": (1,) * 33, "strides": (1,) * 33}, {"count": 3}, {"count": -2}, {"count": 1 << 62}, {"count": 0},
    {"kind": "DoubleStorage"}, {"kind": "QInt8Storage"}, {"kind": "UntypedStorage"}, {"key": "1"},
    {"key": "../data.pkl"}, {"shape": (1 << 255 - 1,)}, {"shape": (), "strides": (), "offset": 2},
    {"shape": (1 << 17,), "strides": (0,)},
])
def test_tensors_that_are_not_in_their_storage(tmp_path, settings):
    hostile(tmp_path, checkpoint(view(**settings), _0=bytes(8)))


def test_a_scalar_of_an_empty_storage(tmp_path):
    hostile(tmp_path, checkpoint(view((), (), 0, 0), _0=b""))


def test_an_empty_tensor_may_begin_anywhere(tmp_path):
    (tmp_path / "a.pth").write_bytes(checkpoint(view((0, 3), (3, 1), (1 << 62) - 1), _0=bytes(8)))
    with sandbox():
        assert attempt(read_torch, tmp_path / "a.pth") is None


NEST = 300_000
BOMBS = {
    "deep lists": b"]" * NEST + b"a" * (NEST - 1) + b".",
    "deep tuples": b")" + b"\x85" * NEST + b".",
    "deep tuple as a key": b"})" + b"\x85" * NEST + b"Ns.",
    "deep dictionaries": b"}" + b"X\x01\0\0\0a}" * NEST + b"s" * NEST + b".",
    "laughs": b"]q\0" + b"".join(b"](" + bytes([0x68, i]) * 10 + bytes([0x65, 0x71, i + 1])
                                 for i in range(100)) + b".",
    "tuple laughs as a key": b"})" + b"q\0h\0\x86" * 100 + b"Ns.",
    "a far memo": b"]r\xff\xff\xff\x7f.",
    "a long text": b"X\xff\xff\xff\xff.",
    "a longer text": b"\x8d" + b"\xff" * 8 + b".",
    "long bytes": b"B\xff\xff\xff\xff.",
    "a long number": b"\x8b\xff\xff\xff\x7f" + b"1" * 1000 + b".",
    "a long frame": b"\x95" + b"\xff" * 8 + b"N.",
    "many lists": b"]" * 10_000_000 + b".",
    "many marks": b"(" * 10_000_000 + b".",
    "many instructions": b"N" * 40_000_000,
    "keys that collide": b"}(" + b"".join(b"\x8a\x10" + (i * ((1 << 61) - 1)).to_bytes(16, "little") + b"N"
                                         for i in range(1, 50_000)) + b"u.",
    "itself": b"}q\0X\x01\0\0\0ah\0s.",
    "a list in itself": b"]q\0h\0a.",
    "nothing": b"", "no end": b"}", "an empty stack": b".", "no mark": b"t.", "no memo": b"h\0.",
    "underflow": b"\x87.", "odd items": b"}(Nu.", "items of a list": b"](NNu.",
    "append to a dictionary": b"}Na.", "build nothing": b"Nb.", "call a text": b"X\1\0\0\0a)R.",
    "call with a list": b"ccollections\nOrderedDict\n]R.", "a text that is none": b"X\1\0\0\0\xff.",
    "persistent nothing": b"NQ.", "a long module": b"c" + b"a" * 100_000 + b"\n.",
    "a global of numbers": b"NN\x93.",
}


@pytest.mark.parametrize("name", BOMBS)
def test_pickle_bombs(tmp_path, name):
    hostile(tmp_path, checkpoint(b"\x80\x02" + BOMBS[name]))


def test_bombs_beside_a_good_model(tmp_path):
    """What lies beside the model is never walked: deep objects and self-references do no harm."""
    model = view()[2:-1]
    for beside in (b"]" * NEST + b"a" * (NEST - 1), b")" + b"q\0h\0\x86" * 1000, b"}q\0X\1\0\0\0ah\0s"):
        index = b"\x80\x02}X\5\0\0\0model" + model + b"sX\5\0\0\0other" + beside + b"s."
        (tmp_path / "a.pth").write_bytes(checkpoint(index, _0=bytes(8)))
        with sandbox():
            assert attempt(read_torch, tmp_path / "a.pth") is None


def test_many_views_of_one_storage(tmp_path):
    """Together they would be 10,000 times the file."""
    body = view((1 << 20,), (1,), 0, 1 << 20)[3:-2]
    entries = b"".join(b"X\5\0\0\0" + b"%05d" % i + body[6:] + b"s" for i in range(10_000))
    assert "claims" in hostile(tmp_path, checkpoint(b"\x80\x02}" + entries + b".", _0=bytes(4 << 20)))


# -- zips ----------------------------------------------------------------------------------------------------


def test_zip_bombs(tmp_path):
    zeros = bytes(64 << 20)
    good = view(shape=(16 << 20,), count=16 << 20)
    for files in ({"a/data.pkl": good, "a/data/0": zeros}, {"a/data.pkl": zeros},
                  {"a/data.pkl": b"N." + zeros},
                  {"a/data.pkl": view(), "a/data/0": bytes(8), "a/byteorder": zeros}):
        content = zipped(files, zipfile.ZIP_DEFLATED)
        assert len(content) < 1 << 20
        assert "inflate" in hostile(tmp_path, content)


def test_deflated_entries_that_lie_about_their_size(tmp_path):
    files = {"a/data.pkl": view(shape=(250,), count=250), "a/data/0": bytes(1000)}
    content = zipped(files, zipfile.ZIP_DEFLATED)
    (tmp_path / "a.pth").write_bytes(content)
    assert attempt(read_torch, tmp_path / "a.pth") is None
    place = content.rindex(b"PK\1\2")
    for field, value in ((24, 2000), (24, 500), (24, 0xFFFFFFFF), (20, 5), (16, 1)):
        broken = bytearray(content)
        struct.pack_into("<I", broken, place + field, value)
        hostile(tmp_path, bytes(broken))


def test_zips_that_are_not_checkpoints(tmp_path):
    index, data = view(), bytes(8)
    for files in ({}, {"a": b""}, {"a/data/0": data}, {"b/c/data.pkl": index, "b/c/data/0": data},
                  {"a/data.pkl": index}, {"a/data.pkl": index, "b/data.pkl": index, "a/data/0": data},
                  {"a/data.pkl": index, "a/data/0": data, "a/byteorder": b"big"},
                  {"a/data.pkl": index, "a/data/0": data, "a/constants.pkl": b""}):
        hostile(tmp_path, zipped(files))
    with pytest.warns(UserWarning, match="Duplicate"):
        out = io.BytesIO()
        with zipfile.ZipFile(out, "w") as file:
            for name, content in [("a/data.pkl", index), ("a/data/0", data), ("a/data/0", data)]:
                file.writestr(name, content)
    assert "two files" in hostile(tmp_path, out.getvalue())


def test_entries_that_overlap(tmp_path):
    """One entry listed under many names, as overlapping zip bombs do."""
    content = zipped({"a/data.pkl": view(), "a/data/0": bytes(8), "a/data/1": bytes(8)})
    place = content.rindex(b"PK\1\2")
    other = content.rindex(b"PK\1\2", 0, place)
    broken = bytearray(content)
    broken[place + 42:place + 46] = content[other + 42:other + 46]
    hostile(tmp_path, bytes(broken))


@pytest.mark.parametrize("cut", [0.1, 0.5, 0.9, 0.999])
def test_truncated_files(tmp_path, cut):
    tensors = {"x": Tensor.of(np.arange(100_000))}
    for read, write in ((read_torch, write_torch), (read_safetensors, write_safetensors)):
        write(tmp_path / "b", tensors)
        content = (tmp_path / "b").read_bytes()
        (tmp_path / "b").unlink()
        message = hostile(tmp_path, content[:int(cut * len(content))], read)
        assert "again" in message


def test_pipes_and_devices_are_refused(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", "/dev/zero"):
        for read in (read_torch, read_safetensors, read_metadata):
            with pytest.raises(InputError, match="is not a file"):
                read(path)


# -- mutations -----------------------------------------------------------------------------------------------


def seeds(tmp_path):
    """(reader, bytes, how to wrap a mutation of the bytes) of small good files."""
    write_torch(tmp_path / "a.pth", small())
    write_safetensors(tmp_path / "a.safetensors", small(), {"format": "pt"})
    written = (tmp_path / "a.pth").read_bytes()
    safe = (tmp_path / "a.safetensors").read_bytes()
    found = [(read_torch, written, bytes), (read_safetensors, safe, bytes)]
    with zipfile.ZipFile(io.BytesIO(written)) as file:
        files = {name: file.read(name) for name in file.namelist()}
    index = files["archive/data.pkl"]  # alone: the zip around each mutation of it is sound
    found.append((read_torch, index, lambda data: zipped({**files, "archive/data.pkl": data})))
    found.append((read_torch, zipped(files, zipfile.ZIP_DEFLATED), bytes))
    size, = struct.unpack("<Q", safe[:8])
    found.append((read_safetensors, safe[8:8 + size],
                  lambda text: struct.pack("<Q", len(text)) + text + safe[8 + size:]))
    return found


def torch_seeds():
    """The same from PyTorch, in both its layouts."""
    torch = pytest.importorskip("torch")
    base = torch.arange(12.0).reshape(3, 4)
    content = {"epoch": 1, "model": {"a": base, "b": base.T[1:], "c": torch.tensor(3), "d": base.bfloat16(),
                                     "p": torch.nn.Parameter(base[0])}}
    for zip_layout in (True, False):
        out = io.BytesIO()
        torch.save(content, out, _use_new_zipfile_serialization=zip_layout)
        yield read_torch, out.getvalue(), bytes
        if zip_layout:
            with zipfile.ZipFile(out) as file:
                files = {name: file.read(name) for name in file.namelist()}
            yield (read_torch, files["archive/data.pkl"],
                   lambda data, files=files: zipped({**files, "archive/data.pkl": data}))


INTERESTING = [b"\0", b"\xff", b"\x7f", b"\x80", b"\n", b"(", b"R", b"b", b"t", b"u", b".", b"Q", b"h\0",
               b"\x86", b"\xff" * 4, b"\xff" * 8, b"\0\0\0\x80", b"\xff\xff\xff\x7f", b"PK\1\2", b"PK\5\6",
               b"cos\nsystem\n", b"Double", b"9" * 30, b"[", b"{", b"-1", b"null", b"1e9", b"BF16", b"F64"]


def mutate(rng, content):
    content, kinds = bytearray(content), rng.choice([8, 2])  # any change, or flipped bits alone
    for _ in range(rng.choice([1, 1, 1, 2, 4, 16])):
        at = rng.randrange(len(content) + 1)
        kind = rng.randrange(kinds)
        if kind == 7:
            del content[at:]
        elif kind == 6:
            del content[at:at + rng.choice([1, 2, 8, 100])]
        elif kind == 5:
            content[at:at] = rng.choice(INTERESTING)
        elif kind == 3:
            value = rng.choice(INTERESTING)
            content[at:at + len(value)] = value
        elif kind == 4:
            other = rng.randrange(len(content) + 1)
            content[at:at] = content[other:other + rng.choice([1, 4, 30, 200])]
        elif at < len(content):
            content[at] = rng.randrange(256) if kind == 2 else content[at] ^ 1 << rng.randrange(8)
    return bytes(content)


def fuzz(tmp_path, found, count, seed):
    """Read mutations of the seeds in turn; returns how many were read and how many refused."""
    rng, path, refused = random.Random(seed), tmp_path / "mutation", 0
    for read, content, wrap in found:  # each seed is good, and what reading imports is imported
        path.write_bytes(wrap(content))
        assert attempt(read, path) is None
    for i in range(count):
        read, content, wrap = found[i % len(found)]
        path.write_bytes(wrap(mutate(rng, content)))
        with sandbox():
            refused += attempt(read, path) is not None
            if read is read_safetensors:
                with contextlib.suppress(InputError):
                    read_metadata(path)
    return count - refused, refused


@pytest.mark.slow
def test_fuzz(tmp_path):
    read, refused = fuzz(tmp_path, seeds(tmp_path), 5000, seed=0)
    assert read > 300 and refused > 2000


@pytest.mark.torch
def test_fuzz_of_what_torch_saves(tmp_path):
    read, refused = fuzz(tmp_path, list(torch_seeds()), 1500, seed=1)
    assert read > 100 and refused > 600


def test_the_header_of_safetensors_cannot_take_all_memory(tmp_path):
    for text in (b'{"x":[' + b"[]," * 4_000_000 + b"0]}", b"{" + b'"a":{},' * 4_000_000 + b"}",
                 b'{"x":"' + b"\\u0041" * 1_000_000 + b'"}', json.dumps({"a" * 1_000_000: 1}).encode()):
        hostile(tmp_path, struct.pack("<Q", len(text)) + text, read_safetensors)


def test_the_interpreter_alone_gives_only_its_own_errors():
    """Random instructions from its own list, without a file around them."""
    rng = random.Random(2)
    codes = [bytes([code]) for code, handler in enumerate(pickles._HANDLERS) if handler] + [b"."]
    for _ in range(5000):
        length = rng.randrange(30)
        data = b"".join(rng.choice(codes) + rng.randbytes(rng.choice([0, 0, 1, 4])) for _ in range(length))
        with contextlib.suppress(pickles.PickleError):
            pickles.load(data, {"a.b": pickles.Call(lambda arguments: None)}, lambda found: None)
