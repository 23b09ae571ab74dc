"""Low-rank adaptation (Hu et al., 2021): kernels W are used as W + A B, and only A and B are trained.

The factors are a tree of their own, `params["lora"]`, with the branches and names of the model's. To use them, `join`
lays them beside their kernels (`lora_a`, `lora_b`), and `active` is a Linen interceptor that adds their product
wherever a layer hands out its kernel, also within scans and rematerialised blocks. `merge` adds them for good: the
same sum, so the merged model is the adapted one.
"""

import re

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.traverse_util import flatten_dict, unflatten_dict
from jax import Array, lax

from samjax.errors import InputError
from samjax.model.layers import Weights

ENCODER = re.compile(r"image_encoder/(groups/|blocks_|stages_).*(attn/(qkv|proj)|mlp_in|mlp_out)/kernel")
DECODER = re.compile(r"mask_decoder/(blocks_\d+|final_token_to_image)/.*kernel")


def init_lora(params: dict, rank: int, where: str, key: Array) -> dict:
    """Factors for a model's kernels: A is random, B zero, so that the adapted model starts as the model.

    Args:
        params: the model's tree (shapes suffice), ViT or TinyViT, blocks stacked or not.
        rank: columns of A and rows of B.
        where: "encoder" (the attention's projections and the MLP of every transformer block), "decoder" (the same of
            the two-way transformer) or "both".

    A has deviation 1 / sqrt(inputs). There is no scale beside A B: a rate of learning is what it would amount to.
    """
    patterns = {"encoder": (ENCODER,), "decoder": (DECODER,), "both": (ENCODER, DECODER)}
    if where not in patterns:
        raise InputError(f"LoRA on {where!r}: it must be one of {', '.join(patterns)}")
    kernels = {path: leaf for path, leaf in flatten_dict(params, sep="/").items()
               if any(pattern.fullmatch(path) for pattern in patterns[where])}
    factors = {}
    for i, (path, kernel) in enumerate(sorted(kernels.items())):
        *stack, inputs, outputs = kernel.shape
        layer = path.removesuffix("/kernel")
        noise = jax.random.normal(jax.random.fold_in(key, i), (*stack, inputs, rank))
        factors[f"{layer}/lora_a"] = noise * inputs**-0.5
        factors[f"{layer}/lora_b"] = jnp.zeros((*stack, rank, outputs))
    return unflatten_dict(factors, sep="/")


def merge(params: dict, lora: dict | None = None) -> dict:
    """The model with its factors added to its kernels: a plain tree, for any use without this module.

    Args:
        params: the model's tree, with or without the branch "lora".
        lora: factors; None takes those of the branch, and a tree without one comes back as it is.
    """
    plain = {name: branch for name, branch in params.items() if name != "lora"}
    flat, factors = flatten_dict(plain, sep="/"), flatten_dict(lora or params.get("lora", {}), sep="/")
    for path in factors:
        layer, _, name = path.rpartition("/")
        if name == "lora_a":
            kernel = flat[f"{layer}/kernel"]
            flat[f"{layer}/kernel"] = kernel + product(factors[path], factors[f"{layer}/lora_b"])
    return unflatten_dict(flat, sep="/")


def join(params: dict) -> dict:
    """The tree that the model runs on under `active`: each factor beside its kernel, no branch "lora"."""
    plain = {name: branch for name, branch in params.items() if name != "lora"}
    both = flatten_dict(plain, sep="/") | flatten_dict(params.get("lora", {}), sep="/")
    return unflatten_dict(both, sep="/")


def active():
    """A context in which models that carry factors (`join`) use them; others are unchanged."""
    return nn.intercept_methods(_add_factors)


def product(a: Array, b: Array) -> Array:
    """A B in float32 on every platform; leading axes (stacked blocks) are batch axes."""
    return jnp.matmul(a, b, precision=lax.Precision.HIGHEST)


def _add_factors(call, args, kwargs, context):
    result = call(*args, **kwargs)
    module = context.module
    gives_weights = context.method_name == ("__call__" if isinstance(module, Weights) else "weights")
    if not gives_weights or not module.has_variable("params", "lora_a"):
        return result
    kernel, bias = result
    return kernel + product(module.get_variable("params", "lora_a"), module.get_variable("params", "lora_b")), bias
