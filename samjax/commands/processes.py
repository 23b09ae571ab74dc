"""What commands share whose work may be divided among devices and processes."""

import contextlib
import os
import signal
import sys
from functools import partial
from typing import NamedTuple

from samjax.commands.common import start_jax
from samjax.errors import InputError

MORE = """\
several processes: each does every so many-th picture, of the same PATHs and into the same DIR, which all must see.
  samjax %(command)s photos --out DIR --processes 2 --process 0     on one machine, and --process 1 on the other
  srun samjax %(command)s photos --out DIR --distributed            on a cluster or TPU slice that JAX knows
With --coordinator they are one JAX program and end together. The files are those of a single process.
"""
FOREVER = 7 * 24 * 3600  # how long the first to end waits for the others
THREADS = 8


class Processes(NamedTuple):
    """This process's number, and how many there are."""

    process: int = 0
    processes: int = 1


def steady() -> None:
    """Has XLA use as many threads for eight devices that it makes of one CPU as for one, if it has not begun yet.

    It cuts a product in as many parts as it has threads, of which it has one for each core or device, whichever are
    more; and where it cuts, last digits change.
    """
    if "jax" not in sys.modules:
        os.environ.setdefault("NPROC", str(max(THREADS, os.cpu_count() or 1)))


def add_processes(parser) -> None:
    """Adds --processes, --process, --coordinator and --distributed."""
    group = parser.add_argument_group("several processes (see below)")
    group.add_argument("--processes", type=int, metavar="N", help="how many there are")
    group.add_argument("--process", type=int, metavar="I", help="which of them this is, from 0")
    group.add_argument("--coordinator", metavar="HOST:PORT", help="where process 0 waits for the others")
    group.add_argument("--distributed", action="store_true", help="learn all that from the cluster")


def join(args, patience: int = FOREVER) -> Processes:
    """This process's place among the others, all of which have come if JAX connects them.

    patience: seconds that the first to end waits for the others. Raises InputError.
    """
    connect = partial(_connect, shutdown_timeout_seconds=patience)
    given = args.processes, args.process
    if args.distributed:
        if args.coordinator is not None or given != (None, None):
            raise InputError("--distributed learns the number of processes from the cluster: leave out --coordinator, "
                             "--processes and --process, or --distributed")
        return connect("the cluster", "give --coordinator, --processes and --process instead")
    if given == (None, None) and args.coordinator is None:
        return Processes()
    if None in given:
        raise InputError("--processes and --process go together: how many, and which of them this is")
    if args.processes < 1 or not 0 <= args.process < args.processes:
        raise InputError(f"--process {args.process} is none of 0 to {args.processes - 1}, which --processes "
                         f"{args.processes} allows")
    if args.coordinator is None:
        return Processes(args.process, args.processes)
    host, _, port = args.coordinator.rpartition(":")
    if not host or not port.isdigit():
        raise InputError(f"--coordinator {args.coordinator} is not HOST:PORT")
    return connect(args.coordinator, "is process 0 running, and can it be reached?", process_id=args.process,
                   coordinator_address=args.coordinator, num_processes=args.processes)


def _connect(where: str, hint: str, **settings) -> Processes:
    start_jax()
    import jax

    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        jax.distributed.initialize(**settings)
    except (ValueError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise InputError(f"cannot join the other processes at {where} ({reason}): {hint}") from None
    for number, handler in handlers.items():  # JAX's own only notes a SIGTERM, and the process lives on
        if handler is not None:
            with contextlib.suppress(ValueError):  # not the main thread
                signal.signal(number, handler)
    return Processes(jax.process_index(), jax.process_count())
