"""Which tiles are quickest for the CUDA kernels of attention (samjax/model/attention_cuda.py), on the GPU at hand.

    python experiments/attention_tuning.py [--models vit_h,vit_b] [--batch 8] [--out FILE.json]

Hardware: an NVIDIA GPU. Minutes: about one for each model. Result: results/attention_tuning.json.

Each kernel is compiled with some tiles, warps and stages, for a ViT's windows and its whole grid, and called for a
tenth of a second three times; the least mean counts. "queries" and "keys" are both kernels of the backward pass, one
of them with the first of its tiles. What turned out best is what the module holds.
"""

import argparse
import json
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from accelerator_worker import mean

from samjax.config import VIT_B, VIT_H
from samjax.model import attention_cuda as cuda
from samjax.model.attention_cuda import Grid, Tuning

ROOT = Path(__file__).resolve().parents[1]
MODELS = {config.name: config.encoder for config in (VIT_B, VIT_H)}
FORWARDS = [Tuning(128, 64, 8, 2), Tuning(128, 64, 8, 3), Tuning(64, 64, 4, 2), Tuning(64, 64, 4, 3),
            Tuning(128, 128, 8, 2), Tuning(64, 128, 4, 2), Tuning(64, 128, 8, 2)]
QUERIES = [Tuning(64, 64, 8, 2), Tuning(64, 64, 4, 2), Tuning(128, 64, 8, 2), Tuning(64, 128, 8, 2)]
KEYS = [Tuning(64, 64, 8, 2), Tuning(64, 64, 4, 2), Tuning(64, 128, 8, 2), Tuning(64, 64, 8, 1)]


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", type=lambda text: text.split(","), default=["vit_h", "vit_b"])
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--out", type=Path, default=ROOT / "experiments" / "results" / "attention_tuning.json")
    args = parser.parse_args()
    rows = []
    for model in args.models:
        vit, grid_side = MODELS[model], 64
        for side in (vit.window, grid_side):
            grid = Grid(grid_side, grid_side, side, side, vit.heads, vit.width // vit.heads)
            arrays = given(grid, args.batch)
            some = arrays[:4]
            kernels = {"terms": [(None, partial(cuda.terms, grid), (*arrays[:2], *vectors(grid, args.batch)))]}
            kernels["forward"] = [(t, partial(cuda.forward, grid, tuning=t), some) for t in FORWARDS]
            kernels["queries"] = [(t, partial(cuda.backward, grid, tunings=(t, KEYS[0])), arrays) for t in QUERIES]
            kernels["keys"] = [(t, partial(cuda.backward, grid, tunings=(QUERIES[0], t)), arrays) for t in KEYS]
            for name, ways in kernels.items():
                for tuning, function, inputs in ways:
                    row = {"model": model, "window": side, "kernel": name, "tuning": tuning} | time(function, inputs)
                    rows.append(row)
                    print(f"{model} {side:3} {name:8} {tuple(tuning or ())!s:20} {row}"[:150], flush=True)
                    found = {"card": jax.devices()[0].device_kind, "jax": jax.__version__, "batch": args.batch}
                    args.out.write_text(json.dumps(found | {"rows": rows}, indent=1) + "\n")


def time(function, inputs):
    try:
        run = jax.jit(function)
        jax.block_until_ready(run(*inputs))
        once = mean(lambda: run(*inputs), jax.block_until_ready, 1)
        repeats = max(1, round(0.1 / once))
        return {"ms": 1e3 * min(mean(lambda: run(*inputs), jax.block_until_ready, repeats) for _ in range(3))}
    except Exception as error:  # too much shared memory, say
        return {"missing": str(error).splitlines()[0][:200]}


def given(grid, batch):
    random = np.random.default_rng(0)
    draw = lambda dtype, *shape: jnp.asarray(random.standard_normal(shape, np.float32), dtype)
    c, place = grid.heads * grid.d, (batch, grid.h, grid.w)
    return (draw(jnp.bfloat16, *place, 3 * c), draw(jnp.float32, batch, 3 * c),
            *(draw(jnp.float32, *place, grid.heads * n) for n in grid.terms), draw(jnp.bfloat16, *place, c),
            10 + draw(jnp.float32, *place, grid.heads), draw(jnp.float32, *place, grid.heads))


def vectors(grid, batch):
    return tuple(jnp.ones((batch, side, side, grid.d), jnp.bfloat16) for side in (grid.wh, grid.ww))


if __name__ == "__main__":
    main()
