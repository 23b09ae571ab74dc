"""One job on one device, on eight, and on two processes of four: are the files the same, and what does it take?

    python experiments/job_devices.py FOLDER [--count 200] [--points-per-side 4] [--json experiments/results/...]

Cuts photographs out of the pictures in FOLDER (at random, 200 to 500 px a side, JPEG), has `samjax everything` work on
them three times with the real MobileSAM, and compares all files byte for byte. Devices are those that XLA makes of one
CPU: more of them are no faster, but everything else is as with real ones. About 20 minutes of two cores. Result
(experiments/results/job_devices.json): 1,194 masks of 200 photographs, all 201 files identical.
"""

import argparse
import hashlib
import json
import os
import platform
import re
import socket
import subprocess
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path

import numpy as np
from PIL import Image

ROOT = Path(__file__).resolve().parents[1]
RUNS = {"one device": [1], "eight devices": [8], "two processes of four devices": [4, 4]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder")
    parser.add_argument("--count", type=int, default=200)
    parser.add_argument("--points-per-side", type=int, default=4)
    parser.add_argument("--model", default="mobile_sam")
    parser.add_argument("--json", default=ROOT / "experiments/results/job_devices.json", type=Path)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as work:
        work = Path(work)
        pictures = photographs(sorted(Path(args.folder).glob("*.jpg")), work / "photos", args.count)
        command = ["everything", "photos", "--model", args.model, "--points-per-side", str(args.points_per_side)]
        runs = {name: run(work, name.replace(" ", "_"), devices, command) for name, devices in RUNS.items()}
    digests = {found["files_sha256"] for found in runs.values()}
    result = {"identical": len(digests) == 1, "pictures_sha256": pictures, "count": args.count, "runs": runs,
              "command": "samjax " + " ".join(command), "machine": machine(), "commit": commit()}
    args.json.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result, indent=1))
    sys.exit(0 if result["identical"] else 1)


def photographs(sources: list[Path], folder: Path, count: int) -> str:
    """Writes the pictures; returns a hash of them all."""
    folder.mkdir()
    random, whole = np.random.default_rng(0), [Image.open(path).convert("RGB") for path in sources]
    for number in range(count):
        image = whole[number % len(whole)]
        w, h = (int(random.integers(200, min(500, side) + 1)) for side in image.size)
        x, y = (int(random.integers(0, side - part + 1)) for side, part in zip(image.size, (w, h)))
        image.crop((x, y, x + w, y + h)).save(folder / f"{number:04d}.jpg", quality=90)
    return digest(folder)


def run(work: Path, name: str, devices: list[int], command: list[str]) -> dict:
    """One run of the job: as many processes as there are numbers of devices."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        address = f"localhost:{free.getsockname()[1]}"
    start, running = time.perf_counter(), []
    for process, count in enumerate(devices):
        place = ["--processes", str(len(devices)), "--process", str(process), "--coordinator", address]
        flags = os.environ.get("XLA_FLAGS", "") + f" --xla_force_host_platform_device_count={count}"
        environment = os.environ | {"PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags}
        running.append(subprocess.Popen(
            [sys.executable, "-m", "samjax", *command, "--out", name, *(place if len(devices) > 1 else [])], cwd=work,
            env=environment, stdout=subprocess.PIPE, text=True))
    said = [process.communicate()[0].strip() for process in running]
    seconds = time.perf_counter() - start
    assert not any(process.returncode for process in running), said
    manifest = json.loads((work / name / "manifest.json").read_text())
    files = sum(path.is_file() for path in (work / name).rglob("*"))
    return {"images": manifest["images"], "masks": manifest["masks"], "failures": len(manifest["failures"]),
            "files": files, "files_sha256": digest(work / name), "seconds": round(seconds, 1),
            "images_per_second": round(manifest["images"] / seconds, 3), "said": said}


def digest(folder: Path) -> str:
    """Of all files: their names and contents."""
    total = hashlib.sha256()
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        content = hashlib.sha256(path.read_bytes()).hexdigest()
        total.update(f"{path.relative_to(folder).as_posix()} {content}\n".encode())
    return total.hexdigest()


def machine() -> dict:
    cpu = platform.machine()
    if Path("/proc/cpuinfo").exists():
        cpu = re.search(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text())[1]
    return {"cpu": cpu, "cores": os.cpu_count(), "python": platform.python_version(),
            **{name: version(name) for name in ("jax", "jaxlib", "flax", "numpy", "pillow", "grain")}}


def commit() -> str:
    return subprocess.run(["git", "-C", ROOT, "rev-parse", "HEAD"], capture_output=True, text=True).stdout.strip()


if __name__ == "__main__":
    main()
