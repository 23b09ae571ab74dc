"""What was found in a huge picture's windows, kept as files until the picture is done. No JAX."""

import contextlib
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from samjax.runs import Runs
from samjax.seams import Piece


class Kept:
    """The pieces of windows in a folder, a file for each window; work that was cut short is taken up from there.

    Give it to `samjax.tiling.everything`, and `clear` it when the records are where they belong.
    """

    def __init__(self, folder, key: str):
        """key: says what the pieces depend on: the picture, the model, the settings. What has another is not used."""
        self.folder, self.key = Path(folder), key

    def load(self, height: int) -> dict[int, tuple[tuple[int, ...], list[Piece]]]:
        """For each window that was kept its mark and pieces, in a picture that is `height` pixels high."""
        found = {}
        for path in sorted(self.folder.glob("window-*.npz")):
            with contextlib.suppress(Exception):  # a damaged file, of any kind: its window is done again
                index, mark, pieces = self._read(path, height)
                found[index] = mark, pieces
        return found

    def put(self, index: int, mark: tuple[int, ...], pieces: Sequence[Piece]) -> None:
        """Keeps a window's pieces: whole or not at all. mark: `Look.mark`, says which window it was, and its points."""
        edges = [np.stack([piece.runs.start, piece.runs.stop], axis=1).ravel() for piece in pieces]
        arrays = {"edges": np.diff(np.concatenate([np.zeros(0, np.int64), *edges]), prepend=0),  # small numbers
                  "number": np.array([len(piece.runs.start) for piece in pieces], np.int64),
                  **{name: np.array([getattr(piece, name) for piece in pieces])
                     for name in ("box", "iou", "stability", "point", "cut")}}
        temporary = self.folder / f".window-{index}.{os.getpid()}.tmp"
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with open(temporary, "wb") as file:
                np.savez_compressed(file, key=np.array(self.key), index=np.array(index), mark=np.array(mark), **arrays)
            os.replace(temporary, self.folder / f"window-{index:06d}.npz")
        except OSError:  # no room: the window would have to be done again, which is no reason to stop
            pass
        finally:
            with contextlib.suppress(OSError):
                temporary.unlink()

    def clear(self) -> None:
        """Removes the files, and the folder if nothing else is in it."""
        for path in (*self.folder.glob("window-*.npz"), *self.folder.glob(".window-*.tmp")):
            path.unlink(missing_ok=True)
        with contextlib.suppress(OSError):
            self.folder.rmdir()

    def _read(self, path: Path, height: int) -> tuple[int, tuple[int, ...], list[Piece]]:
        with np.load(path, allow_pickle=False) as file:
            if str(file["key"]) != self.key:
                raise ValueError(f"{path} is of something else")
            index, mark, edges = int(file["index"]), tuple(file["mark"].tolist()), np.cumsum(file["edges"])
            columns = [file[name].tolist() for name in ("box", "iou", "stability", "point", "cut")]
            parts = np.split(edges, 2 * np.cumsum(file["number"])[:-1]) if len(file["number"]) else []
        return index, mark, [Piece(index, tuple(box), Runs(part[::2].copy(), part[1::2].copy(), height), iou, stability,
                             tuple(point), tuple(cut))
                       for part, box, iou, stability, point, cut in zip(parts, *columns, strict=True)]
