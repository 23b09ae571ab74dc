"""What the commands share: their help, standard output, the start of JAX."""

import argparse
import os
import sys
from collections.abc import Callable

from samjax.errors import InputError


def add_command(subparsers, name: str, run: Callable, summary: str, more: str) -> argparse.ArgumentParser:
    """A parser for the command `name`, which `run` does; `more` follows the options in its help."""
    parser = subparsers.add_parser(name, help=summary, description=summary[0].upper() + summary[1:] + ".",
                                   epilog=more, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.set_defaults(run=run)
    return parser


def add_dtype(parser) -> None:
    """The option --dtype of commands that load a model."""
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32",
                        help="of the computation (default: %(default)s)")


def add_int8(parser) -> None:
    """The option --int8 of commands that load a model."""
    parser.add_argument("--int8", action="store_true", help="hold large weights as int8: a quarter of a ViT")


def count(n: int, noun: str) -> str:
    return f"{n:,} {noun}{'' if n == 1 else 's'}"


def check_lone(paths, sources) -> None:
    """A single file that is no picture is a mistake, not a job with one failure. Raises InputError."""
    if len(paths) == len(sources) == 1 and os.path.isfile(paths[0]):
        from samjax.image import check_header

        check_header(paths[0])


def emit(text: str) -> None:
    """Writes lines to stdout, whatever its encoding; InputError where it takes no more (a full disk)."""
    sys.stdout.reconfigure(errors="backslashreplace") if hasattr(sys.stdout, "reconfigure") else None
    try:
        print(text, flush=True)
    except BrokenPipeError:
        raise
    except OSError as error:
        raise InputError(f"cannot write to the standard output: {error.strerror or error}") from None


def start_jax() -> None:
    """Imports JAX and lets it keep compiled programs in the cache directory, unless the user has set another."""
    import jax

    from samjax.weights import cache_dir

    if jax.config.jax_compilation_cache_dir:
        return
    try:
        folder = cache_dir() / "xla" / _processor()
        os.makedirs(folder, exist_ok=True)
    except (OSError, InputError):
        return  # slower starts, nothing else
    if os.access(folder, os.W_OK):
        jax.config.update("jax_compilation_cache_dir", os.fspath(folder))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)
        jax.config.update("jax_persistent_cache_min_entry_size_bytes", 0)


def _processor() -> str:
    """A name for this kind of processor: a home directory may serve machines that cannot run each other's code."""
    import platform
    import zlib

    features = platform.processor()
    try:
        with open("/proc/cpuinfo") as file:
            features += next(line for line in file if line.startswith(("flags", "Features")))
    except (OSError, StopIteration):
        pass
    return f"{platform.machine() or 'any'}-{zlib.crc32(features.encode()):08x}"
