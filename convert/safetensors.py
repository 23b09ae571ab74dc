"""The safetensors format: a JSON header, then the tensors' bytes one after another.

The reader accepts exactly what the format allows: tensors cover the data without gap or overlap, and their
sizes are those of their shapes.
"""

import json
import math
import struct
from collections.abc import Mapping

import numpy as np

from convert.files import InputFile, bad_file, quote, replacing
from convert.tensor import BFLOAT16, Tensor

MAX_HEADER = 100_000_000  # the format's own limit
MAX_MARKS = 2_000_000  # commas and brackets: bounds the memory that parsing takes; a tensor has about ten
MAX_DIMENSIONS = 32
_DTYPES = {
    "F64": np.dtype("f8"), "F32": np.dtype("f4"), "F16": np.dtype("f2"), "BF16": BFLOAT16,
    "I64": np.dtype("i8"), "I32": np.dtype("i4"), "I16": np.dtype("i2"), "I8": np.dtype("i1"),
    "U64": np.dtype("u8"), "U32": np.dtype("u4"), "U16": np.dtype("u2"), "U8": np.dtype("u1"),
    "BOOL": np.dtype("?"),
}
_DAMAGED = "is not a whole safetensors file; fetch or save it again"
_MISFIT = "gives {} a place or a size that its data do not have; fetch or save it again"


def read_safetensors(path) -> dict[str, Tensor]:
    """The tensors by name, in the order of their data, which are read when loaded. Raises InputError."""
    file = InputFile(path)
    header, start = _header(file)
    found = sorted(((name, *_entry(file, name, entry)) for name, entry in header.items()),
                   key=lambda entry: entry[3:])
    end = 0
    for name, dtype, shape, first, last in found:
        if first != end or last - first != math.prod(shape) * dtype.itemsize:
            raise file.bad(_MISFIT.format(quote(name)))
        end = last
    if start + end != file.size:
        raise file.bad(_DAMAGED)
    return {name: _tensor(file, dtype, shape, start + first) for name, dtype, shape, first, _ in found}


def read_metadata(path) -> dict[str, str]:
    """The file's own notes: text by name. Raises InputError."""
    return _header(InputFile(path), metadata=True)


def write_safetensors(path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> None:
    """Write tensors, and notes if given ({"format": "pt"} is what `transformers` looks for).

    One tensor is in memory at a time. The file appears under its name when it is complete. The same tensors
    give the same bytes, ordered by element size, then name. Raises InputError.
    """
    names = {dtype: name for name, dtype in _DTYPES.items()}
    header, at = {"__metadata__": dict(metadata)} if metadata else {}, 0
    order = sorted(tensors, key=lambda name: (-tensors[name].dtype.itemsize, name))
    for name in order:
        tensor = tensors[name]
        if tensor.dtype not in names or name == "__metadata__":
            raise bad_file(path, f"a safetensors file cannot hold {quote(name)}, which is {tensor.dtype}")
        header[name] = {"dtype": names[tensor.dtype], "shape": list(tensor.shape),
                        "data_offsets": [at, at + tensor.nbytes]}
        at += tensor.nbytes
    try:
        encoded = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
    except UnicodeEncodeError:
        raise bad_file(path, "cannot be written: a tensor's name is not text") from None
    encoded += b" " * (-len(encoded) % 8)  # so that the data are aligned
    with replacing(path) as file:
        file.write(struct.pack("<Q", len(encoded)))
        file.write(encoded)
        for name in order:
            file.write(tensors[name].data())


def _header(file: InputFile, metadata: bool = False) -> tuple[dict, int] | dict[str, str]:
    """(the tensors' entries, where the data start), or the notes."""
    if file.size < 8:
        raise file.bad(_DAMAGED)
    size, = struct.unpack("<Q", file.read(0, 8))
    if size > min(MAX_HEADER, file.size - 8):
        raise file.bad(_DAMAGED)
    text = file.read(8, size)
    if not text.startswith(b"{") or sum(map(text.count, (b",", b"[", b"{"))) > MAX_MARKS:
        raise file.bad(_DAMAGED)
    try:
        header = json.loads(text.decode(), object_pairs_hook=_unique)
    except (ValueError, RecursionError):
        raise file.bad("has a header that cannot be read; fetch or save it again") from None
    notes = header.pop("__metadata__", {})
    if type(notes) is not dict or any(type(value) is not str for value in notes.values()):
        raise file.bad("has notes that are not text; save it again")
    return notes if metadata else (header, 8 + size)


def _unique(pairs: list) -> dict:
    """A JSON object; one that names a thing twice means different things to different readers."""
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("a name appears twice")
    return found


def _entry(file: InputFile, name: str, entry: object) -> tuple[np.dtype, tuple[int, ...], int, int]:
    """(dtype, shape, first byte, byte after the last) of a tensor."""
    if type(entry) is not dict or entry.keys() != {"dtype", "shape", "data_offsets"}:
        raise file.bad(f"does not describe {quote(name)} as the format asks; save it again")
    shape, offsets = entry["shape"], entry["data_offsets"]
    for numbers in (shape, offsets):
        if type(numbers) is not list or any(type(n) is not int or not 0 <= n < 1 << 62 for n in numbers):
            raise file.bad(f"does not describe {quote(name)} as the format asks; save it again")
    if type(entry["dtype"]) is not str or entry["dtype"] not in _DTYPES:
        raise file.bad(f"holds {quote(name)} in an unknown type ({quote(entry['dtype'])}); "
                       f"save it as one of {', '.join(_DTYPES)}")
    if len(offsets) != 2 or len(shape) > MAX_DIMENSIONS or math.prod(filter(None, shape)) >= 1 << 58:
        raise file.bad(_MISFIT.format(quote(name)))
    return _DTYPES[entry["dtype"]], tuple(shape), *offsets


def _tensor(file: InputFile, dtype: np.dtype, shape: tuple[int, ...], start: int) -> Tensor:
    return Tensor(shape, dtype, lambda: file.array(dtype, start, shape))
