"""Peak memory of converting a file of ViT-H's size.

    python experiments/convert_memory.py [--model vit_h] [--folder FOLDER]

Writes a checkpoint of random weights (2.6 GB for ViT-H; five times that on disk for the while), converts it in every
direction, each in a process of its own, and compares every result bit by bit. About three minutes on two cores. The
peak is the process's largest resident set, with Python and all libraries in it, over the size of the checkpoint; the
bar is 1.3. Result (experiments/results/convert_memory.json): 0.04 between files, 0.27 to Orbax, 1.17 from Orbax.
"""

import argparse
import json
import os
import platform
import resource
import subprocess
import sys
import tempfile
import time
import zlib
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
STEPS = (("model.pth", "model.safetensors"), ("model.pth", "orbax"), ("orbax", "again.pth"),
         ("model.safetensors", "second.pth"))


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="vit_h")
    parser.add_argument("--folder", type=Path, help="where the files lie for the while")
    parser.add_argument("--out", type=Path, default=ROOT / "experiments" / "results" / "convert_memory.json")
    parser.add_argument("--step", nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.step:
        return step(*args.step)
    with tempfile.TemporaryDirectory(dir=args.folder) as folder:
        folder = Path(folder)
        write_random(args.model, folder / "model.pth")
        size = (folder / "model.pth").stat().st_size
        results = [measure(folder, source, target, size) for source, target in STEPS]
        for other in ("again.pth", "second.pth"):
            assert same_bytes(folder / "model.pth", folder / other), f"{other} differs"
    args.out.parent.mkdir(parents=True, exist_ok=True)
    record = {"model": args.model, "bytes": size, "bar": 1.3, "round_trips": "bit-exact", "steps": results,
              "machine": f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores",
              "python": platform.python_version()}
    args.out.write_text(json.dumps(record, indent=1) + "\n")


def write_random(name: str, path: Path) -> None:
    """A checkpoint of a published ViT with standard normal values, drawn one tensor at a time."""
    from convert.table import rows
    from convert.tensor import Tensor
    from convert.torch_file import write_torch
    from samjax import config

    def tensor(row):
        draw = lambda: np.random.default_rng(zlib.crc32(row.official.encode())).standard_normal(
            row.torch_shape, np.float32)
        return Tensor(row.torch_shape, np.dtype(np.float32), draw)

    write_torch(path, {row.official: tensor(row) for row in rows(getattr(config, name.upper()))})


def measure(folder: Path, source: str, target: str, size: int) -> dict:
    """One conversion in a process of its own."""
    command = [sys.executable, __file__, "--step", str(folder / source), str(folder / target)]
    said = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
    found = json.loads(said.splitlines()[-1])
    found = {"from": source, "to": target, **found, "peak_over_file": round(found["peak_bytes"] / size, 3)}
    print(json.dumps(found), flush=True)
    return found


def step(source: str, target: str) -> None:
    import convert

    start = time.perf_counter()
    convert.convert(source, target)
    seconds = time.perf_counter() - start
    print(json.dumps({"peak_bytes": peak(), "seconds": round(seconds, 1)}))


def peak() -> int:
    """The largest resident set of this process so far, in bytes."""
    if sys.platform == "linux":  # getrusage would count what the process was before it became Python
        status = Path("/proc/self/status").read_text()
        return int(status.split("VmHWM:")[1].split()[0]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def same_bytes(a: Path, b: Path) -> bool:
    """Whether two files hold the same tensors, in the order of the first."""
    from convert.torch_file import read_torch

    a, b = read_torch(a), read_torch(b)
    return set(a) == set(b) and all(np.array_equal(a[name].data(), b[name].data()) for name in a)


if __name__ == "__main__":
    main()
