"""`samjax train`: a model trained by the paper's recipe, from nothing or from a model, on any number of devices."""

import json

from samjax.commands.common import add_command, emit, start_jax
from samjax.commands.processes import add_processes, join
from samjax.commands.training import add_conduct, add_numbers, checks, conducted, how_to_use, options_of
from samjax.errors import InputError

MORE = """\
DATA is SA-1B (a folder, .tar shards, a pattern of them), a COCO or LVIS .json, a folder of images/ and masks/, or a
folder with a meta.json. Nothing is read before the training: a bad picture is named and another takes its place, and
over a tenth of bad ones ends the run. --check reads everything and names what is bad. Pictures that the data name as
val, or --val, are scored every so many steps (one point and box, mean IoU); DIR/model is the best by them. Without any
it is the last one. (samjax finetune holds some pictures out, has defaults for few of them, and compares.)

--model is the architecture, from random weights: a name, or a .json like a model's samjax.json. --encoder begins with a
pretrained ViT instead, as the paper does (MAE's mae_pretrain_vit_base.pth, for instance). --init goes on from a model.
The BatchNorms of mobile_sam and lite_medsam keep their statistics, so that from random weights they learn little.

The recipe is the paper's for the model: vit_b, vit_l, vit_h; others take vit_b's. mask_generation is that of the model
which made SA-1B (points and masks only, a deeper decoder). Any of its settings can be changed:
  --set drop_path=0.1 --set jitter=[0.1,2.0] --set schedule=cosine     (samjax.train.Recipe says what there is)
Where --steps are others than the paper's, the rate falls at the same shares of them. --batch is that of all devices
together; the rate does not follow it.

Several devices: --sharding data (the default there) holds the whole state on each, fsdp divides it among groups (--fsdp
N), pmap is data by jax.pmap. --accumulate takes a device's share of the batch in parts, --remat computes activations
anew: both need less memory. Several processes train together, all of which see DATA and DIR:
  samjax train sa1b --out DIR --distributed                            on each host of a TPU slice or cluster
  samjax train sa1b --out DIR --coordinator HOST:1234 --processes 2 --process 0     (and --process 1 on the other)

DIR also holds checkpoints/, metrics.jsonl, tensorboard/, curves.png (with matplotlib), report.json. Killed at any
moment, the same command goes on from the last checkpoint. SIGTERM, to any one process, saves and ends all with status
0, Ctrl-C with 130.

examples:
  samjax train 'sa1b/*.tar' --encoder mae_pretrain_vit_base.pth --out runs/b --workers 16
  samjax train coco/annotations/instances_train2017.json --image-size 512 --batch 32 --steps 20000 --out runs/small
  samjax train sa1b --init vit_b --lr 4e-5 --steps 5000 --out runs/more
  samjax train sa1b --check
"""
PATIENCE = 120  # seconds that a process which has ended waits for the others; they end together
NUMBERS = {
    "the recipe": (
        ("batch", int, 0, "pictures a step, of all devices together"),
        ("steps", int, 0, "steps of training"),
        ("lr", float, 0.0, "the learning rate after the warm-up"),
        ("objects", int, 0, "masks of a picture in a step at most, drawn at random"),
        ("accumulate", int, 0, "parts in which a device takes its share of a batch (default: 1)"),
    ),
    "the run": (
        ("image-size", int, 0, "side of the encoder's input (default: the model's, 1024)"),
        ("evaluate-every", int, 2000, "steps between scores of what is validated on; 0: never"),
        ("val-objects", int, 1000, "objects of each DATA or --val that these are of"),
        ("save-every", int, 500, "steps between checkpoints"),
        ("keep", int, 3, "checkpoints that are kept, besides the best"),
        ("balance", float, 1.0, "of several DATA each is drawn in proportion to pictures^X; 0: all alike"),
        ("workers", int, 0, "processes on each host that read pictures; 0: a thread"),
        ("seed", int, 0, "of all that is random"),
    ),
}


def add(subparsers) -> None:
    parser = add_command(subparsers, "train", run, "train a model by the paper's recipe, from scratch if need be", MORE)
    parser.add_argument("data", metavar="DATA", nargs="+", help="pictures with masks")
    add_conduct(parser, "training")
    parser.add_argument("--model", metavar="M", default="", help="the architecture: vit_b, vit_l, vit_h, mobile_sam, "
                        "lite_medsam, or a .json (default: vit_b)")
    parser.add_argument("--encoder", metavar="FILE", default="", help="a pretrained ViT to begin with")
    parser.add_argument("--init", metavar="M", default="", help="a model to begin with: a known name or a path")
    parser.add_argument("--recipe", metavar="NAME", default="",
                        help="vit_b, vit_l, vit_h, mask_generation or finetune (default: by the model)")
    parser.add_argument("--set", metavar="NAME=VALUE", action="append", default=[], dest="settings",
                        help="a setting of the recipe")
    parser.add_argument("--masks", choices=("auto", "instances", "classes"), default="auto",
                        help="what numbers in mask pictures mean (see samjax finetune --help)")
    parser.add_argument("--dtype", choices=("bfloat16", "float32"), default="bfloat16",
                        help="of the products (default: %(default)s, with parameters and losses in float32; on a CPU "
                             "float32 is quicker)")
    parser.add_argument("--sharding", choices=("one", "pmap", "data", "fsdp"), default="",
                        help="how to use several devices (default: data)")
    parser.add_argument("--fsdp", metavar="N", type=int, default=0,
                        help="devices that hold a state together, with --sharding fsdp (default: all)")
    parser.add_argument("--remat", choices=("none", "products", "blocks"), default="",
                        help="what of the encoder is computed anew in the backward pass (default: all but products "
                             "from 24 blocks on)")
    add_numbers(parser, NUMBERS, {"the recipe": "the recipe says"})
    add_processes(parser)


def run(args) -> int:
    from samjax.train.material import open_for_training
    from samjax.train.training_options import TrainingOptions, config_of, recipe_of

    options = options_of(args, TrainingOptions)
    if args.processes is not None and args.coordinator is None and not args.distributed:
        raise InputError("processes that train together must reach each other: give --coordinator HOST:PORT too")
    recipe_of(options, config_of(options).name)  # what is wrong with it is said at once
    say = lambda text: None if args.json else emit(text)
    sources = open_for_training(options)
    if args.check:
        return checks(args, sources, say)
    join(args, patience=PATIENCE)
    return _train(args, options, sources, say)


def _train(args, options, sources: dict, say) -> int:
    start_jax()
    from samjax.train import training

    report, status = conducted(args, lambda: training.run(options, sources, restart=args.restart, say=say,
                                                          shown=not args.json))
    if report is None:
        return status
    if training.leads():
        if report.pop("again", False):
            say(f"{args.out} is done already; --restart begins anew")
        emit(json.dumps(report, indent=1) if args.json else _summary(args, report))
    return 0


def _summary(args, report: dict) -> str:
    best, scores = report["best_step"], report["scores"]
    found = ""
    if best is not None:
        score = scores[str(best)]
        found = (f"; step {best} was best: one point {score['point']:.1f}, the best of its three masks "
                 f"{score['point_oracle']:.1f}, box {score['box']:.1f} (mean IoU, %)")
    return (f"{report['steps']} steps in {report['seconds'] / 60:.1f} minutes{found}\n"
            f"{how_to_use(args.out)}")
