"""Products of a training step in bfloat16, whose gradients are multiplied in bfloat16, too.

Left alone, a product that is summed up in float32 has float32 gradients, which are multiplied as such. In the mask
decoder, whose arrays are large and whose products are small, that is what a step waits for. What lies between two
products there is computed again for the gradient (`jax.checkpoint`) and not kept in float32.
"""

from functools import partial

import jax
import jax.numpy as jnp
from jax import Array


@partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def product(pattern: str, dtype: str, x: Array, y: Array) -> Array:
    """einsum of two arrays of one type, accumulated in float32 and rounded to dtype.

    Its gradients are products in the arrays' own type. pattern: each index lies in two or three of x, y and result.
    """
    return jnp.einsum(pattern, x, y, preferred_element_type=jnp.dtype(dtype))


def _forward(pattern: str, dtype: str, x: Array, y: Array):
    return product(pattern, dtype, x, y), (x, y)


def _backward(pattern: str, dtype: str, kept: tuple[Array, Array], gradient: Array) -> tuple[Array, Array]:
    x, y = kept
    inputs, result = pattern.split("->")
    first, second = inputs.split(",")
    gradient = gradient.astype(x.dtype)
    return (jnp.einsum(f"{result},{second}->{first}", gradient, y),
            jnp.einsum(f"{first},{result}->{second}", x, gradient))


product.defvjp(_forward, _backward)
