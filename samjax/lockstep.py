"""Encoding crops and decoding grids of points on all devices of this process, every device doing the same at a time.

An item is a crop, brought to the encoder's frame. Items are dealt to the devices; where there are fewer items than
places, several places hold the same one and share its points. In each round every device decodes one chunk of points
of one of its items. The program that a device runs depends neither on how many devices nor on how many items there are.
"""

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from samjax.model.sam import Masks, Prompts, decode_masks
from samjax.ops import masks as device_masks
from samjax.parallel import MeshMap, mesh_map
from samjax.predict import Sam, _batch_size, spread_encoder
from samjax.prompts import FOREGROUND, NOT_A_POINT

MEASURED = 32  # masks a device measures, or hands over, in one call


class Item(NamedTuple):
    """A crop in the encoder's frame, and the points (n, 2) to decode there, in that frame's pixels; n alike for all."""

    frame: np.ndarray  # uint8 (H, W, c)
    valid: tuple[int, int]
    points: np.ndarray  # float32


class Unit(NamedTuple):
    """A chunk of points of an item, from the point `start` on."""

    item: int
    start: int


class Round(NamedTuple):
    """What the devices decoded: a unit each (None: nothing of use); logits (d, n, 3, H, W), iou (d, n, 3)."""

    units: Sequence[Unit | None]
    masks: Masks


