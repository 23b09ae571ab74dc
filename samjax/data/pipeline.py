"""The pipeline: sources become an endless, or a single, run of batches. The only module here that imports grain.

Everything about batch k follows from k, the seed and the sources: neither the number of worker processes nor a stop and
restart changes it. With several processes (hosts), batch k of process p is rows p*b to (p+1)*b of the batch that one
process with batch size b*p would make.
"""

import atexit
import sys
import weakref
from collections.abc import Sequence

import numpy as np

from samjax.config import SamConfig
from samjax.data.sources import Joined, Source, WithFeatures
from samjax.data.transforms import Augment, blank, example, mask_cells
from samjax.errors import InputError

try:
    import grain
    from absl import flags
except ImportError as error:
    raise InputError(f"training data need grain, which cannot be imported ({error}): pip install grain"
                     ) from None

TRIES = 8  # other pictures that may stand in for a bad one
BAD_SHARE = 0.1  # more bad pictures than that end the run
ENOUGH = 50  # pictures from which a share of bad ones says anything
ENDLESS = 2**48  # pictures; grain's own endless length overflows in slices
AHEAD = 2  # batches that each worker, or the thread if there are none, prepares


def make_pipeline(sources: Sequence[Source], config: SamConfig, *, batch: int, objects: int = 64,
                  mask_size: int | None = None, seed: int = 0, shuffle: bool = True, repeat: bool = True,
                  augment: Augment | None = None, process_index: int = 0, process_count: int = 1, workers: int = 0,
                  weights: Sequence[float] | None = None, drop_remainder: bool = False, fast_jpeg: bool = False,
                  images: bool = False, report=None) -> "Pipeline":
    """Batches of `batch` pictures for this process, as dicts of arrays:

        "image": uint8 (b, H, W, c), as `geometry.prepare` makes it; or "features": float32 (b, h, w, c), if all sources
                 bring cached embeddings (`with_features`); with `images` both
        "size": int32 (b, 2), (h, w) of the picture in that frame
        "masks": bool (b, objects, L, L) over the whole frame, padding included; see `grid.to_cells`
        "valid": bool (b, objects), False for padding

    objects: 0 for pictures without masks. mask_size: L, a multiple of the logits' side (None: equal).
    weights: how often each source is drawn, with `repeat`; None: each picture as often as any other. repeat: without
    end, in a new order each time; else once, the last batch filled up with blank pictures (nothing valid) or dropped,
    and every process gets equally many.
    workers: processes that prepare batches beside this one; 0: a thread.

    fast_jpeg: decode JPEGs at half or a quarter of their size where that is still enough: quicker, nearly the same.

    A bad picture (damaged, without usable masks) is reported once, by report(message), to stderr by default. With
    `repeat` another takes its place, else a blank one. Raises InputError, when iterated, if over 10 % are bad.
    """
    sources = list(sources)
    if not sources or not all(len(source) for source in sources):
        empty = [source.name for source in sources if not len(source)]
        raise InputError(f"{', '.join(empty) or 'the data'}: no pictures with masks")
    with_features = {isinstance(source, WithFeatures) for source in sources}
    if len(with_features) > 1:
        raise InputError("either all sources bring cached embeddings or none")
    if with_features == {True} and augment is not None:
        raise InputError("pictures with cached embeddings cannot be augmented")
    if weights is not None and (not repeat or len(weights) != len(sources) or min(weights) <= 0):
        raise ValueError("weights need `repeat`, and a positive number for each source")
    if not 0 <= process_index < process_count:
        raise ValueError(f"process {process_index} of {process_count}")
    numbers = _numbers(sources, weights, seed, shuffle, repeat)
    if not repeat:
        numbers = _rounded(numbers, batch * process_count, drop_remainder)
    make = _Examples(Joined(sources), config, mask_cells(config, mask_size), objects, augment, fast_jpeg,
                     substitute=repeat, features=with_features == {True}, images=images)
    # Batches are cut before they are dealt out, so that those of all processes side by side are the global batch.
    batches = numbers.random_map(make, seed=_seed(seed, 1)).batch(batch, batch_fn=_stack)
    return Pipeline(batches[process_index::process_count], workers, report)


class Pipeline:
    """Iterables of batches; `iter` gives a `Batches`. len: batches of one run, very many if it repeats."""

    def __init__(self, batches: grain.MapDataset, workers: int = 0, report=None):
        self.batches, self.workers, self.report = batches, workers, report

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> "Batches":
        return Batches(self)


