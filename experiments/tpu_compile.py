"""Compiles samjax's programs for slices of TPUs, without a TPU: do they fit, what do they send, how long does it take?

    python -m venv tpu && . tpu/bin/activate && pip install . "jax[tpu]==0.10.2"
    python experiments/tpu_compile.py [--only step,vit_h] [--limit 1200] [--keep DIR]

Each case (`tpu_programs.py`) is compiled in a process of its own, which is stopped after --limit seconds. Results are
written as they come; a rerun goes on with what is missing, --again with what failed too. --keep holds on to the
programs' texts, which are then read again and not compiled again. Hardware: none but a CPU; a program takes one to
several minutes of one core (libtpu 0.0.42).

Result: on all three slices encoders of ViT-B and ViT-H (8 images a chip) take 1.7 and 5.4 GiB, decoders (64 points) 1.6
on v5e and 2.3 on v6e, and send nothing. ViT-B's training step takes 2.5 to 3.8 GiB a chip, by slice and sharding.
ViT-H's (64 masks an image, state divided among 16) takes 10.9 GiB on v5e 16x16, an image a chip, and 14.9 of 32 GB on
v6e 8x8, four images a chip, one after the other; divided among the four chips of v5e 2x2, 11.5; with the whole state on
each chip it just fits v5e, with 14.7 of 14.9 GiB, and takes 19.3 on v6e. Steps compile for 8 to 15 minutes of one core.
They gather the parameters (ViT-H 4.0 and 2.5 GB, tables and products included) and add up each gradient once: within a
group of 16, 2.6 GB, then the shares among the groups, 0.2 GB. Shares of 48 to 320 columns are no multiple of a tile's
128 lanes, so that the compiler does the first by all-reduces and no reduce-scatter; over four chips they mostly are,
and it does scatter. No activation is sent. One transfer is "unexpected": over four chips the gradient of ViT-H's table
of positions, whose shares of 320 columns are no multiple of 128, is padded before it is scattered, and 48 kB are handed
to the neighbour to make up for it.
"""

import argparse
import gzip
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "experiments")]

from collectives import collectives, summary, unexpected  # noqa: E402
from tpu_programs import (  # noqa: E402
    HBM,
    Case,
    cases,
    config_of,
    environment,
    program_of,
    sent_shapes,
    topology_devices,
)

PARTS = ("argument", "output", "alias", "temp")


def compile_case(case: Case, folder: Path):
    """Leaves the compiled program's text and what the compiler says of it; runs in a process of its own."""
    begun = time.process_time(), time.perf_counter()
    program, args, params = program_of(case, topology_devices(case.topology))
    lowered = program.trace(*args).lower(lowering_platforms=("tpu",))
    traced = time.process_time()
    print(f"{case.name}: traced in {traced - begun[0]:.0f} s of CPU time", file=sys.stderr, flush=True)
    compiled = lowered.compile()
    said = {"trace_cpu_seconds": round(traced - begun[0]), "compile_cpu_seconds": round(time.process_time() - traced),
            "wall_seconds": round(time.perf_counter() - begun[1]),
            "bytes": {part: getattr(compiled.memory_analysis(), f"{part}_size_in_bytes") for part in PARTS},
            "shapes": sent_shapes(config_of(case), params, case.group)}
    with gzip.open(folder / f"{file_name(case)}.txt.gz", "wt") as file:
        file.write(compiled.as_text())
    (folder / f"{file_name(case)}.json").write_text(json.dumps(said))


def file_name(case: Case) -> str:
    return case.name.replace(" ", "_").replace(":", "-")


def read_case(case: Case, folder: Path) -> dict:
    """The record of a compiled case."""
    said = json.loads((folder / f"{file_name(case)}.json").read_text())
    with gzip.open(folder / f"{file_name(case)}.txt.gz", "rt") as file:
        found = collectives(file.read())
    size, shapes = said.pop("bytes"), said.pop("shapes")
    size["total"] = size["argument"] + size["output"] - size["alias"] + size["temp"]
    return said | {"gib_per_chip": {part: round(n / 2**30, 2) for part, n in size.items()},
                   "fits": size["total"] <= HBM[case.topology.split(":")[0]],
                   "collectives": summary(found), "unexpected": unexpected(found, shapes, case.collectives)}


def in_a_process(case: Case, limit: float, folder: Path) -> dict:
    """The record of a case, compiled now unless its text is there; or why there is none."""
    if not (folder / f"{file_name(case)}.json").exists():
        command = [sys.executable, __file__, "--case", json.dumps(vars(case)), "--keep", folder]
        begun = time.monotonic()
        try:
            status = subprocess.run(command, env=os.environ | environment(), timeout=limit).returncode
        except subprocess.TimeoutExpired:
            return {"failed": f"not compiled within {limit:.0f} s"}
        if status:
            return {"failed": f"status {status} after {time.monotonic() - begun:.0f} s"}
    return read_case(case, folder)


def write(path: Path, values: dict):
    temporary = path.with_suffix(".part")
    temporary.write_text(json.dumps(values, indent=1) + "\n")
    temporary.replace(path)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", default="", help="words that a case's name must hold, with commas between")
    parser.add_argument("--limit", type=float, default=1200)
    parser.add_argument("--again", action="store_true", help="cases that failed before too")
    parser.add_argument("--keep", type=Path, help="directory of the programs' texts")
    parser.add_argument("--out", type=Path, default=ROOT / "experiments" / "results" / "tpu_compile.json")
    parser.add_argument("--case", type=json.loads, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.case:
        compile_case(Case(**args.case), args.keep)
        return
    with tempfile.TemporaryDirectory() as temporary:
        folder = args.keep or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        results = json.loads(args.out.read_text()) if args.out.exists() else {}
        for case in cases():
            known = results.get(case.name)
            if (known and not (args.again and "failed" in known)) or not all(
                    word in case.name for word in args.only.split(",")):
                continue
            results[case.name] = vars(case) | {"images_per_chip": case.images} | in_a_process(case, args.limit, folder)
            write(args.out, results)
            print(case.name, json.dumps(results[case.name]), flush=True)


if __name__ == "__main__":
    main()
