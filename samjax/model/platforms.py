"""A mark that a program is for certain platforms: compiled for another, it says so in words of our own."""

from functools import partial

import jax
from jax import Array
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir

from samjax.errors import InputError

_only = Primitive("only_on")


def only_on(x: Array, platforms: tuple[str, ...], what: str) -> Array:
    """x itself. Compiling for a platform ("cpu", "cuda", "tpu", ...) that is not among them raises InputError.

    Which platform that is is known only then: a program may be traced on one and compiled for another.
    """
    return _only.bind(x, platforms=platforms, what=what)


def _lower(ctx, x, *, platforms, what):
    for platform in ctx.platforms or ctx.module_context.platforms:
        if platform not in platforms:
            raise InputError(f"{what} is for {' and '.join(platforms)}, not for {platform}: choose 'xla'")
    return [x]


_only.def_abstract_eval(lambda x, **params: x)
_only.def_impl(lambda x, **params: jax.jit(partial(_only.bind, **params))(x))
mlir.register_lowering(_only, _lower)
ad.deflinear2(_only, lambda gradient, x, **params: [gradient])
batching.defvectorized(_only)
