"""How fast the data pipeline is on SA-1B-like data: pictures and masks a second for each core.

    python experiments/data_throughput.py [--pictures 50] [--workers 2]

Makes pictures of 1500 x 2250 (JPEG, about 0.6 MB) with 80 to 140 masks each (COCO run lengths), packs them into a tar
shard, and reads that: decoded, resized to 1024, 64 masks each on the 256 x 256 grid. Seconds of a core are CPU seconds,
so that other work on the machine does not count for them; it does for the wall-clock rates, which stand beside the load
average. A few minutes on two idle cores.
Result (experiments/results/data_throughput.json, on a busy machine), CPU ms a picture, alone and with the way through
workers: 59 and 78 (8 cores for 100 pictures/s); 35 and 57 with fast_jpeg; 15 and 38 with cached embeddings. The 64
masks are 12 ms of that.
"""

import argparse
import contextlib
import io
import json
import math
import multiprocessing
import os
import platform
import sys
import tarfile
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from samjax import rle  # noqa: E402
from samjax.config import VIT_T  # noqa: E402
from samjax.data import make_pipeline, open_source, with_features  # noqa: E402
from samjax.data.frame import pixels, plain  # noqa: E402
from samjax.data.grid import to_cells  # noqa: E402
from samjax.data.polygons import rasterise  # noqa: E402
from samjax.data.records import decode_all  # noqa: E402
from samjax.data.transforms import example  # noqa: E402

HW, OBJECTS, CELLS = (1500, 2250), 64, (256, 256)
RATES = (10, 20, 50, 100, 200, 500)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pictures", type=int, default=50)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--out", type=Path, default=ROOT / "experiments" / "results" / "data_throughput.json")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        shard = Path(folder) / "sa_000000.tar"
        made = write_shard(shard, args.pictures)
        print(json.dumps(made), flush=True)
        source = open_source(shard)
        cached = with_features(source, Embeddings())
        kinds = {"plain": (source, {}), "fast_jpeg": (source, {"fast_jpeg": True}), "cached embeddings": (cached, {})}
        parts = {kind: example_cost(found, **options) for kind, (found, options) in kinds.items()}
        parts["plain"]["of which, ms"] = breakdown(source)
        piped = {kind: through_pipeline(found, args.workers, **options) for kind, (found, options) in kinds.items()}
    record = {"data": made, "one example, one process": parts, "pipeline": piped, "cores for a rate": {
        kind: {f"{rate} pictures/s": math.ceil(rate * cost["CPU ms a picture, all processes"] / 1e3) for rate in RATES}
        for kind, cost in piped.items()}, "python": platform.python_version(),
        "machine": f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores"}
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps(record, indent=1) + "\n")
    print(json.dumps(record, indent=1))


class Embeddings:
    """Stands in for cached embeddings."""

    def __getitem__(self, name):
        return np.zeros((*VIT_T.grid, VIT_T.channels), np.float32), plain(HW, VIT_T.image_size).valid


def write_shard(path: Path, pictures: int) -> dict:
    sizes, masks = [], 0
    with tarfile.open(path, "w") as tar:
        for k in range(pictures):
            rng = np.random.default_rng(k)
            jpeg, annotations = picture(rng), [annotation(rng) for _ in range(rng.integers(80, 141))]
            text = json.dumps({"image": {"file_name": f"sa_{k}.jpg"}, "annotations": annotations}).encode()
            for name, data in ((f"sa_{k}.jpg", jpeg), (f"sa_{k}.json", text)):
                info = tarfile.TarInfo(name)
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
            sizes.append((len(jpeg), len(text)))
            masks += len(annotations)
    jpeg, text = np.mean(sizes, axis=0)
    return {"pictures": pictures, "height, width": HW, "masks a picture": round(masks / pictures, 1),
            "MB a JPEG": round(jpeg / 1e6, 2), "MB a JSON": round(text / 1e6, 3)}


