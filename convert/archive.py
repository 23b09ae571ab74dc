"""The zip container of PyTorch checkpoints: a strict reader and a streaming writer.

The reader believes no number in the file: entries lie within it, do not overlap, and inflate to a bounded
size. Checksums of stored entries are not looked at: PyTorch may be told to leave them out.
"""

import struct
import zlib
from dataclasses import dataclass
from typing import BinaryIO

from convert.files import InputFile

DAMAGED = "is a damaged or cut-short checkpoint; fetch or save it again"
ALIGNMENT = 64  # of the entries' data, so that other readers can map them
MAX_DIRECTORY = 64 << 20
MAX_ENTRIES = 200_000
INFLATION = 32, 16 << 20  # deflated entries may grow to so many times the file, or to so many bytes in all

_END, _END64, _LOCATOR64 = struct.Struct("<4s4H2IH"), struct.Struct("<4sQ2H2I4Q"), struct.Struct("<4sIQI")
_CENTRAL, _LOCAL = struct.Struct("<4s6H3I5H2I"), struct.Struct("<4s5H3I2H")
_STORED, _DEFLATED = 0, 8
_UTF8 = 1 << 11
_DATE = 1 << 5 | 1  # 1 January 1980
_FULL = WIDE = 0xFFFFFFFF  # a 32-bit field that is full: its value is in a 64-bit one


@dataclass(frozen=True, slots=True)
class Entry:
    """Where an entry's bytes lie: `stored` bytes from `start`, which are or inflate to `size` bytes."""

    name: str
    start: int
    stored: int
    size: int
    deflated: bool
    crc: int


def read_entries(file: InputFile) -> dict[str, Entry]:
    """The archive's files by name, in the order of their data. Raises InputError."""
    try:
        start, size = _directory(file)
        central = _central(file, file.read(start, size))
        entries = [_entry(file, fields, start) for fields in sorted(central, key=lambda fields: fields[-1])]
    except (struct.error, UnicodeDecodeError):
        raise file.bad(DAMAGED) from None
    _check(file, entries)
    return {entry.name: entry for entry in entries}


def read(file: InputFile, entry: Entry) -> bytes:
    """An entry's bytes, inflated if need be. Raises InputError."""
    data = file.read(entry.start, entry.stored)
    if not entry.deflated:
        return data
    inflate = zlib.decompressobj(-zlib.MAX_WBITS)
    try:
        data = inflate.decompress(data, entry.size + 1)
    except zlib.error:
        raise file.bad(DAMAGED) from None
    if len(data) != entry.size or not inflate.eof or zlib.crc32(data) != entry.crc:
        raise file.bad(DAMAGED)
    return data


def _directory(file: InputFile) -> tuple[int, int]:
    """Position and size of the central directory."""
    tail = max(file.size - _END.size - 0xFFFF, 0)
    found = file.read(tail, file.size - tail).rfind(b"PK\5\6")
    if found < 0:
        raise file.bad(DAMAGED)
    place = tail + found
    *_, size, start, comment = _END.unpack(file.read(place, _END.size))
    if place + _END.size + comment != file.size:
        raise file.bad(DAMAGED)
    if place >= _LOCATOR64.size:
        mark, _, place64, _ = _LOCATOR64.unpack(file.read(place - _LOCATOR64.size, _LOCATOR64.size))
        if mark == b"PK\6\7":
            mark, *_, size, start = _END64.unpack(file.read(place64, _END64.size))
            if mark != b"PK\6\6":
                raise file.bad(DAMAGED)
    if start + size > place:
        raise file.bad(DAMAGED)
    if size > MAX_DIRECTORY:
        raise file.bad(f"lists more than {MAX_DIRECTORY >> 20} MiB of file names; it is not a checkpoint")
    return start, size


def _central(file: InputFile, directory: bytes) -> list[tuple]:
    """(name, method, crc, stored, size, header's position) of each entry."""
    found, at = [], 0
    while at < len(directory):
        (mark, _, _, flags, method, _, _, crc, stored, size, length, extra, comment, _, _, _,
         header) = _CENTRAL.unpack_from(directory, at)
        at += _CENTRAL.size
        name, more = directory[at:at + length], directory[at + length:at + length + extra]
        at += length + extra + comment
        if mark != b"PK\1\2" or at > len(directory):
            raise file.bad(DAMAGED)
        if flags & 1:
            raise file.bad("is encrypted; save it without a password")
        if method not in (_STORED, _DEFLATED):
            raise file.bad("uses a compression other than deflate; save it uncompressed")
        size, stored, header = _wide(more, size, stored, header)
        found.append((name, method, crc, stored, size, header))
        if len(found) > MAX_ENTRIES:
            raise file.bad(f"holds more than {MAX_ENTRIES} files; it is not a checkpoint")
    return found


