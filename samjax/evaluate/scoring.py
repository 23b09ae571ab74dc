"""`score`: a model on a source of pictures with masks. Each picture is encoded once, its objects decoded together."""

import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial

import jax
import numpy as np

from samjax import upscale
from samjax.data.records import Mask, Part, Record
from samjax.data.sources import LEAST, Source
from samjax.errors import InputError
from samjax.evaluate.boxes import noised, score_boxes
from samjax.evaluate.crops import Crop
from samjax.evaluate.pictures import name_of, no_objects, reason_of, spread
from samjax.evaluate.points import anywhere, score_name, score_points
from samjax.evaluate.report import Report, Row
from samjax.image import read_image
from samjax.predict import OBJECTS, Embedding, Sam, _batch_size
from samjax.prompts import make_slots

PROMPTS = ("point", "box")


@dataclass(frozen=True)
class Protocol:
    """How prompts are made.

    prompts: of "point" and "box". points: after how many points there is a score. first: "centre" or "random", the
    first point. box_noise: deviation of the boxes' sides as a share of them (0: exact). refine: boxes get a second
    round, the most confident of the first one's masks fed back. seed: of the random points and the noise, which depend
    on it and on the object alone.
    """

    prompts: Sequence[str] = PROMPTS
    points: Sequence[int] = (1,)
    first: str = "centre"
    box_noise: float = 0.0
    refine: bool = False
    seed: int = 0

    def check(self) -> "Protocol":
        """Raises InputError for what makes no sense; returns itself."""
        for prompt in self.prompts:
            if prompt not in PROMPTS:
                raise InputError(f"prompt {prompt!r} is none of those that are scored: {', '.join(PROMPTS)}")
        if not self.prompts or ("point" in self.prompts and not self.points):
            raise InputError("nothing to score: no prompt, or no number of points, is given")
        if any(count < 1 for count in self.points):
            raise InputError(f"numbers of points must be 1 or more, not {min(self.points)}")
        if self.first not in ("centre", "random"):
            raise InputError(f"the first point is 'centre' or 'random', not {self.first!r}")
        if not 0 <= self.box_noise <= 1:
            raise InputError(f"the noise of boxes is a share of their sides from 0 to 1, not {self.box_noise}")
        if self.seed < 0:
            raise InputError(f"the seed must be 0 or more, not {self.seed}")
        return self

    def names(self) -> list[str]:
        """Of the scores."""
        counts = sorted(set(self.points)) if "point" in self.prompts else []
        points = [name for count in counts for name in (score_name(count), f"{score_name(count)}_oracle")]
        return points + (["box"] if "box" in self.prompts else [])


def score(sam: Sam, source: Source, prompts: Sequence[str] = PROMPTS,
          embeddings: Mapping[str, Embedding] | None = None, limit: int | None = None, *,
          progress: Callable[[int, int], None] | None = None, **settings) -> Report:
    """Mean IoU of the model's masks with a source's, object by object, at the pictures' own resolution.

    Args:
        source: `samjax.data.open_source(...)`, or a list of records. Objects of less than 32 px do not count.
        prompts: "point" (see `samjax.evaluate.points`), "box" (see `samjax.evaluate.boxes`), or both.
        embeddings: by a record's name, what `embed` makes; pictures that are in it are not read. A record's own
            cached features serve likewise.
        limit: at most so many pictures, evenly spread over the source.
        progress: called with (pictures done, pictures) after each.
        settings: further fields of `Protocol`: points=(1, 2, 3, 5, 9), first, box_noise, refine, seed.

    Returns:
        A `Report`. Pictures that cannot be read are among its failures.

    Raises InputError: a wrong setting, nothing to score, embeddings of another model.
    """
    protocol = Protocol(tuple(prompts), **settings).check()
    places = spread(len(source), limit)
    report = Report(getattr(source, "name", "") or "data", protocol.names())
    load = partial(_load, sam, source, embeddings or {})
    for done, (name, item) in enumerate(_encoded(sam, places, load), 1):
        if isinstance(item, InputError):
            report.failures.append((name, str(item)))
        else:
            report.rows += _score_picture(sam, name, item, protocol)
            report.pictures += 1
        if progress is not None:
            progress(done, len(places))
    if not report.rows:
        raise no_objects(report.name, len(places), report.failures)
    return report


def embed(sam: Sam, source: Source, limit: int | None = None) -> dict[str, Embedding]:
    """Embeddings by record name, on the host, 4 MB each of SAM's. Pictures without objects or that cannot be read are
    left out."""
    return {name: Embedding(np.asarray(item.embedding.features), item.embedding.image_sizes)
            for name, item in _encoded(sam, spread(len(source), limit), partial(_load, sam, source, {}))
            if isinstance(item, _Loaded) and item.embedding is not None}