def picture(rng: np.random.Generator) -> bytes:
    """Noise of all scales, which a JPEG takes for a busy photograph."""
    total = np.zeros((*HW, 3), np.float32)
    for side in (3, 12, 48, 190, 750):
        noise = rng.integers(0, 256, (side, side * 3 // 2, 3), np.uint8)
        layer = Image.fromarray(noise).resize(HW[::-1], Image.Resampling.BICUBIC)
        total += np.asarray(layer, np.float32) * (0.5 if side < 100 else 0.12)
    total = (total - total.min()) / (total.max() - total.min()) * 255
    file = io.BytesIO()
    Image.fromarray(total.astype(np.uint8)).save(file, "JPEG", quality=88)
    return file.getvalue()


def annotation(rng: np.random.Generator) -> dict:
    """A wobbly blob; radii as in SA-1B, whose median mask covers about half a per cent of its picture."""
    radius = float(np.clip(rng.lognormal(math.log(70), 0.9), 8, 600))
    angle = np.linspace(0, 2 * np.pi, 80, endpoint=False)
    wobble = 1 + 0.25 * np.sin(angle * rng.integers(2, 7) + rng.uniform(0, 6)) + 0.06 * rng.standard_normal(80)
    y, x = rng.uniform(0, HW[0]), rng.uniform(0, HW[1])
    outline = np.stack([x + radius * wobble * np.cos(angle), y + radius * wobble * np.sin(angle)], axis=-1)
    counts = rasterise([outline.ravel()], HW)
    return {"segmentation": {"size": HW, "counts": rle.compress(counts)}, "area": rle.area(counts)}


def example_cost(source, **options) -> dict:
    rng = np.random.default_rng(0)
    make = lambda i: example(source[i], VIT_T, CELLS, OBJECTS, rng, **options)
    make(0)
    start, masks = time.process_time(), 0
    for i in range(len(source)):
        masks += int(make(i)["valid"].sum())
    seconds = time.process_time() - start
    return {"ms a picture": round(1e3 * seconds / len(source), 1),
            "pictures a core second": round(len(source) / seconds, 1), "masks a core second": round(masks / seconds)}


def breakdown(source) -> dict:
    """CPU milliseconds a picture of the steps, one after the other."""
    steps = "read and parse", "decode the JPEG", "resize and pad", "decode 64 masks", "to the grid"
    spent = dict.fromkeys(steps, 0.0)

    @contextlib.contextmanager
    def timed(step):
        start = time.process_time()
        yield
        spent[step] += time.process_time() - start

    frame = plain(HW, VIT_T.image_size)
    for i in range(len(source)):
        with timed("read and parse"):
            record = source[i]
        with timed("decode the JPEG"):
            opened = record.open()
        with timed("resize and pad"):
            pixels(opened, frame, VIT_T)
        with timed("decode 64 masks"):
            counts = decode_all(record.objects[:OBJECTS])
        with timed("to the grid"):
            to_cells(counts, frame, CELLS)
    return {step: round(1e3 * seconds / len(source), 2) for step, seconds in spent.items()}


def through_pipeline(source, workers: int, **options) -> dict:
    """Rate of whole batches, as a training step would receive them, and the CPU time of all processes for it."""
    batch, rounds = 8, 12
    pipeline = make_pipeline([source], VIT_T, batch=batch, workers=workers, **options)
    with contextlib.closing(iter(pipeline)) as batches:
        for _ in range(2 * workers + 1):  # until all buffers have been emptied once
            next(batches)
        start, spent = time.perf_counter(), cpu_seconds()
        for _ in range(rounds):
            next(batches)
        seconds, spent = time.perf_counter() - start, cpu_seconds() - spent
    return {"workers": workers, "batch": batch,
            "pictures a second": round(batch * rounds / seconds, 1),
            "CPU ms a picture, all processes": round(1e3 * spent / (batch * rounds), 1),
            "load average": round(os.getloadavg()[0], 1)}


def cpu_seconds() -> float:
    """Of this process and its workers so far (Linux)."""
    total = time.process_time()
    for child in multiprocessing.active_children():
        fields = Path(f"/proc/{child.pid}/stat").read_text().rsplit(")", 1)[1].split()
        total += (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    return total


if __name__ == "__main__":
    main()