def _wide(extra: bytes, *values: int) -> list[int]:
    """Fields that are full in the 32-bit record, taken from the 64-bit one."""
    at = 0
    while at + 4 <= len(extra):
        kind, length = struct.unpack_from("<2H", extra, at)
        if kind == 1:
            wide = iter(struct.unpack_from(f"<{length // 8}Q", extra, at + 4))
            return [next(wide, _FULL) if value == _FULL else value for value in values]
        at += 4 + length
    return list(values)


def _entry(file: InputFile, fields: tuple, limit: int) -> Entry:
    """The entry with its data's position, which only its own header tells; `limit` is where data must end."""
    name, method, crc, stored, size, header = fields
    mark, *_, length, extra = _LOCAL.unpack(file.read(header, _LOCAL.size))
    start = header + _LOCAL.size + length + extra
    if mark != b"PK\3\4" or file.read(header + _LOCAL.size, length) != name or start + stored > limit:
        raise file.bad(DAMAGED)
    deflated = method == _DEFLATED
    if not deflated and stored != size:
        raise file.bad(DAMAGED)
    return Entry(name.decode(), start, stored, size, deflated, crc)


def _check(file: InputFile, entries: list[Entry]) -> None:
    """Raise for entries that overlap, share a name, or inflate beyond measure."""
    end = 0
    for entry in entries:
        if entry.start - _LOCAL.size < end:
            raise file.bad(DAMAGED)
        end = entry.start + entry.stored
    if len({entry.name for entry in entries}) < len(entries):
        raise file.bad("holds two files of one name; save it again")
    times, least = INFLATION
    if sum(entry.size for entry in entries if entry.deflated) > max(times * file.size, least):
        raise file.bad(f"would inflate to more than {times} times its size; save it uncompressed")


class Writer:
    """A zip of stored, aligned entries with a fixed time stamp: the same content gives the same bytes."""

    def __init__(self, file: BinaryIO):
        self._file, self._at, self._entries = file, 0, []

    def write(self, name: str, data) -> None:
        """Add one entry; `data` is any buffer of bytes."""
        encoded, size, crc, at = name.encode(), len(data), zlib.crc32(data), self._at
        wide = struct.pack("<2H2Q", 1, 16, size, size) if size >= WIDE else b""
        padding = -(at + _LOCAL.size + len(encoded) + len(wide) + 4) % ALIGNMENT
        extra = wide + struct.pack("<2sH", b"FB", padding) + b"Z" * padding  # as PyTorch pads
        narrow = _FULL if wide else size
        self._put(_LOCAL.pack(b"PK\3\4", 45 if wide else 10, _UTF8, 0, 0, _DATE, crc, narrow, narrow,
                              len(encoded), len(extra)), encoded, extra, data)
        self._entries.append((encoded, size, crc, at))

    def close(self) -> None:
        """Write the directory. The file itself stays open."""
        start = self._at
        for encoded, size, crc, at in self._entries:
            wide = [value for value in (size, size, at) if value >= WIDE]
            extra = struct.pack(f"<2H{len(wide)}Q", 1, 8 * len(wide), *wide) if wide else b""
            narrow, place = (_FULL if value >= WIDE else value for value in (size, at))
            self._put(_CENTRAL.pack(b"PK\1\2", 45, 45 if wide else 10, _UTF8, 0, 0, _DATE, crc,
                                    narrow, narrow, len(encoded), len(extra), 0, 0, 0, 0, place),
                      encoded, extra)
        count, size, end = len(self._entries), self._at - start, self._at
        if max(start, size) >= WIDE or count >= 0xFFFF:
            self._put(_END64.pack(b"PK\6\6", 44, 45, 45, 0, 0, count, count, size, start),
                      _LOCATOR64.pack(b"PK\6\7", 0, end, 1))
            count, size, start = 0xFFFF, _FULL, _FULL
        self._put(_END.pack(b"PK\5\6", 0, 0, count, count, size, start, 0))

    def _put(self, *parts) -> None:
        for part in parts:
            self._file.write(part)
            self._at += len(part)