@dataclass
class _Loaded:
    """A picture's objects, and either its pixels or its embedding; neither where it has no objects."""

    truths: list[Crop]
    pixels: np.ndarray | None = None
    embedding: Embedding | None = None


def _encoded(sam: Sam, places: Sequence[int], load: Callable[[int], tuple[str, _Loaded | InputError]]
             ) -> Iterator[tuple[str, _Loaded | InputError]]:
    """Yields (name, objects and embedding), or what is wrong with the picture, for each place: what load(place) gives,
    its pixels encoded.

    As many pictures are encoded at once as the devices take; the next ones are read meanwhile.
    """
    share = _batch_size() * jax.local_device_count()
    chunks = [places[start : start + share] for start in range(0, len(places), share)]
    load_all = lambda chunk: [load(place) for place in chunk]
    with ThreadPoolExecutor(1) as pool:
        coming = pool.submit(load_all, chunks[0]) if chunks else None
        for following in [*chunks[1:], None][: len(chunks)]:
            loaded = coming.result()
            coming = pool.submit(load_all, following) if following else None
            fresh = [item for _, item in loaded if isinstance(item, _Loaded) and item.pixels is not None]
            _encode(sam, fresh, len(chunks[0]))
            yield from loaded


def _encode(sam: Sam, fresh: Sequence[_Loaded], size: int) -> None:
    """Puts embeddings in the place of pixels. The list is filled up to `size`: one program serves all of them."""
    if not fresh:
        return
    pictures = [item.pixels for item in fresh]
    made = sam.encode(pictures + pictures[-1:] * (size - len(fresh)))
    for i, item in enumerate(fresh):
        item.embedding, item.pixels = made[i], None


def _load(sam: Sam, source: Source, embeddings: Mapping, place: int) -> tuple[str, _Loaded | InputError]:
    name = name_of(source, place)
    try:
        record = source[place]
        truths = [_crop(mask) for mask in record.objects if mask.area() >= LEAST]
        embedding = _cached(record, embeddings) if truths else None
        if embedding is not None:
            record.check_size(tuple(embedding.image_sizes[0].tolist()))
            return name, _Loaded(truths, embedding=embedding)
        pixels = read_image(record.open(), sam.config.in_channels) if truths else None
        if pixels is not None:
            record.check_size(pixels.shape[:2])
        return name, _Loaded(truths, pixels)
    except InputError as error:
        return name, error
    except OSError as error:
        return name, InputError(reason_of(error))


def _crop(mask: Mask) -> Crop:
    return Crop(mask.pixels, mask.corner) if isinstance(mask, Part) else Crop(mask.mask())


def _cached(record: Record, embeddings: Mapping[str, Embedding]) -> Embedding | None:
    if record.name in embeddings:
        return embeddings[record.name]
    if record.features is None:
        return None
    features, _ = record.features()
    return Embedding(np.asarray(features, np.float32)[None], np.array([record.objects[0].size], np.int32))


def _score_picture(sam: Sam, name: str, picture: _Loaded, protocol: Protocol) -> list[Row]:
    rows = []
    if picture.truths:
        sam._check(picture.embedding)
    for start in range(0, len(picture.truths), OBJECTS[-1]):
        truths = picture.truths[start : start + OBJECTS[-1]]
        rows += _score_some(sam, name, picture.embedding, truths, protocol, start)
    return rows


def _score_some(sam: Sam, name: str, embedding: Embedding, truths: Sequence[Crop], protocol: Protocol,
                start: int) -> list[Row]:
    """Rows of objects that are decoded in one call; the first has the number `start`."""
    image_hw = tuple(embedding.image_sizes[0].tolist())
    grid = upscale.axes(sam.config, image_hw)
    ask = partial(_ask, sam, embedding, image_hw)
    random = lambda i, use: np.random.default_rng([protocol.seed, zlib.crc32(name.encode()), start + i, use])
    scores, clicks = [{} for _ in truths], [[] for _ in truths]
    if "point" in protocol.prompts:
        first = (lambda truth, i: anywhere(truth, random(i, 0))) if protocol.first == "random" else None
        scores, clicks = score_points(ask, truths, grid, protocol.points, first)
    if "box" in protocol.prompts:
        boxes = [truth.box for truth in truths]
        if protocol.box_noise:
            boxes = [noised(box, protocol.box_noise, image_hw, random(i, 1)) for i, box in enumerate(boxes)]
        scores = [a | b for a, b in zip(scores, score_boxes(ask, truths, grid, boxes, protocol.refine))]
    return [Row(name, start + i, truth.area, truth.box, scores[i], clicks[i]) for i, truth in enumerate(truths)]


def _ask(sam: Sam, embedding: Embedding, image_hw: tuple[int, int], **prompts) -> tuple[np.ndarray, np.ndarray]:
    """All masks of the decoder for some objects' prompts: logits (n, 4, H, W), iou (n, 4)."""
    return sam._decode(embedding.features, make_slots(sam.config, image_hw, **prompts))
