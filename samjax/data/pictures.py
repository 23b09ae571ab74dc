"""Pictures alone, without masks: what an image encoder is distilled on."""

import os
from functools import partial

from samjax.data.records import Record
from samjax.data.sources import Source
from samjax.image import open_image
from samjax.inputs import find_sources


class Pictures(Source):
    """Pictures of any folders, files and patterns, named as `samjax embed` names those of the same paths.

    skipped: other files there. Raises InputError where there are none.
    """

    def __init__(self, paths, name: str = "pictures"):
        paths = [paths] if isinstance(paths, (str, os.PathLike)) else list(paths)
        found, self.skipped = find_sources(paths, os.devnull, drawing=False)  # nothing is written
        self.files, self.name = [(source.path, source.name) for source in found], name

    def __len__(self) -> int:
        return len(self.files)

    def item_name(self, index: int) -> str:
        return self.files[index][1]

    def record(self, index: int) -> Record:
        path, name = self.files[index]
        return Record(name, partial(open_image, path), ())
