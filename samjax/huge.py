"""What a job needs of a model to go through huge pictures in tiles (`samjax.tiling`), one after the other."""

from collections.abc import Callable, Iterable, Iterator

from samjax import tiling
from samjax.annotations import label_map
from samjax.job import Job, Model
from samjax.kept import Kept
from samjax.predict import Sam
from samjax.preview import Small, overlay_small, shrink
from samjax.reading import mark
from samjax.windows import open_picture


class Huge:
    """A picture that is opened when it is its turn. hw and small (for an overlay) are known when it is done."""

    def __init__(self, path: str, kept: Kept):
        self.path, self.kept = path, kept
        self.hw: tuple[int, int] | None = None
        self.small: Small | None = None


def model(sam: Sam, job: Job, progress: Callable[[str, int, int], None] | None = None) -> Model:
    """A job's model. progress: called with a picture's name, its tiles that are done, all of its tiles."""
    sources = {source.path: source for source in job.sources}

    def read(path: str) -> Huge:
        return Huge(path, Kept(job.unfinished(sources[path]), f"{job.key} {mark(path).sha256}"))

    def found(huge: Huge) -> list[dict] | Exception:
        tell = progress and (lambda done, total: progress(sources[huge.path].name, done, total))
        try:
            with open_picture(huge.path, sam.config.in_channels) as picture:
                huge.hw = picture.shape[:2]
                records = tiling.everything(sam, picture, job.settings, **job.tiling._asdict(), progress=tell,
                                            kept=huge.kept)
                huge.small = shrink(picture) if job.overlay else None
            return records
        except Exception as error:  # one picture's failure is not the others'
            return error

    def each(pictures: Iterable[Huge]) -> Iterator[list[dict] | Exception]:
        return map(found, pictures)

    return Model(read, each, ahead=1, draw=draw)


def draw(kind: str, huge: Huge, records: list[dict]):
    """An overlay of the picture made small; a label map of all of it."""
    return overlay_small(huge.small, records) if kind == "overlay" else label_map(records, huge.hw)
