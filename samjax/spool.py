"""Pictures that cannot be read at random, decoded whole once, by another process, into a temporary file.

Pillow holds all of a PNG or JPEG at four bytes a pixel while it decodes. In a process of its own that memory is
surely returned, and the file's pixels need none. NumPy and Pillow only.
"""

import json
import os
import shutil
import subprocess
import sys
import tempfile

import numpy as np

from samjax.errors import InputError
from samjax.image import ORIENTATION, _decode, _first_line, _from_pil, _is_deep, _open_header

_CHILD = "import sys, json; sys.path[:] = json.loads(sys.argv[1]); from samjax.spool import child; child()"


def spool(name: str, channels: int) -> tuple[object, tuple[int, int], np.dtype, int]:
    """Decodes the picture at the path `name` into a file without a name, which is gone when it is closed.

    Returns:
        The file: uint8 (h, w, channels), or uint16 (h, w) of 16-bit grey, row after row. Its (h, w), as stored; its
        dtype; its EXIF orientation, which is left to the caller.

    Raises InputError as `read_image` does, and where the temporary directory ($TMPDIR) has no room.
    """
    with _open_header(name, name) as image:
        need = image.width * image.height * (2 if _is_deep(image) else channels)
    folder = tempfile.gettempdir()
    free = shutil.disk_usage(folder).free
    if free < need:
        raise InputError(f"{name} is decoded into a temporary file of {need / 1e9:.1f} GB, but {folder} has only "
                         f"{free / 1e9:.1f} GB left: make room, set TMPDIR to another directory, or make it a tiled "
                         "TIFF")
    file = tempfile.TemporaryFile(buffering=0)  # noqa: SIM115 (closed by the caller)
    try:
        said = _in_a_child(name, channels, file)
        if "error" in said:
            raise InputError(said["error"])
    except BaseException:
        file.close()
        raise
    return file, tuple(said["hw"]), np.dtype(said["dtype"]), said["turn"]


def child() -> None:
    """The other process: pixels to its standard output, then one line of JSON to its standard error."""
    _, _, name, channels = sys.argv
    try:
        said = _write(name, int(channels), sys.stdout.buffer)
    except InputError as error:
        said = {"error": str(error)}
    except MemoryError:
        said = {"error": f"{name} does not fit into memory while it is decoded: make it a tiled TIFF"}
    except Exception as error:
        said = {"error": f"{name} cannot be decoded: {_first_line(error)}"}
    print("\n" + json.dumps(said), file=sys.stderr, flush=True)


def _in_a_child(name: str, channels: int, file) -> dict:
    command = [sys.executable, "-c", _CHILD, json.dumps([os.path.abspath(path) for path in sys.path]), name,
               str(channels)]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, stdout=file, stderr=subprocess.PIPE)
    try:
        return json.loads(done.stderr.splitlines()[-1])
    except (IndexError, ValueError):
        return {"error": f"{name} cannot be decoded: the process for it ended with status {done.returncode} (was there "
                         "enough memory?); make it a tiled TIFF"}


def _write(name: str, channels: int, out) -> dict:
    with _open_header(name, name) as opened:
        image = _decode(opened, name)
        deep = _is_deep(image)
        if deep and not image.mode.startswith("I;16"):
            raise InputError(f"{name}: pictures of mode {image.mode} and this size are not supported: make it 8 or 16 "
                             "bits")
        try:
            turn = image.getexif().get(ORIENTATION, 1)
        except Exception:  # a broken EXIF block does not make the picture unreadable
            turn = 1
        for y in range(0, image.height, 64):
            part = image.crop((0, y, image.width, min(image.height, y + 64)))
            out.write(np.asarray(part).astype(np.uint16) if deep else _from_pil(part, channels, name))
        out.flush()
        return {"hw": (image.height, image.width), "dtype": "uint16" if deep else "uint8",
                "turn": turn if isinstance(turn, int) else 1}