class Lockstep:
    """A model on all devices of this process, or on those given."""

    def __init__(self, sam: Sam, devices: Sequence | None = None):
        devices = tuple(devices if devices is not None else jax.local_devices())
        self.config = sam.config
        self.devices = len(devices)
        self._encode, self._decode, self._measure, self._take = _programs(sam.config, devices)
        self._params = sam.everywhere if devices == tuple(jax.local_devices()) else self._encode.place(sam.params)

    @property
    def capacity(self) -> int:
        """How many items are encoded at once when there are many."""
        return self.devices * _batch_size()

    def run(self, items: Sequence[Callable[[], Item]], batch: int, threads, share: int = 1) -> Iterator[Round]:
        """Encodes items, each made by a call in threads, and yields the rounds of decoding; the next is under way then.

        batch: the most points in a chunk. All chunks are of one size; the last one is filled up with its last point.
        share: the most items that a device encodes at once; it encodes as many always, filled up with the same again
            (`batch_of` them), because the last digits of an item's features depend on how many there are.
        """
        return _behind(self._rounds(items, batch, threads, batch_of(share)), 1 if on_host() else 2)

    def _rounds(self, items, batch: int, threads, share: int) -> Iterator[Round]:
        for first in range(0, len(items), self.devices * share):
            part = list(threads.map(lambda make: make(), items[first : first + self.devices * share]))
            n, points = len(part), len(part[0].points)
            held = [slot % n for slot in range(self.devices * share)]
            features = self.encode([part[i] for i in held])
            chunk = -(-points // -(-points // batch))
            for turn in zip(*_deal(held, n, share, range(0, points, chunk))):
                chunks = [_chunk(part[slot.item].points, slot.start, chunk) for slot in turn]
                masks = self.decode(features, np.array([slot.at for slot in turn], np.int32), np.stack(chunks))
                yield Round([None if slot.idle else Unit(first + slot.item, slot.start) for slot in turn], masks)

    def encode(self, items: Sequence[Item]) -> Array:
        """Features of as many items as there are devices, or a multiple; they stay on the devices."""
        batch = np.stack([item.frame for item in items]), np.array([item.valid for item in items], np.int32)
        return self._encode(self._params, self._encode.feed(batch))

    def decode(self, features: Array, at: np.ndarray, points: np.ndarray) -> Masks:
        """Three masks for each point: at (d,) is the item's place among those on the device, points (d, n, 2)."""
        at, points = self._decode.feed((at, points))
        return self._decode(self._params, (features, at, points))

    def iou(self, masks: Masks) -> np.ndarray:
        """The predicted IoU (d, n, 3), on the host."""
        return self._decode.fetch(masks.iou)

    def logits(self, masks: Masks) -> list[np.ndarray]:
        """The logits (n, 3, H, W) of each device; without a copy on a CPU, not to be used elsewhere."""
        return [part[0] for part in self._decode.parts(masks.logits)]

    def measure(self, masks: Masks, chosen: Sequence[np.ndarray], sizes: Sequence[tuple[int, int]],
                offset: float) -> list[tuple[np.ndarray, np.ndarray]]:
        """Counts (k, 3) and boxes (k, 4) of each device's chosen masks (k, 2): see `samjax.ops.masks.measure`.

        sizes: of each device's crop. One program serves all sizes in a bucket.
        """
        bucket = tuple(device_masks.bucket(max(sides)) for sides in zip(*sizes))
        matrices = [device_masks.matrices(self.config, size, bucket) for size in sizes]
        fixed = self._measure.feed((*map(np.stack, zip(*matrices)), np.array(sizes, np.int32),
                                    np.full(self.devices, offset, np.float32)))
        found = self._in_turns(self._measure, masks.logits, chosen, *fixed)
        return [tuple(np.concatenate(parts) for parts in zip(*found_here)) for found_here in found]

    def take(self, masks: Masks, chosen: Sequence[np.ndarray]) -> list[np.ndarray]:
        """The logits (k, H, W) of each device's chosen masks (k, 2), in one copy for all devices."""
        return [np.concatenate(parts) for parts in self._in_turns(self._take, masks.logits, chosen)]

    def _in_turns(self, program: MeshMap, logits: Array, chosen: Sequence[np.ndarray], *fixed) -> list[list]:
        """program over the chosen masks, MEASURED a device and call; what it gives, by device, without the filling."""
        found = [[] for _ in chosen]
        for start in range(0, max(1, *map(len, chosen)), MEASURED):
            parts = [c[start : start + MEASURED] for c in chosen]
            filled = np.stack([np.concatenate([p, np.zeros((MEASURED - len(p), 2), np.int64)]) for p in parts])
            out = program.fetch(program(None, (logits, program.feed(filled.astype(np.int32)), *fixed)))
            for device, part in enumerate(parts):
                found[device].append(jax.tree.map(lambda x: x[device, : len(part)], out))  # noqa: B023 (called at once)
        return found


def batch_of(items: int) -> int:
    """How many a device encodes at once, of so many that belong together."""
    return min(items, _batch_size())


def on_host() -> bool:
    """Where logits are measured: NumPy is quicker than XLA on a CPU."""
    return jax.default_backend() == "cpu"


def one_device() -> list:
    """All there is to one picture on a CPU: its devices, where it has several, share its cores."""
    return jax.local_devices()[:1]


class _Slot(NamedTuple):
    at: int  # among the items on the device
    item: int
    start: int
    idle: bool = False


def _deal(held: Sequence[int], n: int, share: int, starts: Sequence[int]) -> list[list[_Slot]]:
    """What each device decodes, round by round. held: the item in each slot, `share` slots a device."""
    queues = [[] for _ in range(len(held) // share)]
    for item in range(n):
        slots = [slot for slot, there in enumerate(held) if there == item]
        slots.sort(key=lambda slot: slot % share)  # one on each device first
        for i, start in enumerate(starts):
            slot = slots[i % len(slots)]
            queues[slot // share].append(_Slot(slot % share, item, start))
    rounds = max(map(len, queues))
    for device, queue in enumerate(queues):
        queue += [_Slot(0, held[device * share], 0, idle=True)] * (rounds - len(queue))
    return queues


def _chunk(points: np.ndarray, start: int, size: int) -> np.ndarray:
    part = points[start : start + size]
    return np.pad(part, ((0, size - len(part)), (0, 0)), "edge")


def _behind(rounds: Iterator[Round], by: int) -> Iterator[Round]:
    """The same, each yielded when `by` more have been begun."""
    begun = deque()
    for each in rounds:
        begun.append(each)
        if len(begun) > by:
            yield begun.popleft()
    yield from begun


@lru_cache(maxsize=8)
def _programs(config, devices: tuple) -> tuple[MeshMap, ...]:
    def decode(params, batch):
        features, at, points = batch
        return decode_points(config, params, lax.dynamic_slice_in_dim(features, at[0], 1), points[0])

    def measure(_, batch):
        logits, chosen, rows, columns, size, offset = (x[0] for x in batch)
        n, m = chosen.T
        counts, boxes = device_masks.measure(logits[n, m], rows, columns, offset, size)
        return counts[None], boxes[None]

    def take(_, batch):
        logits, chosen = (x[0] for x in batch)
        n, m = chosen.T
        return logits[n, m][None]

    everywhere = devices == tuple(jax.local_devices())
    encode = spread_encoder(config, None if everywhere else devices)
    return encode, *(mesh_map(function, devices) for function in (decode, measure, take))


def decode_points(config, params: dict, features: Array, points: Array) -> Masks:
    """Three masks for each point (n, 2): a foreground point and the "not a point" token, as official SAM has it."""
    n = len(points)
    slots = jnp.stack([points, jnp.zeros_like(points)], axis=1)[None]
    labels = jnp.broadcast_to(jnp.array([FOREGROUND, NOT_A_POINT], jnp.int32), (1, n, 2))
    return decode_masks(config, params, features, Prompts(slots, labels), multimask=True)
