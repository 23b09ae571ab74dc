"""Attention over a grid in windows, from the joint projection to the joined heads: `Attention`'s part of a ViT's block.

Implementations that read the grid as it is ("triton") spare cutting it up; all others get windows from here.
"""

import jax
from einops import rearrange
from jax import Array
from jax.extend.backend import get_backend

from samjax.model import attention
from samjax.model.windows import merge, partition

DIRECT = {"triton": False, "interpret_triton": True}  # on CUDA; or anywhere, slowly, for tests
# What "auto" takes on a platform for a dtype, "xla" elsewhere: what experiments/attention.py and
# experiments/accelerator.py have shown to be right and quickest.
AUTO = {("cuda", "bfloat16"): "triton"}


def platform() -> str:
    """"cpu", "tpu", "cuda" or "rocm": what programs are compiled for by default."""
    name = jax.default_backend()
    return name if name != "gpu" else "rocm" if "rocm" in get_backend().platform_version.lower() else "cuda"


def chosen(shape: tuple[int, ...], heads: int, window: tuple[int, int], dtype: str) -> str:
    """What "auto" takes for products (b, h, w, 3 c): "xla" wherever AUTO names nothing that fits."""
    name = AUTO.get((platform(), dtype), "xla")
    if name in DIRECT:
        from samjax.model import attention_cuda

        grid = attention_cuda.Grid(*shape[1:3], *window, heads, shape[3] // 3 // heads)
        return "xla" if attention_cuda.refuses(grid, shape, dtype) else name
    return name


def attend_grid(qkv: Array, bias: Array, rel_h: Array, rel_w: Array, heads: int, window: int, dtype: str,
                implementation: str = "xla") -> Array:
    """Attention of every token of a grid to its window, or (window 0) to the whole grid.

    Args:
        qkv: (b, h, w, 3 c) products of the joint projection, without its bias: queries, keys and values side by side,
            each heads x width.
        bias: (3 c,) of the projection; alone it is what a window sees beyond the grid.
        rel_h, rel_w: as for `attention.attend`, of a window.
        dtype: of what is multiplied.
        implementation: as there, or of DIRECT, or "auto": see AUTO.

    Returns:
        (b, h, w, c) in dtype.

    Raises as `attention.attend` does.
    """
    h, w = qkv.shape[1:3]
    reach = window or h, window or w
    if implementation == "auto":
        implementation = chosen(qkv.shape, heads, reach, dtype)
    if implementation in DIRECT:
        from samjax.model.attention_direct import direct

        return direct(qkv.astype(dtype), bias, rel_h, rel_w, heads, reach, DIRECT[implementation])
    qkv = (qkv + bias).astype(dtype)
    if window:
        qkv = partition(qkv, window, bias.astype(dtype))
    q, k, v = rearrange(qkv, "b y x (s k d) -> s b y x k d", s=3, k=heads)
    out = rearrange(attention.attend(q, k, v, rel_h, rel_w, implementation), "b y x k d -> b y x (k d)")
    return merge(out, h, w) if window else out
