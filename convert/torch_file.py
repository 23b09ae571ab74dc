"""PyTorch checkpoints (.pth, .pt) read and written without PyTorch, running nothing of what they hold.

Both layouts of `torch.save` are read: the zip archive (since 1.6) and the older stream of pickles. What is
written is the archive, which `torch.load(path, weights_only=True)` reads, also with `mmap=True`.
"""

import math
import struct
from collections.abc import Iterable, Mapping

import numpy as np

from convert import archive, pickles, stand_ins
from convert.files import InputFile, bad_file, quote, replacing, strided_copy
from convert.pickles import PickleError
from convert.stand_ins import ALLOWED, STORAGES, Storage, View
from convert.tensor import Tensor

WRAPPERS = "state_dict", "model_state_dict", "model"  # where training checkpoints keep the model
MAX_EXPANDED = 1 << 16  # elements of a tensor that repeats its storage's elements
_MAGIC = bytes.fromhex("80028a0a6cfc9c46f9206aa850192e")  # the pickled number that opens the older layout


def read_torch(path) -> dict[str, Tensor]:
    """The tensors of a checkpoint by name, in its order; their data are read when loaded.

    The checkpoint is a dictionary of tensors, or holds one under "state_dict", "model_state_dict" or "model"
    (what lies beside it, such as an optimiser's state, is left out). A "module." that begins every name, from
    data-parallel training, is taken off. Raises InputError.
    """
    file = InputFile(path)
    try:
        start = file.read(0, min(file.size, len(_MAGIC)))
        if start[:4] == b"PK\3\4":
            state, source = _read_archive(file)
        elif start == _MAGIC:
            state, source = _read_stream(file)
        else:
            raise PickleError("is not a PyTorch checkpoint (a web page saved in its place?); fetch it again")
        views = _model(state)
        tensors = {name: _tensor(view, name, source) for name, view in views.items()}
    except PickleError as error:
        raise file.bad(str(error)) from None
    claimed, held = sum(tensor.nbytes for tensor in tensors.values()), source.size
    if claimed > 8 * held + (64 << 20):
        raise file.bad(f"holds {held} bytes of data but claims {claimed}; {pickles.RESAVE}")
    return tensors


# -- reading -------------------------------------------------------------------------------------------------


class _Source:
    """The storages of a file: where each lies, by its key, and how many bytes they are."""

    def __init__(self, file: InputFile, places: Mapping[str, archive.Entry]):
        self.file, self._places = file, places
        self.size = sum(entry.size for entry in places.values())

    def entry(self, storage: Storage) -> archive.Entry:
        found = self._places.get(storage.key)
        if found is None or found.size != storage.count * storage.dtype.itemsize:
            raise PickleError("lacks data that it lists; it is damaged: fetch or save it again")
        return found


def _read_archive(file: InputFile):
    entries = archive.read_entries(file)
    indexes = [name for name in entries if name.split("/", 1)[-1] == "data.pkl"]
    if len(indexes) != 1:
        raise PickleError("is a zip but not a PyTorch checkpoint (it has no data.pkl, or several)")
    root = indexes[0].removesuffix("data.pkl")
    if root + "constants.pkl" in entries:
        raise PickleError("is a TorchScript program; save its state_dict() with torch.save instead")
    order = entries.get(root + "byteorder")
    if order and (order.size > 100 or archive.read(file, order).strip() != b"little"):
        raise PickleError("was saved on a big-endian machine; save it again on a little-endian one")
    index = entries[indexes[0]]
    if index.size > pickles.MAX_BYTES:
        raise PickleError(f"describes more than a model; {pickles.RESAVE}")
    state, _ = pickles.load(archive.read(file, index), ALLOWED, stand_ins.storage)
    data = {name.removeprefix(f"{root}data/"): entry for name, entry in entries.items()
            if name.startswith(f"{root}data/")}
    return state, _Source(file, data)


def _read_stream(file: InputFile):
    """Magic number, version, the writer's byte order, the object, the storages' keys, the storages."""
    data = file.read(0, min(file.size, pickles.MAX_BYTES))
    storages: dict[str, Storage] = {}

    def storage(found):
        new = stand_ins.storage(found)
        old = storages.setdefault(new.key, new)
        if old != new or new.dtype is None:
            raise PickleError(stand_ins.UNKNOWN)
        return new

    version, at = pickles.load(data, {}, storage, len(_MAGIC))
    system, at = pickles.load(data, {}, storage, at)
    if version != 1001 or type(system) is not dict or system.get("little_endian") is not True:
        raise PickleError(f"is of an unknown version or byte order; {pickles.RESAVE}")
    state, at = pickles.load(data, ALLOWED, storage, at)
    keys, at = pickles.load(data, {}, storage, at)
    if type(keys) is not list or any(type(key) is not str or key not in storages for key in keys):
        raise PickleError("is damaged or cut short; fetch or save it again")
    places = {}
    for key in keys:
        count, = struct.unpack("<q", file.read(at, 8))
        if count != storages[key].count:
            raise PickleError("is damaged or cut short; fetch or save it again")
        size = count * storages[key].dtype.itemsize
        places[key] = archive.Entry(key, at + 8, size, size, False, 0)
        at += 8 + size
        if at > file.size:
            raise PickleError("is cut short; fetch or save it again")
    return state, _Source(file, places)