class Batches(grain.DatasetIterator):
    """An iterator whose position can be saved: get_state() is {"batch": k}, a JSON-able dict, and set_state takes it,
    with any number of workers. Close it (`contextlib.closing`), or its workers end with the process."""

    def __init__(self, pipeline: Pipeline):
        super().__init__()
        self._pipeline, self._next, self._inner = pipeline, 0, None
        self._watch = _Watch(pipeline.report)
        _open.add(self)

    def __next__(self) -> dict[str, np.ndarray]:
        self._assert_not_closed()
        if self._inner is None:
            self._inner = self._start()
        batch, problems = next(self._inner)
        width = batch.pop("width")
        masks = np.unpackbits(np.asarray(batch["masks"]), axis=-1, count=width).view(bool)
        if self._pipeline.workers:  # what they send lies in shared memory, which does not outlive them in peace
            batch = {key: np.array(value) for key, value in batch.items() if key != "masks"}
        batch["masks"] = masks
        self._next += 1
        self._watch(len(batch["valid"]), problems)
        return batch

    def _start(self):
        if not flags.FLAGS.is_parsed():
            flags.FLAGS.mark_as_parsed()  # grain reads them, and only absl's own `app.run` would have parsed them
        remaining = self._pipeline.batches[self._next:]
        workers = min(self._pipeline.workers, max(len(remaining), 1))
        threads = grain.ReadOptions(num_threads=0 if workers else 1, prefetch_buffer_size=0 if workers else AHEAD)
        options = grain.MultiprocessingOptions(num_workers=workers, per_worker_buffer_size=AHEAD)
        return iter(remaining.to_iter_dataset(threads).mp_prefetch(options))

    def get_state(self) -> dict[str, int]:
        return {"batch": self._next}

    def set_state(self, state: dict[str, int]) -> None:
        self._stop()
        self._next = int(state["batch"])

    def _stop(self) -> None:
        if self._inner is not None:
            self._inner.close()
        self._inner = None

    def close(self) -> None:
        if not self._closed:
            self._stop()
        super().close()


_open = weakref.WeakSet()


@atexit.register
def _close_all() -> None:
    """Workers that outlive the interpreter's modules end noisily."""
    for batches in list(_open):
        batches.close()


def _numbers(sources: Sequence[Source], weights, seed: int, shuffle: bool, repeat: bool) -> grain.MapDataset:
    """Numbers of records, counted through all sources, in the order in which they come."""
    ends = np.cumsum([0, *map(len, sources)])
    spans = [(0, int(ends[-1]))] if weights is None else [(int(a), int(b)) for a, b in zip(ends, ends[1:])]
    parts = []
    for k, (start, stop) in enumerate(spans):
        numbers = grain.MapDataset.range(start, stop)
        numbers = numbers.shuffle(seed=_seed(seed, 2 + k)) if shuffle else numbers
        parts.append(numbers.repeat(-(-ENDLESS // (stop - start))) if repeat else numbers)
    return parts[0] if len(parts) == 1 else grain.MapDataset.mix(parts, [float(weight) for weight in weights])


def _rounded(numbers: grain.MapDataset, step: int, drop: bool) -> grain.MapDataset:
    """Cut, or filled up with -1, to a multiple of step."""
    if drop:
        return numbers[:len(numbers) // step * step]
    missing = -len(numbers) % step
    return grain.MapDataset.concatenate([numbers, grain.MapDataset.source([-1] * missing)]) if missing else numbers


def _seed(seed: int, use: int) -> int:
    return int(np.random.SeedSequence([seed, use]).generate_state(1)[0])


class _Examples:
    """(number, generator) -> (example, problems); a number of -1 gives a blank one."""

    def __init__(self, source: Joined, config: SamConfig, cells: tuple[int, int], objects: int,
                 augment: Augment | None, fast_jpeg: bool, substitute: bool, features: bool, images: bool):
        self.source, self.config, self.cells, self.objects = source, config, cells, objects
        self.augment, self.fast_jpeg, self.images = augment, fast_jpeg, images
        self.substitute, self.features = substitute, features

    def __call__(self, number: int, rng: np.random.Generator):
        problems, number = [], int(number)
        for _ in range(1 + TRIES if self.substitute else 1):
            if number < 0:
                break
            try:
                record = self.source[number]
                return example(record, self.config, self.cells, self.objects, rng, self.augment,
                               self.fast_jpeg, self.images), problems
            except (InputError, OSError) as error:
                problems.append((self.source.item_name(number), str(error)))
            number = int(rng.integers(len(self.source)))
        return blank(self.config, self.cells, self.objects, self.features, self.images), problems


def _stack(examples):
    """A batch, its masks packed into bits for the way to this process, and the problems of all its pictures."""
    made = [example for example, _ in examples]
    batch = {key: np.stack([one[key] for one in made]) for key in made[0] if key != "masks"}
    batch["masks"] = np.stack([np.packbits(one["masks"], axis=-1) for one in made])
    batch["width"] = made[0]["masks"].shape[-1]
    return batch, [problem for _, problems in examples for problem in problems]


class _Watch:
    """Reports each bad picture once, and ends a run that has too many."""

    def __init__(self, report):
        self.report, self.known, self.seen, self.bad = report or _to_stderr, set(), 0, 0

    def __call__(self, pictures: int, problems: Sequence[tuple[str, str]]) -> None:
        self.seen += pictures + len(problems)
        self.bad += len(problems)
        for name, reason in problems:
            if name not in self.known:
                self.known.add(name)
                self.report(f"{name}: {reason}; passed over" if name not in reason else f"{reason}; passed over")
        if self.seen >= ENOUGH and self.bad > BAD_SHARE * self.seen:
            raise InputError(f"{self.bad} of the first {self.seen} pictures cannot be used, the last one "
                             f"{problems[-1][0]}: {problems[-1][1]}; check the data")


def _to_stderr(message: str) -> None:
    print(message, file=sys.stderr, flush=True)
