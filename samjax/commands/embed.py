"""`samjax embed`: the image encoder's features of many pictures, for training and search."""

import contextlib
import json
import sys
import time

from samjax.commands.common import add_command, add_dtype, add_int8, check_lone, count, emit, start_jax
from samjax.commands.processes import MORE as PROCESSES
from samjax.commands.processes import add_processes, join, steady

MORE = """\
PATH is a picture, a folder (with its subfolders) or a pattern. In folders, files that are no pictures are skipped and
counted. A picture that cannot be read is named on stderr, and the job goes on. Killed at any moment, the same command
takes it up again; it loses at most the shard it was at. All devices of the machine are used.

Written to DIR: shard-00000.npy, ... of (pictures, h, w, 256), shard-00000.json, ... with the pictures' names, sizes and
sha256, and index.json: model, counts, failures. samjax.embeddings.Embeddings(DIR) reads one picture at a time.

status: 0 all done; 1 some pictures failed; 2 wrong arguments, or nothing to do.

examples:
  samjax embed photos --out embeddings
  samjax embed photos --out embeddings --model vit_h --dtype bfloat16 --store bfloat16

""" + PROCESSES % {"command": "embed"}


def add(subparsers) -> None:
    parser = add_command(subparsers, "embed", run, "encode pictures, folders of them, data sets, to files", MORE)
    parser.add_argument("paths", metavar="PATH", nargs="+", help="a picture, a folder or a pattern such as 'a/*.jpg'")
    parser.add_argument("--out", metavar="DIR", required=True, help="where to write")
    parser.add_argument("--model", metavar="M", default="mobile_sam",
                        help="a known name (samjax weights) or a file or directory (default: %(default)s)")
    add_dtype(parser)
    add_int8(parser)
    parser.add_argument("--store", choices=("float16", "float32", "bfloat16"), default="float16",
                        help="of the files: 2 MB a picture for a 1024 px model, float32 4 (default: %(default)s)")
    parser.add_argument("--shard", type=int, metavar="N", default=64, help="pictures in a file (default: %(default)s)")
    parser.add_argument("--restart", action="store_true", help="redo what is done, with other settings if need be")
    parser.add_argument("--json", action="store_true", help="print the summary as JSON on stdout")
    add_processes(parser)


def run(args) -> int:
    from samjax.bulk import embed
    from samjax.inputs import find_sources
    from samjax.weights import resolve

    check_lone(args.paths, find_sources(args.paths, args.out, False)[0])  # says at once what is wrong
    resolve(args.model)
    steady()
    place = join(args)
    start_jax()
    start = time.perf_counter()
    with _progress() as said:
        done = embed(args.model, args.paths, args.out, dtype=args.dtype, store=args.store, shard=args.shard,
                     restart=args.restart, process=place.process, processes=place.processes, progress=said,
                     int8=args.int8)
    seconds = time.perf_counter() - start
    rate = (done["images"] - done["done_before"]) / max(seconds, 1e-9)
    if args.json:
        emit(json.dumps({**done, "seconds": round(seconds, 3), "images_per_second": round(rate, 4)}, indent=1))
    else:
        before = f", {done['done_before']} done before" if done["done_before"] else ""
        emit(f"{count(done['images'], 'image')}, {count(len(done['failures']), 'failure')}, {done['skipped']} skipped"
             f"{before}, {rate:.3g} images/s -> {args.out}")
    return 1 if done["failures"] else 0


@contextlib.contextmanager
def _progress():
    """A function for each picture: failures are said as they occur; a bar on a terminal."""
    bar = None
    if sys.stderr is not None and sys.stderr.isatty():
        from tqdm import tqdm

        bar = tqdm(unit="image", file=sys.stderr)

    def said(name: str, reason: str | None) -> None:
        if bar is not None:
            bar.update()
        if reason is not None:
            with contextlib.suppress(OSError, AttributeError):  # stderr may be closed
                line = " ".join(f"samjax: {name}: {reason}".split())
                (print if bar is None else bar.write)(line, file=sys.stderr)

    try:
        yield said
    finally:
        if bar is not None:
            bar.close()
