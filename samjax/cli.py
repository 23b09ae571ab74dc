"""The command line: `samjax COMMAND ...`.

A command is a module of `samjax.commands` with `add(subparsers)`, which declares its arguments, and `run(args)`, which
returns the exit status (None is 0). Modules import what they need inside `run`: a wrong argument is answered without
starting JAX.

Exit status: 0 done; 2 the input is wrong (one line on stderr); 1 anything else; 130 interrupted.
"""

import argparse
import contextlib
import importlib
import os
import signal
import sys

from samjax import __version__
from samjax.errors import InputError

COMMANDS = ("segment", "everything", "embed", "evaluate", "finetune", "train", "weights", "convert", "export")

EPILOG = """\
examples:
  samjax segment photo.jpg --point 320,240         masks of what lies at a point
  samjax segment photo.jpg --box 10,20,300,400     masks of what lies in a box
  samjax everything photos --out masks             all masks of all pictures in a folder
  samjax evaluate data                             a model's scores on pictures with masks
  samjax weights                                   the models that can be used by name
  samjax COMMAND --help                            everything about one command
"""


def main(argv: list[str] | None = None) -> int:
    """Runs one command; returns the exit status. Messages go to stderr."""
    debug = os.environ.get("SAMJAX_DEBUG", "") not in ("", "0")
    try:
        with contextlib.nullcontext() if debug else _silence(), _terminable(), contextlib.suppress(_Done):
            args, unknown = parser().parse_known_args(_join_negative(sys.argv[1:] if argv is None else list(argv)))
            if unknown:
                raise InputError(f"unrecognized arguments: {' '.join(unknown)} (see samjax {args.command} --help)")
            return args.run(args) or 0
        return 0
    except InputError as error:
        return _say(f"error: {error}", 2)
    except KeyboardInterrupt:
        return _say("interrupted", 130)
    except BrokenPipeError:  # the reader of our output has gone; nothing is left to say to it
        with contextlib.suppress(OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except Exception as error:
        if debug:
            raise
        return _say(f"unexpected error: {type(error).__name__}: {error or 'no message'} "
                    "(set SAMJAX_DEBUG=1 for the traceback)", 1)


def parser() -> argparse.ArgumentParser:
    """The parser of all commands."""
    top = _Parser(prog="samjax", description="The Segment Anything Model in JAX: class-agnostic masks from points, "
                  "boxes and masks.", epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter)
    top.add_argument("--version", action="version", version=f"samjax {__version__}")
    subparsers = top.add_subparsers(title="commands", metavar="COMMAND", required=True, dest="command")
    for name in COMMANDS:
        importlib.import_module(f"samjax.commands.{name}").add(subparsers)
    return top


class _Done(Exception):
    """Help or the version was printed."""


class _Parser(argparse.ArgumentParser):
    """argparse whose errors are InputErrors: one line, without the usage."""

    def __init__(self, **settings):
        super().__init__(**settings, allow_abbrev=False)  # so that a new option never changes what an old line means

    def error(self, message):
        raise InputError(f"{message} (see {self.prog} --help)")

    def exit(self, status=0, message=None):
        raise _Done


def _join_negative(argv: list[str]) -> list[str]:
    """--point -3,4 -> --point=-3,4: argparse takes the former for an option without a value."""
    joined = []
    for word in argv:
        if joined and joined[-1] in ("--point", "--box") and word[:1] == "-" and word[1:2] in "0123456789.":
            joined[-1] += "=" + word
        else:
            joined.append(word)
    return joined


@contextlib.contextmanager
def _silence():
    """No word of any library: stdout and stderr are the command's own."""
    import logging
    import warnings

    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # XLA's own log
    loggers = [logging.getLogger(name) for name in ("jax", "absl", "PIL")]
    before = [logger.level for logger in loggers]
    with warnings.catch_warnings():
        if not sys.warnoptions:
            warnings.simplefilter("ignore")
        for logger in loggers:
            logger.setLevel(logging.CRITICAL)
        try:
            yield
        finally:
            for logger, level in zip(loggers, before):
                logger.setLevel(level)


@contextlib.contextmanager
def _terminable():
    """Lets SIGTERM unwind the stack, so that unfinished files are removed."""
    def stop(*_):
        raise SystemExit(128 + signal.SIGTERM)

    try:
        before = signal.signal(signal.SIGTERM, stop)
    except ValueError:  # not the main thread
        yield
        return
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _say(message: str, status: int) -> int:
    with contextlib.suppress(OSError, AttributeError):  # stderr may be closed
        print("samjax:", " ".join(message.splitlines()), file=sys.stderr, flush=True)
    return status
