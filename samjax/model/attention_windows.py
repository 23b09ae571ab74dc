"""Attention over a grid in windows, from the joint projection to the joined heads: `Attention`'s part of a ViT's block.

Implementations that read the grid as it is ("triton") spare cutting it up; all others get windows from here.
"""

import jax
from einops import rearrange
from jax import Array

from samjax.model import attention
from samjax.model.windows import merge, partition

DIRECT = {"triton": False, "interpret_triton": True}  # on CUDA; or anywhere, slowly, for tests
NAMES = [*attention.IMPLEMENTATIONS, *DIRECT, "auto"]
MEASURED = 64  # columns of a window, at most, that "triton" was timed with


def chosen(shape: tuple[int, ...], heads: int, window: tuple[int, int], dtype: str) -> str:
    """What "auto" takes for products (b, h, w, 3 c): "triton" where it was shown to be right and quicker, else "xla".

    It was in bfloat16 on an H200 (experiments/attention.py, experiments/accelerator.py). Which device that is, the
    default one says when the program is traced.
    """
    if dtype != "bfloat16" or window[1] > MEASURED or not on_hopper():
        return "xla"
    from samjax.model import attention_cuda

    grid = attention_cuda.Grid(*shape[1:3], *window, heads, shape[3] // 3 // heads)
    return "xla" if attention_cuda.refuses(grid, dtype) else "triton"


def on_hopper() -> bool:
    """Whether programs run by default on an NVIDIA GPU of the Hopper generation (H100, H200)."""
    device = jax.config.jax_default_device
    if device is None or isinstance(device, str):
        device = jax.local_devices(backend=device)[0]
    return device.platform == "gpu" and getattr(device, "compute_capability", "") == "9.0"


def attend_grid(qkv: Array, bias: Array, rel_h: Array, rel_w: Array, heads: int, window: int, dtype: str,
                implementation: str = "xla") -> Array:
    """Attention of every token of a grid to its window, or (window 0) to the whole grid.

    Args:
        qkv: (b, h, w, 3 c) products of the joint projection, without its bias: queries, keys and values side by side,
            each heads x width.
        bias: (3 c,) of the projection; alone it is what a window sees beyond the grid.
        rel_h, rel_w: as for `attention.attend`, of a window.
        dtype: of what is multiplied.
        implementation: as there, or "triton", or "auto": see `chosen`.

    Returns:
        (b, h, w, c) in dtype.

    Raises as `attention.attend` does.
    """
    h, w = qkv.shape[1:3]
    if implementation not in NAMES:
        raise ValueError(f"attention {implementation!r} is none of {', '.join(NAMES)}")
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
