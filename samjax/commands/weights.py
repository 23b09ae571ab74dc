"""`samjax weights`: the known checkpoints."""

import json

from samjax.commands.common import add_command, emit

MORE = """\
The cache is $SAMJAX_CACHE, or samjax in the user's cache directory. With SAMJAX_OFFLINE=1 nothing is fetched.

examples:
  samjax weights                 the table: name, cached or not, size, licence, hash
  samjax weights vit_b           fetch and verify; prints the file's path
  samjax weights --json          the table for programs, with all sources
"""


def add(subparsers) -> None:
    parser = add_command(subparsers, "weights", run, "list the known checkpoints, or fetch one into the cache", MORE)
    parser.add_argument("name", nargs="?", metavar="NAME", help="fetch this one and print its path")
    parser.add_argument("--json", action="store_true", help="print JSON")


def run(args) -> None:
    from samjax import weights

    if args.name is None:
        emit(json.dumps(weights.rows(), indent=1) if args.json else weights.table())
        return
    path = weights.fetch(args.name)
    row = next(row for row in weights.rows() if row["name"] == args.name)
    emit(json.dumps(row, indent=1) if args.json else str(path))
