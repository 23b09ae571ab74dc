"""Compiles samjax's programs for an NVIDIA H200, without a GPU: do they fit, and which kernels do they call?

    python3.12 -m venv gpu && . gpu/bin/activate && pip install . "jax==0.11.2"
    pip install --no-deps jax-cuda13-plugin==0.11.2 jax-cuda13-pjrt==0.11.2 nvidia-cuda-nvcc nvidia-nvvm
    python experiments/gpu_compile.py [--only encoder,vit_h]

Hardware: none but a CPU; seconds for the encoders, two to three minutes for a training step. XLA cannot try out kernels
without a card, so products of matrices are left to cuBLAS. JAX knows no way to ask for this: some of its functions are
replaced. Results go to experiments/results/gpu_compile.json, one case after the other.

Result: the encoder of ViT-H for 8 images in bfloat16 needs 0.9 GiB beside its weights. A training step of ViT-H (8
images of 8 masks, eleven rounds) needs 42 GiB beside 7 of state when the products of linear maps are kept
(remat="products"); with everything kept it would need 152 and not fit. ViT-B's needs 11 beside 1.
"""

import argparse
import json
import os
import sys
import time
from collections import Counter
from dataclasses import replace
from functools import partial
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "experiments")]
os.environ |= {"CUDA_VISIBLE_DEVICES": "-1", "JAX_PLATFORMS": "cpu"}

import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
from jax.experimental import topologies  # noqa: E402

import samjax  # noqa: E402
from samjax.config import VIT_B, VIT_H, VIT_T  # noqa: E402
from samjax.model.sam import Prompts, decode_masks, encode_image  # noqa: E402
from samjax.train.recipe import preset  # noqa: E402
from samjax.train.step import init_state, make_step  # noqa: E402

H200 = """
gpu_device_info {
  threads_per_block_limit: 1024 threads_per_warp: 32 shared_memory_per_block: 49152 shared_memory_per_core: 233472
  threads_per_core_limit: 2048 core_count: 132 fpus_per_core: 128 block_dim_limit_x: 2147483647
  block_dim_limit_y: 65535 block_dim_limit_z: 65535 memory_bandwidth: 4800000000000 l2_cache_size: 62914560
  clock_rate_ghz: 1.98 device_memory_size: 150754820096 shared_memory_per_block_optin: 232448
  cuda_compute_capability { major: 9 } registers_per_core_limit: 65536 registers_per_block_limit: 65536
}
platform_name: "CUDA"
dnn_version_info { major: 9 minor: 19 }
runtime_version { major: 13 minor: 0 patch: 0 }
device_description_str: "NVIDIA H200"
"""
OUT = ROOT / "experiments" / "results" / "gpu_compile.json"


def pretend():
    """Lets JAX compile for a GPU that is not there (jax issues 23971 and 28376). Before any device is asked for."""
    from jax._src import xla_bridge
    from jax._src.pallas.triton import gpu_info

    known = xla_bridge.canonicalize_platform
    xla_bridge.canonicalize_platform = lambda name: "cuda" if name in ("gpu", "cuda") else known(name)
    card = gpu_info.GpuInfo(gpu_version=None, arch_name="9.0", compute_capability=90)
    gpu_info.get_gpu_info = lambda: card
    jax.default_backend = lambda: "gpu"  # what is done at a time depends on it


def compiled(program, *args, donate=()):
    """The program for one such card; args are trees of shapes."""
    mesh = topologies.make_mesh(topologies.get_topology_desc(platform="cuda", target_config=H200, topology="1x1x1"),
                                (1,), ("device",))
    whole = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    args = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=whole), args)
    lowered = jax.jit(program, donate_argnums=donate).trace(*args).lower(lowering_platforms=("cuda",))
    return lowered.compile({"xla_gpu_autotune_level": 0, "xla_gpu_enable_triton_gemm": False})


def shape(*sizes, dtype=jnp.float32):
    return jax.ShapeDtypeStruct(sizes, dtype)


def parameters(config):
    return jax.eval_shape(partial(samjax.init, config), jax.random.key(0))


def encoder(config, batch):
    return partial(encode_image, config), (parameters(config), shape(batch, *config.image_size, 3)), ()


def decoder(config, points):
    prompts = Prompts(shape(1, points, 2, 2), shape(1, points, 2, dtype=jnp.int32))
    return partial(decode_masks, config), (parameters(config), shape(1, *config.grid, 256), prompts), ()


def step(config, batch, objects, remat):
    config = replace(config, encoder=replace(config.encoder, scan=True, remat=remat))
    recipe = replace(preset(config.name), batch=batch, objects=objects)
    state = jax.eval_shape(lambda params: init_state(config, recipe, params, jax.random.PRNGKey(0)), parameters(config))
    given = {"image": shape(batch, *config.image_size, 3, dtype=jnp.uint8), "size": shape(batch, 2, dtype=jnp.int32),
             "masks": shape(batch, objects, 256, 256, dtype=jnp.bool_), "valid": shape(batch, objects, dtype=jnp.bool_)}
    return make_step(config, recipe), (state, given), (0,)


def bf16(config):
    return replace(config, dtype="bfloat16", attention="triton")


CASES = {
    "encoder vit_b, 8 images": lambda: encoder(bf16(VIT_B), 8),
    "encoder vit_h, 8 images": lambda: encoder(bf16(VIT_H), 8),
    "decoder, 64 points": lambda: decoder(bf16(VIT_T), 64),
    "step vit_b, 8 images of 8 masks, products": lambda: step(bf16(VIT_B), 8, 8, "products"),
    "step vit_h, 8 images of 8 masks, products": lambda: step(bf16(VIT_H), 8, 8, "products"),
    "step vit_h, 8 images of 8 masks, all kept": lambda: step(bf16(VIT_H), 8, 8, False),
}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", default="", help="words that a case's name must hold, with commas between")
    args = parser.parse_args()
    pretend()
    for name, make in CASES.items():
        if not all(word in name for word in args.only.split(",")):
            continue
        found = json.loads(OUT.read_text()) if OUT.exists() else {}
        program, shapes, donate = make()
        begun = time.process_time()
        made = compiled(program, *shapes, donate=donate)
        memory = made.memory_analysis()
        gib = {part: round(getattr(memory, f"{part}_size_in_bytes") / 2**30, 2)
               for part in ("argument", "output", "alias", "temp")}
        found[name] = {"gib": gib, "fits": gib["argument"] + gib["output"] - gib["alias"] + gib["temp"] <= 139,
                       "calls": kernels(made.as_text()), "cpu_seconds": round(time.process_time() - begun),
                       "jax": jax.__version__}
        temporary = OUT.with_suffix(".part")
        temporary.write_text(json.dumps(found, indent=1) + "\n")
        temporary.replace(OUT)
        print(name, json.dumps(found[name]), flush=True)


def kernels(text: str) -> dict[str, int]:
    """How often the text calls what XLA did not write itself; the body of a loop counts once."""
    return dict(Counter(part.split('"')[0] for part in text.split('custom_call_target="')[1:]).most_common())


if __name__ == "__main__":
    main()
