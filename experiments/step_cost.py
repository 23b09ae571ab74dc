"""What the annotator's rounds cost beside the image encoder: a training step of ViT-B, one picture of 1024 pixels.

    python experiments/step_cost.py [--objects 2,8] [--rounds 11] [--out experiments/results/step_cost.json]

Hardware: 1 or 2 CPU cores; on one of a busy machine a quarter of an hour.

Result (one core): rounds of two objects take 7 % of the step's time, of eight 24 %: 4.1 s of CPU time an object, the
encoder 87. At the paper's 64 objects that would be three quarters: eleven rounds add little beside the encoder for few
objects only.

Timed apart, forward and backward both: the encoder with its gradient, and the rounds with theirs (which need the
features' gradient too), both with the fastest of a few calls. The encoder is rematerialised, as training at this size
asks for. The paper holds that the decoder needs below 1 % of the encoder's compute; that is one object's prediction.
"""

import argparse
import json
import os
import platform
import sys
import time
from dataclasses import replace
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from samjax.config import VIT_B  # noqa: E402
from samjax.model.sam import encode_image, init  # noqa: E402
from samjax.train import rounds  # noqa: E402
from samjax.train.recipe import preset  # noqa: E402


def timed(program, *args, repeats):
    """(seconds of the fastest call, CPU seconds of it, MiB of temporary memory)."""
    begun = time.perf_counter()
    compiled = jax.jit(program).lower(*args).compile()
    print(f"compiled in {time.perf_counter() - begun:.0f} s", flush=True)
    best = (np.inf, np.inf)
    for _ in range(repeats):
        begun, cpu = time.perf_counter(), time.process_time()
        jax.block_until_ready(compiled(*args))
        best = min(best, (time.perf_counter() - begun, time.process_time() - cpu))
        print(f"  {best[0]:.2f} s, {best[1]:.2f} s of CPU time", flush=True)
    return {"seconds": round(best[0], 3), "cpu_seconds": round(best[1], 3),
            "temporary_mib": round(compiled.memory_analysis().temp_size_in_bytes / 2**20)}


def encoder_cost(config, encoder, repeats):
    def encode(encoder, pixels):
        features, pull = jax.vjp(lambda encoder: encode_image(config, encoder, pixels), encoder)
        return pull(jnp.ones_like(features))

    return timed(encode, encoder, jnp.zeros((1, *config.image_size, 3)), repeats=repeats)


def rounds_cost(config, params, count, n, repeats):
    """Of `count` rounds for n discs in one picture."""
    random = np.random.default_rng(0)
    y, x = np.mgrid[:256, :256]
    centres, radii = random.uniform(40, 216, (n, 2)), random.uniform(10, 60, n)
    masks = np.array([np.hypot(y - cy, x - cx) < r for (cy, cx), r in zip(centres, radii)])[None]
    objects = rounds.Objects(masks, np.ones((1, n), bool), np.array([config.image_size], np.int32),
                             jax.random.split(jax.random.key(1), (1, n)))
    features = jnp.asarray(random.standard_normal((1, *config.grid, config.channels), np.float32))
    play = partial(rounds.play, config, replace(preset("vit_b"), points=count - 2))
    return timed(lambda wanted, objects: play(wanted, {}, None, objects, jnp.float32(1 / n)),
                 {"params": params, "features": features}, objects, repeats=repeats)


def main():
    numbers = lambda text: [int(n) for n in text.split(",")]
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--objects", type=numbers, default=[2, 8])
    parser.add_argument("--rounds", type=numbers, default=[11])
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--out", type=Path, default=ROOT / "experiments" / "results" / "step_cost.json")
    args = parser.parse_args()
    config = replace(VIT_B, encoder=replace(VIT_B.encoder, remat=True), decoder=replace(VIT_B.decoder, dropout=0.1))
    params = init(config, jax.random.key(0))
    encoder = encoder_cost(config, {"image_encoder": params.pop("image_encoder")}, args.repeats)
    print("encoder", encoder, flush=True)
    result = {"cpu": platform.processor() or platform.machine(), "cores": len(os.sched_getaffinity(0)),
              "jax": jax.__version__, "encoder": encoder, "rounds": {}}
    for count in args.rounds:
        for n in args.objects:
            cost = rounds_cost(config, params, count, n, args.repeats)
            cost["share_of_step"] = round(cost["seconds"] / (cost["seconds"] + encoder["seconds"]), 3)
            result["rounds"][f"{count} rounds, {n} objects"] = cost
            print(count, n, cost, flush=True)
            args.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
