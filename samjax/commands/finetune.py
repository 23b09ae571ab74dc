"""`samjax finetune`: a model trained on one's own pictures and masks."""

import json
import time

from samjax.commands.common import add_command, emit, start_jax
from samjax.commands.training import (
    add_conduct,
    add_numbers,
    checked,
    checks,
    conducted,
    how_to_use,
    meter,
    options_of,
)

MORE = """\
DATA is a folder with images/ and masks/ (PNG of instance ids, or of classes whose 8-connected parts are the objects), a
COCO or LVIS .json, SA-1B (folder or .tar), or a folder with a meta.json. Where nothing says what is for validation, a
fifth of the pictures is, by a hash of their names. Everything is read and checked first; bad items are named and passed
over; --check does only that.

In mask pictures 0 is background. 255 is an object in masks of 0 and 255 alone; in classes of 8 bits it is void, as in
PASCAL VOC: where it stands beside others that are numbered from 1 on, or the other pictures have several such. Grey
levels (0, 128, 255) are classes, 255 among them. With --masks instances every value but 0 is an object.

--train decoder (the default) trains what turns prompts into masks. The encoder's embeddings are then made once and kept
in DIR/embeddings (2 MB a picture), which is many times faster. --train lora adds low-rank factors to the encoder and
trains the decoder; they are merged in the result. --train all trains everything.

The best model on the validation data is DIR/model, from the first evaluation on: by the mean of one-point and box IoU
(of those that --prompts names), in which what either has lost counts three times. Its mean there (on --score-objects of
them) is never lower than that of the one to start from:
  samjax segment photo.jpg --model DIR --point 100,200
  samjax convert DIR tuned.pth
DIR also holds report.json (untuned and tuned scores), metrics.jsonl, tensorboard/, curves.png (with matplotlib).

Killed at any moment, the same command goes on. SIGTERM saves and ends with status 0, Ctrl-C saves and ends with 130.

A model that is tuned to one kind of picture forgets others. The result is therefore a mixture of the tuned parameters
and those it began from, as near to these as costs at most a point (--blend). --mix DATA puts other pictures, such as
everyday ones, into the training (a quarter of it; --mix-share), and scores their val split as well; --keep X pulls the
parameters back to where they began.

examples:
  samjax finetune cracks --out tuned
  samjax finetune cells.json --init vit_b --out tuned --minutes 20
  samjax finetune cracks fabric --mix coco/annotations/instances_val2017.json --out tuned --steps 600
  samjax finetune cracks --check
"""

# name, type, default, help: the fields of samjax.train.options.Options that are numbers
NUMBERS = {
    "how long": (
        ("minutes", float, 0.0, "wall time at most, all in all; the rate falls to 0 by then"),
        ("steps", int, 0, "steps of training (default: 30 epochs, but 200 to 2000 steps)"),
        ("epochs", float, 0.0, "the same, in passes over the pictures"),
        ("patience", int, 6, "end after so many evaluations without a better score; 0: never"),
        ("evaluate-every", int, 0, "steps between evaluations (default: a twelfth of all)"),
        ("val-objects", int, 150, "objects that an evaluation during training looks at"),
        ("score-objects", int, 600, "objects of each data set that the untuned and the tuned scores are of"),
    ),
    "how": (
        ("lr", float, 0.0, "the learning rate (default: 3e-4, with --train all 1e-4)"),
        ("batch", int, 0, "pictures a step (default: 4, or 2 where the encoder is trained)"),
        ("objects", int, 0, "objects of a picture in a step, drawn at random (default: 4)"),
        ("rounds", int, 0, "predictions for an object: a first prompt, then corrections (default: 2)"),
        ("lora-rank", int, 8, "of the factors, with --train lora"),
        ("mask-size", int, 0, "side of the losses' grid, a multiple of the logits' (default: twice that)"),
        ("average", float, 0.99, "decay of the moving average of the parameters, which is the result; 0: none"),
        ("keep", float, 0.0, "pull towards the parameters at the start; 1 to 30 is sensible"),
        ("blend", float, 0.0, "how far the result goes from the start to the tuned parameters; 1: all the way "
                              "(default, 0: the least of 0.25, 0.5, 0.75, 1 that costs at most a point in validation)"),
        ("mix-share", float, 0.25, "share of --mix in the training"),
        ("balance", float, 1.0, "of several DATA each is drawn in proportion to pictures^X; 0: all alike"),
        ("seed", int, 0, "of all that is random"),
        ("workers", int, 0, "processes that read pictures; 0: a thread"),
    ),
}


def add(subparsers) -> None:
    parser = add_command(subparsers, "finetune", run, "train a model on your own pictures and masks", MORE)
    parser.add_argument("data", metavar="DATA", nargs="+", help="folders or COCO files with masks")
    add_conduct(parser, "fine-tuning")
    parser.add_argument("--init", metavar="M", default="mobile_sam",
                        help="the model to start from: a known name, a file or a directory (default: %(default)s)")
    parser.add_argument("--train", choices=("decoder", "lora", "all"), default="decoder",
                        help="which parts are trained (default: %(default)s)")
    parser.add_argument("--prompts", choices=("both", "point", "box"), default="both",
                        help="the first prompt in training (default: %(default)s, even odds)")
    parser.add_argument("--augment", choices=("none", "flip", "jitter", "strong"), default="none",
                        help="mirror the pictures; and scale them by 0.5 to 2; and turn them upside down, and change "
                             "their light, for pictures that have no up (default: %(default)s)")
    parser.add_argument("--mix", metavar="DATA", action="append", default=[],
                        help="data of other kinds that are not to be forgotten")
    parser.add_argument("--embeddings", metavar="DIR", default="",
                        help="where embeddings are kept, if several runs are to share them (default: in --out)")
    parser.add_argument("--masks", choices=("auto", "instances", "classes"), default="auto",
                        help="what numbers in mask pictures mean (default: by their bits)")
    parser.add_argument("--sharding", choices=("one", "pmap", "data", "fsdp"), default="one",
                        help="how to use several devices (default: one device)")
    add_numbers(parser, NUMBERS)


def run(args) -> int:
    begun = time.perf_counter()
    from samjax.train import material
    from samjax.train.options import Options

    options = options_of(args, Options)
    sources = material.open_all(options)
    say = lambda text: None if args.json else emit(text)
    if args.check:
        return checks(args, sources, say)
    reports = checked(sources, say, False)
    return _tune(args, options, material.usable(sources, reports), say, begun)


def _tune(args, options, sources: dict, say, begun: float) -> int:
    from samjax.train.material import names_of
    from samjax.weights import resolve

    path = resolve(args.init)
    start_jax()
    from samjax.train import finetune

    names = [name for found in sources.values() for name in names_of(found)]
    report = finetune.claim(options, path, names, args.restart)
    if report is not None:
        say(f"{args.out} is done already; --restart begins anew")
    else:
        report, status = conducted(args, lambda: finetune.finetune(options, path, sources, say, shown=not args.json,
                                                                   progress=meter, begun=begun))
        if report is None:
            return status
    emit(json.dumps(report, indent=1) if args.json else f"{finetune.table(report)}\n{_summary(args, report)}")
    return 0


def _summary(args, report: dict) -> str:
    ends = {"done": "all steps are done", "patience": "the score did not rise any more", "time": "the time is over"}
    best = report["best_step"]
    model = f"step {best} was best" if best else "no step was better than the model to start from"
    return (f"{report['steps']} steps in {report['seconds'] / 60:.1f} minutes ({ends[report['ended_by']]}); {model}\n"
            f"{how_to_use(args.out)}")