def _model(state: object) -> dict[str, View]:
    """The dictionary of tensors in a checkpoint, without a prefix that all names share."""
    if type(state) is not dict:
        raise PickleError(f"holds no dictionary of tensors; {pickles.RESAVE}")
    for key in WRAPPERS:
        inner = state.get(key)
        if type(inner) is dict and any(type(value) is View for value in inner.values()):
            state = inner
            break
    if not any(type(value) is View for value in state.values()):
        raise PickleError(f"holds no tensors by name; {pickles.RESAVE}")
    for name, value in state.items():
        if type(name) is not str or type(value) is not View:
            raise PickleError(f"has {quote(name)} among its tensors, which is not a tensor; {pickles.RESAVE}")
    if all(name.startswith("module.") for name in state):
        return {name.removeprefix("module."): view for name, view in state.items()}
    return state


def _tensor(view: View, name: str, source: _Source) -> Tensor:
    """A checked tensor: it lies within its storage, and its size is that of its storage or small."""
    storage, dtype, count = view.storage, view.storage.dtype, math.prod(view.shape)
    entry = source.entry(storage)
    last = view.offset + sum((n - 1) * step for n, step in zip(view.shape, view.strides))
    outside = count and last >= storage.count or math.prod(filter(None, view.shape)) >= 1 << 58
    if outside or count > max(storage.count, MAX_EXPANDED):
        raise PickleError(f"gives {quote(name)} a size that its data do not have; if it is an expanded view, "
                          f"save a .contiguous() copy, else fetch the file again")
    strides = tuple(step * dtype.itemsize if n > 1 else 0 for n, step in zip(view.shape, view.strides))
    start = view.offset * dtype.itemsize

    def load() -> np.ndarray:
        if entry.deflated and count:
            return strided_copy(archive.read(source.file, entry), dtype, start, view.shape, strides)
        return source.file.array(dtype, entry.start + start, view.shape, strides)

    return Tensor(view.shape, dtype, load)


# -- writing -------------------------------------------------------------------------------------------------


def write_torch(path, tensors: Mapping[str, Tensor]) -> None:
    """Write a checkpoint that `torch.load(path, weights_only=True)` reads as an OrderedDict of these tensors.

    One tensor is in memory at a time. The file appears under its name when it is complete. The same tensors
    give the same bytes. Every tensor gets its own storage, also where two were one. Raises InputError.
    """
    kinds = {dtype: name for name, dtype in STORAGES.items()}
    for name, tensor in tensors.items():
        if tensor.dtype not in kinds:
            raise bad_file(path, f"a PyTorch checkpoint cannot hold {quote(name)}, which is {tensor.dtype}")
    try:
        index = b"".join(_pickled((name, kinds[t.dtype], t.shape) for name, t in tensors.items()))
    except UnicodeEncodeError:
        raise bad_file(path, "cannot be written: a tensor's name is not text") from None
    with replacing(path) as file:
        out = archive.Writer(file)
        out.write("archive/data.pkl", index)
        out.write("archive/byteorder", b"little")
        for key, tensor in enumerate(tensors.values()):
            out.write(f"archive/data/{key}", tensor.data())
        out.write("archive/version", b"3\n")
        out.close()


def _pickled(tensors: Iterable[tuple[str, str, tuple[int, ...]]]) -> Iterable[bytes]:
    """The pickle (protocol 2) of an OrderedDict of tensors, one contiguous storage each."""
    new_dict = b"ccollections\nOrderedDict\n)R"
    yield b"\x80\x02" + new_dict + b"("
    for key, (name, storage, shape) in enumerate(tensors):
        strides = [math.prod(shape[axis + 1:]) for axis in range(len(shape))]
        persistent = (b"(" + _string("storage") + b"ctorch\n" + storage.encode() + b"\n" + _string(str(key))
                      + _string("cpu") + _integer(math.prod(shape)) + b"tQ")
        yield (_string(name) + b"ctorch._utils\n_rebuild_tensor_v2\n(" + persistent + _integer(0)
               + _integers(shape) + _integers(strides) + b"\x89" + new_dict + b"tR")
    yield b"u."


def _string(text: str) -> bytes:
    encoded = text.encode()
    return b"X" + struct.pack("<I", len(encoded)) + encoded


def _integer(value: int) -> bytes:
    if value < 1 << 31:
        return b"J" + struct.pack("<i", value)
    return b"\x8a\x08" + struct.pack("<q", value)


def _integers(values: Iterable[int]) -> bytes:
    return b"(" + b"".join(map(_integer, values)) + b"t"
