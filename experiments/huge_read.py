"""Memory and time of opening a 20,000 x 20,000 px RGB picture and reading windows of it, by format.

    python experiments/huge_read.py [--folder FOLDER] [--size 20000]

Writes the picture of aerial.py as a tiled TIFF, a TIFF in strips, a PNG and a .npy, row by row; then, each in a process
of its own, opens it with samjax.windows, reads 60 windows of 1,024 px and compares them. The peak is that of this
process and, for the PNG, of the other one that decodes it, both with Python in them. A few minutes of one core; about
1.3 GB of disk for the .npy, and as much for the PNG's temporary file.

Result (experiments/results/huge_read.json): 0.41 GB for TIFF, of which 256 MB are tiles or strips that it keeps; 0.12
GB for PNG and .npy, and 1.65 GB in the process that decodes the PNG, for 25 s, of which nothing is left afterwards.
"""

import argparse
import json
import resource
import struct
import subprocess
import sys
import tempfile
import time
import zlib
from pathlib import Path

import numpy as np
from aerial import Aerial
from convert_memory import peak
from huge import surroundings, the_picture
from tiled_tiff import write_tiled

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
KINDS = ("tiled.tif", "strips.tif", "png", "npy")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()) / "samjax_huge")
    parser.add_argument("--size", type=int, default=20_000)
    parser.add_argument("--out", type=Path, default=ROOT / "experiments" / "results" / "huge_read.json")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    args = parser.parse_args()
    args.folder.mkdir(parents=True, exist_ok=True)
    if args.one:
        return one(args)
    picture, rows = the_picture(args.size), []
    for kind in KINDS:
        path = args.folder / f"read_{args.size}.{kind}"
        if not path.exists():
            write(path, kind, picture)
        said = subprocess.run([sys.executable, __file__, "--one", kind, "--folder", args.folder, "--size",
                               str(args.size)], check=True, stdout=subprocess.PIPE, text=True).stdout
        rows.append({"kind": kind, "file_mb": round(path.stat().st_size / 1e6, 1), **json.loads(said)})
        print(json.dumps(rows[-1]), flush=True)
        path.unlink()
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps({"size": args.size, "formats": rows, **surroundings()}, indent=1) + "\n")


def one(args) -> None:
    from samjax.windows import open_picture

    picture, random = the_picture(args.size), np.random.default_rng(1)
    start = time.perf_counter()
    with open_picture(args.folder / f"read_{args.size}.{args.one}") as opened:
        open_seconds, seconds = time.perf_counter() - start, 0.0
        for i in range(60):
            x, y = (int(v) for v in random.integers(0, args.size - 1024, 2))
            if i % 2:  # half of them on land
                x, y = (int(random.integers(low, low + 1500)) for low in picture.land[i % len(picture.land)][:2])
                x, y = (min(v, args.size - 1024) for v in (x, y))
            start = time.perf_counter()
            part = opened.read(x, y, x + 1024, y + 1024)
            seconds += time.perf_counter() - start
            assert (part == picture.draw(x, y, x + 1024, y + 1024)).all(), (x, y)
    other = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024
    print(json.dumps({"open_seconds": round(open_seconds, 2), "window_seconds": round(seconds / 60, 4),
                      "peak_gb": round(peak() / 1e9, 3), "decoder_gb": round(other / 1e9, 3) if other else None}))


def write(path: Path, kind: str, picture: Aerial) -> None:
    size = picture.size
    if kind == "tiled.tif":
        write_tiled(path, (size, size), picture.draw, tile=(512, 512))
    elif kind == "strips.tif":
        write_tiled(path, (size, size), picture.draw, tile=(64, -(-size // 16) * 16))
    elif kind == "npy":
        array = np.lib.format.open_memmap(path, "w+", np.uint8, (size, size, 3))
        for y in range(0, size, 128):
            array[y : y + 128] = picture.draw(0, y, size, min(size, y + 128))
    else:
        write_png(path, picture)


def write_png(path: Path, picture: Aerial) -> None:
    """Rows with the filter "up", compressed as they come."""
    size, before = picture.size, np.zeros((1, picture.size * 3), np.uint8)

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    with open(path, "wb") as file:
        file.write(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", size, size, 8, 2, 0, 0, 0)))
        packer = zlib.compressobj(1)
        for y in range(0, size, 128):
            rows = picture.draw(0, y, size, min(size, y + 128)).reshape(-1, size * 3)
            changes = rows - np.concatenate([before, rows[:-1]])
            before = rows[-1:]
            data = packer.compress(np.pad(changes, ((0, 0), (1, 0)), constant_values=2).tobytes())
            if data:
                file.write(chunk(b"IDAT", data))
        file.write(chunk(b"IDAT", packer.flush()) + chunk(b"IEND", b""))


if __name__ == "__main__":
    main()
