"""Predicts the paper's training run (ViT-H, 256 images a step, 90,000 steps) on slices of TPUs and a box of GPUs.

    python experiments/scaling.py [--out experiments/results/scaling.json]

Hardware: none needed, seconds on a CPU. These are predictions from counted work and published figures, not
measurements: nothing here has run on a TPU or a GPU.

A step takes, on each chip,

    max(operations / (peak x utilisation), bytes / memory bandwidth) + time of the collectives, none of it hidden.

Operations and bytes are counted from the shapes (`flops.py`), with what rematerialisation does again, and as if each
image had all of its 64 masks. What is sent is that of the compiled program where `tpu_compile.py` has one, else the
gradients once (data), or gradients and parameters once (fsdp, in groups of 16): what small programs compiled for a TPU
do (tests/tpu). Utilisation is not known, so a range is
assumed; it covers what is not modelled (norms, softmax, waiting for data, hosts). Each assumption stands in
`ASSUMPTIONS` with its source.

Result: about half a day on v5e-256 and v6e-64, two to four days on 8 H200s. Memory is what would make it shorter: the
decoder's rounds move 95 of an image's 135 GB. (They were 157 of 197, with 1.8 TFLOP in float32 in place of 0.2, before
training kept the decoder's image in bfloat16.) The authors report 68 hours on 256 A100s, in their own implementation.
"""

import argparse
import json
import math
import sys
from dataclasses import asdict, dataclass, replace
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "experiments")]

import flops  # noqa: E402
import jax  # noqa: E402
from tpu_programs import GROUP, parameter_shapes  # noqa: E402

from samjax.config import VIT_H  # noqa: E402
from samjax.train.recipe import VIT_H as RECIPE  # noqa: E402

UTILISATION = (0.30, 0.45, 0.60)


@dataclass(frozen=True)
class Chip:
    """Published figures of one chip, operations and bytes a second. links: what it sends at once, one way."""

    name: str
    bf16: float
    float32: float
    memory: float
    bandwidth: float
    links: float


@dataclass(frozen=True)
class Machine:
    """Chips together. ring: how much of its links a chip can use in a collective over all chips."""

    name: str
    chip: Chip
    chips: int
    ring: float = 1.0
    topology: str | None = None


V5E = Chip("TPU v5e", 197e12, 197e12 / 6, 16e9, 819e9, 200e9)
V6E = Chip("TPU v6e", 918e12, 918e12 / 6, 32e9, 1600e9, 400e9)
H200 = Chip("H200", 989e12, 67e12, 141e9, 4.8e12, 450e9)
MACHINES = (Machine("v5e-256", V5E, 256, topology="v5e:16x16"), Machine("v6e-64", V6E, 64, 0.5, "v6e:8x8"),
            Machine("8 x H200", H200, 8))

ASSUMPTIONS = (  # what, value, source
    ("v5e: bf16 operations, memory, bandwidth, links", "197 T/s, 16 GB, 819 GB/s, 400 GB/s both ways",
     "docs.cloud.google.com/tpu/docs/v5e"),
    ("v6e: the same", "918 T/s, 32 GB, 1600 GB/s, 800 GB/s both ways",
     "docs.cloud.google.com/tpu/docs/v6e (an earlier edition: 1640 GB/s, 3584 Gbit/s one way)"),
    ("H200 SXM: the same", "989 T/s without sparsity, 141 GB, 4.8 TB/s, NVLink 900 GB/s both ways",
     "NVIDIA's H200 data sheet (1979 T/s with sparsity)"),
    ("float32 products on a TPU", "6 passes of bfloat16", "docs.jax.dev/en/latest/201/precision.html: HIGHEST"),
    ("float32 products on an H200", "67 T/s", "NVIDIA's H100 and H200 data sheets: FP32"),
    ("a collective of B bytes over n chips", "(n - 1) / n x B / links one way; an all-reduce twice that",
     "ring algorithms that use all links at once; v5e's page has 51.2 TB/s a pod for them: 256 x 200 GB/s"),
    ("v6e 8x8", "half the links", "assumed: rings close in slices that are 16 chips long only"),
    ("overlap of collectives and computing", "none", "assumed, the worst case"),
    ("utilisation of the peaks by all operations done", "30, 45 or 60 %", "assumed"),
    ("bytes", "each linear map's arrays once; the optimiser's 9 passes over the parameters",
     "experiments/flops.py: a lower bound"),
    ("masks an image", "all 64", "Segment Anything, appendix A: at most 64 a GPU, which holds one image"),
)


