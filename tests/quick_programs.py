"""Programs of small models, which run for milliseconds, are made in a moment; imported before anything is compiled.

While $JAX_DISABLE_MOST_OPTIMIZATIONS is set, XLA leaves out its newer code generator for fusions as well: it takes two
thirds of the time that a training step compiles for. (With JAX 0.11 there is no other.)
"""

import os

import jax
from jax._src import compiler

QUICK = "JAX_DISABLE_MOST_OPTIMIZATIONS"
_options = compiler.get_compile_options


def _quick_options(*args, env_options_overrides=None, **settings):
    if QUICK in os.environ:
        env_options_overrides = {"xla_cpu_use_fusion_emitters": False, **(env_options_overrides or {})}
    return _options(*args, env_options_overrides=env_options_overrides, **settings)


if jax.__version_info__ < (0, 11):
    compiler.get_compile_options = _quick_options
