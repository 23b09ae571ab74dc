"""TensorBoard's event files, as far as scalars need them: records of hand-made protocol buffers.

Format: https://github.com/tensorflow/tensorboard/blob/master/tensorboard/compat/proto/event.proto, each record as
length, masked CRC-32C of it, data, masked CRC-32C of them (TFRecord).
"""

import os
import struct
import time
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path


class Events:
    """A new event file in a folder. Each scalar is written at once."""

    def __init__(self, folder):
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        name = f"events.out.tfevents.{time.time_ns() // 1_000_000:013d}.samjax.{os.getpid()}"
        self._file = open(folder / name, "wb")  # noqa: SIM115 (until close)
        self._write(_event(0, _field(3, b"brain.Event:2")))

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        parts = b"".join(_field(1, _field(1, name.encode()) + _number(2, "<f", value))
                         for name, value in values.items())
        self._write(_event(step, _field(5, parts)))

    def close(self) -> None:
        self._file.close()

    def _write(self, record: bytes) -> None:
        length = struct.pack("<Q", len(record))
        self._file.write(length + _check(length) + record + _check(record))
        self._file.flush()


def _event(step: int, what: bytes) -> bytes:
    return _number(1, "<d", time.time()) + b"\x10" + _varint(step) + what


def _field(number: int, content: bytes) -> bytes:
    return bytes([number << 3 | 2]) + _varint(len(content)) + content


def _number(number: int, form: str, value: float) -> bytes:
    return bytes([number << 3 | (1 if form == "<d" else 5)]) + struct.pack(form, value)


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    return bytes([*out, value])


def _check(data: bytes) -> bytes:
    crc = 0xFFFFFFFF
    for byte in data:
        crc = _table()[(crc ^ byte) & 255] ^ crc >> 8
    crc ^= 0xFFFFFFFF
    return struct.pack("<I", ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF)


@lru_cache(maxsize=1)
def _table() -> list[int]:
    """Of CRC-32C (Castagnoli), reflected."""
    table = []
    for value in range(256):
        for _ in range(8):
            value = value >> 1 ^ (0x82F63B78 if value & 1 else 0)
        table.append(value)
    return table