def predict(machine: Machine, sharding: str, config=VIT_H, recipe=RECIPE, compiled: dict | None = None) -> dict:
    """Seconds of a step by part, and days and chip-hours of the run for each utilisation."""
    config = replace(config, dtype="bfloat16", encoder=replace(config.encoder, remat=True))
    chip, images = machine.chip, recipe.batch / machine.chips
    work = flops.step(config, recipe)
    parameters = 4 * sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(parameter_shapes(config)))
    share = 1 if sharding == "data" else 1 / min(GROUP, machine.chips)
    sent = bytes_sent(sharding, share, parameters, compiled)
    peak = images * (work["done"].low / chip.bf16 + work["done"].high / chip.float32)
    memory = (images * work["done"].bytes + 9 * parameters * share) / chip.bandwidth
    talk = (machine.chips - 1) / machine.chips * sent / (chip.links * machine.ring)
    runs = {}
    for utilisation in UTILISATION:
        seconds = max(peak / utilisation, memory) + talk
        runs[f"{utilisation:.0%}"] = {
            "step_seconds": round(seconds, 3), "days": round(recipe.steps * seconds / 86400, 2),
            "chip_hours": round(machine.chips * recipe.steps * seconds / 3600),
            "model_flops_utilisation": round(images * work["useful"].operations / seconds / chip.bf16, 3)}
    held = (4 if sharding == "data" else 2 + 3 * share) * parameters
    return {"images_per_chip": images, "state_and_gradients_gb": round(held / 1e9, 1),
            "compute_at_peak": round(peak, 4), "memory": round(memory, 4),
            "communication": round(talk, 4), "sent_gb": round(sent / 1e9, 2),
            "sent_from": "compiled program" if compiled else "parameters", "runs": runs}


def bytes_sent(sharding: str, share: float, parameters: int, compiled: dict | None) -> float:
    """What a chip sends in a step's collectives, but for the factor (n - 1) / n; an all-reduce sends its bytes twice.

    Divided states: parameters are gathered, gradients scattered within a group and its shares added up among groups.
    """
    if not compiled:
        return 2 * parameters if sharding == "data" else (2 + 2 * share) * parameters
    weights = {"all-reduce": 2, "reduce-scatter": 1, "all-gather": 1}
    return sum(weights.get(kind, 1) * found["bytes"] for kind, found in compiled.items())


def compiled_step(records: dict, machine: Machine, sharding: str) -> dict | None:
    """The collectives of ViT-H's step as it was compiled for this machine, if it was."""
    record = records.get(f"vit_h step {machine.topology} {sharding}", {})
    return record.get("collectives")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    results = ROOT / "experiments" / "results"
    parser.add_argument("--compiled", type=Path, default=results / "tpu_compile.json")
    parser.add_argument("--out", type=Path, default=results / "scaling.json")
    args = parser.parse_args()
    records = json.loads(args.compiled.read_text()) if args.compiled.exists() else {}
    config = replace(VIT_H, dtype="bfloat16", encoder=replace(VIT_H.encoder, remat=True))
    work = {name: asdict_of(part) for name, part in flops.step(config, RECIPE).items()}
    found = {machine.name: {sharding: predict(machine, sharding, compiled=compiled_step(records, machine, sharding))
                            for sharding in ("data", "fsdp")} for machine in MACHINES}
    print("| machine | sharding | compute at peak, memory, sending (s) | " + " | ".join(
        f"at {u:.0%}: step (s), days, chip-hours" for u in UTILISATION) + " |")
    for machine, by_sharding in found.items():
        for sharding, each in by_sharding.items():
            runs = " | ".join(f"{r['step_seconds']}, {r['days']}, {r['chip_hours']}" for r in each["runs"].values())
            parts = ", ".join(str(each[name]) for name in ("compute_at_peak", "memory", "communication"))
            print(f"| {machine} | {sharding} | {parts} | {runs} |")
    values = {"prediction": True, "work_per_image_teraflop": work, "assumptions": ASSUMPTIONS,
              "chips": [asdict(machine) for machine in MACHINES], "machines": found}
    args.out.write_text(json.dumps(values, indent=1) + "\n")


def asdict_of(work: flops.Work) -> dict:
    return {"bfloat16": round(work.low / 1e12, 2), "float32": round(work.high / 1e12, 2),
            "gigabytes": round(work.bytes / 1e9, 1)}


if __name__ == "__main__":
    main()
