"""What a training step in bfloat16 keeps between its passes, and passes back: bfloat16, or nothing.

Left alone, differentiation keeps the float32 values between two products, and multiplies float32 gradients. In the mask
decoder, whose arrays are large and whose products are small, that is what a step waits for.
"""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
from jax import Array, lax


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



@jax.custom_vjp
def dense(x: Array, kernel: Array, bias: Array) -> Array:
    """x (..., c) @ kernel (c, d) + bias (d,), rounded to x's type, in which its gradients are multiplied, too."""
    return jnp.matmul(x, kernel) + bias


def _dense(x, kernel, bias):
    return dense(x, kernel, bias), (x, kernel)


def _dense_backward(kept, gradient):
    x, kernel = kept
    rows = lambda array: array.reshape(-1, array.shape[-1])
    total = rows(gradient).astype(jnp.float32).sum(0).astype(gradient.dtype)
    return jnp.matmul(gradient, kernel.T), jnp.matmul(rows(x).T, rows(gradient)), total


dense.defvjp(_dense, _dense_backward)


def recomputed(function: Callable) -> Callable:
    """The function, of which only its arguments are kept for the gradient."""
    @jax.custom_vjp
    def run(*args):
        return function(*args)

    def forward(*args):
        return function(*args), args

    def backward(args, gradient):
        # The barrier keeps compilers from finding the same values in both passes, and keeping them after all.
        return jax.vjp(function, *lax.optimization_barrier(args))[1](gradient)

    run.defvjp(forward, backward)
    return run
