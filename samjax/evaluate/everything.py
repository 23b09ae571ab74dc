"""The prompt "everything": each object is scored by the automatic mask that fits it best.

As in "Segment Anything Is Not Always Perfect" (Ji et al., 2023) the mask is chosen by its IoU with the truth, so that
the score says whether the object was found at all, and not whether it was known to be one.
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence

from samjax import rle
from samjax.automatic import Picture, each, make_settings
from samjax.data.sources import LEAST, Source
from samjax.errors import InputError
from samjax.evaluate.crops import Crop, iou
from samjax.evaluate.pictures import name_of, no_objects, reason_of, spread
from samjax.evaluate.report import Report, Row
from samjax.evaluate.scoring import _crop
from samjax.image import read_image
from samjax.lockstep import on_host, one_device
from samjax.predict import Sam

NAME = "everything"


def match(truths: Sequence[Crop], records: Iterable[dict]) -> list[tuple[float, int]]:
    """For each object the IoU of the mask that fits it best, and that mask's place; of equal ones the first.

    records: of `Sam.everything`, in any output_mode. (0.0, -1) where no mask has a pixel of the object.
    """
    best = [(0.0, -1)] * len(truths)
    for place, record in enumerate(records):
        found = Crop(rle.to_mask(record["segmentation"]))
        for i, truth in enumerate(truths):
            value = iou(found, truth)
            if value > best[i][0]:
                best[i] = value, place
    return best


def score_everything(sam: Sam, source: Source, preset: str | None = None, limit: int | None = None, *,
                     progress: Callable[[int, int], None] | None = None, **settings) -> Report:
    """Mean IoU of the best automatic mask of each object, at the pictures' own resolution.

    Args:
        source, limit, progress: as of `samjax.evaluate.score`; objects of less than 32 px do not count.
        preset, settings: as of `Sam.everything`. Pictures are read even where embeddings are cached.

    Returns:
        A `Report` whose rows have the score "everything" and the chosen mask's "everything_predicted".

    Raises InputError: a wrong setting, nothing to score.
    """
    chosen = make_settings(preset, **settings | {"output_mode": "uncompressed_rle"})
    places = spread(len(source), limit)
    report, waiting = Report(getattr(source, "name", "") or "data", [NAME]), deque()
    pictures = _pictures(sam, source, places, report, waiting)
    for records in each(sam, pictures, chosen, one_device() if on_host() else None):
        name, truths = waiting.popleft()
        if isinstance(records, Exception):
            if not isinstance(records, InputError):
                raise records
            report.failures.append((name, str(records)))
        else:
            report.rows += rows(name, truths, records)
            report.pictures += 1
        if progress is not None:
            progress(report.pictures + len(report.failures), len(places))  # with those that were passed over
    if not report.rows:
        raise no_objects(report.name, len(places), report.failures)
    return report


def rows(name: str, truths: Sequence[Crop], records: Sequence[dict]) -> list[Row]:
    """A picture's rows."""
    return [Row(name, i, truth.area, truth.box, {NAME: value, f"{NAME}_predicted":
                                                 records[place]["predicted_iou"] if place >= 0 else 0.0})
            for i, (truth, (value, place)) in enumerate(zip(truths, match(truths, records)))]


def _pictures(sam: Sam, source: Source, places: Sequence[int], report: Report, waiting: deque) -> Iterator[Picture]:
    """Those with objects; each one's name and objects go to `waiting`, what cannot be read to the report."""
    for place in places:
        name = name_of(source, place)
        try:
            record = source[place]
            truths = [_crop(mask) for mask in record.objects if mask.area() >= LEAST]
            if not truths:
                report.pictures += 1
                continue
            pixels = read_image(record.open(), sam.config.in_channels)
            record.check_size(pixels.shape[:2])
        except (InputError, OSError) as error:
            report.failures.append((name, reason_of(error)))
            continue
        waiting.append((name, truths))
        yield Picture(pixels)
