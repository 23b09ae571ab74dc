"""Inference of a ViT-H over eight devices, by mesh and by pmap: equal to one device, and compiled once?

    python experiments/spread.py [--depth 4] [--size 512] [--out experiments/results/spread.json]

Hardware: 2 CPU cores that count as eight devices (a host cannot hold eight copies of the whole model's work in
reasonable time: 2.5 GB of parameters each), so the model is ViT-H at a smaller depth and picture: its width, heads,
windows, one global block, its whole decoder; random parameters.

Each device encodes a picture and decodes two prompts in it. One device does the same for all pictures, one after the
other. The largest differences are relative to the largest value.

Result: no difference at all, by mesh and by pmap; the second call compiles nothing.
"""

import argparse
import json
import os
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
if __name__ == "__main__":  # before jax is imported; where others import this file, they have seen to it
    os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"
    os.environ["JAX_PLATFORMS"] = "cpu"
    sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

import jax  # noqa: E402
import jax.monitoring  # noqa: E402
import numpy as np  # noqa: E402
import records  # noqa: E402

from samjax.config import VIT_H, SamConfig  # noqa: E402
from samjax.lockstep import decode_points  # noqa: E402
from samjax.model.sam import encode_image  # noqa: E402
from samjax.parallel import mesh_map, pmap_map  # noqa: E402

COMPILED = "/jax/core/compile/backend_compile_duration"
WRAPS = {"mesh": mesh_map, "pmap": pmap_map}


def shallow(depth: int, size: int) -> SamConfig:
    """ViT-H of so many blocks, the last of them global, for pictures of size x size."""
    return replace(VIT_H, image_size=(size, size), encoder=replace(VIT_H.encoder, depth=depth,
                                                                   global_blocks=(depth - 1,)))


def infer(config: SamConfig, params: dict, batch: tuple) -> dict:
    """Features (1, h, w, c), and three masks for each point of points (1, n, 2), of a single picture."""
    pixels, points = batch
    features = encode_image(config, params, pixels)
    masks = decode_points(config, params, features, points[0])
    return {"features": features, "logits": masks.logits, "iou": masks.iou}


def compare(config: SamConfig, params: dict, devices: list) -> dict:
    """For each wrapper: the largest difference from one device, and the programs compiled in each of two calls."""
    random, n = np.random.default_rng(0), len(devices)
    batches = [(random.standard_normal((n, *config.image_size, 3), np.float32),
                random.uniform(0, min(config.image_size), (n, 2, 2)).astype(np.float32)) for _ in range(2)]
    function = partial(infer, config)
    alone, found = mesh_map(function, devices[:1]), {}
    placed = alone.place(params)
    one = _joined([alone.fetch(alone(placed, alone.feed(_item(batches[0], i)))) for i in range(n)])
    for name, wrap in WRAPS.items():
        run, compiled = wrap(function, devices), []
        placed = run.place(params)
        with _counted(compiled):
            answer = run.fetch(run(placed, run.feed(batches[0])))
        with _counted(compiled):
            jax.block_until_ready(run(placed, run.feed(batches[1])))
        found[name] = {"from_one_device": _difference(answer, one), "programs_compiled": compiled}
    return found


def _item(batch: tuple, i: int) -> tuple:
    return jax.tree.map(lambda x: x[i : i + 1], batch)


def _joined(answers: list) -> dict:
    return jax.tree.map(lambda *xs: np.concatenate(xs), *answers)


def _difference(a: dict, b: dict) -> float:
    return max(float(np.abs(a[name] - b[name]).max() / np.abs(b[name]).max()) for name in b)


class _counted:
    """Appends to a list how many programs the compiler was asked for meanwhile."""

    def __init__(self, counts: list):
        self.counts, self.seen, self.open = counts, 0, True
        jax.monitoring.register_event_duration_secs_listener(self.listen)

    def listen(self, event: str, *_, **__):
        self.seen += self.open and event == COMPILED

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.open = False
        self.counts.append(self.seen)


def main():
    from conftest import random_params

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--depth", type=int, default=4)
    parser.add_argument("--size", type=int, default=512)
    parser.add_argument("--out", type=Path, default=ROOT / "experiments" / "results" / "spread.json")
    args = parser.parse_args()
    config = shallow(args.depth, args.size)
    found = compare(config, random_params(config), jax.devices())
    print(json.dumps(found, indent=1))
    records.write(args.out, {"depth": args.depth, "size": args.size, "devices": len(jax.devices())} | found |
                  records.made_now())


if __name__ == "__main__":
    main()
