"""How a model is trained: one frozen dataclass, whose defaults are the paper's for ViT-H, and the paper's presets.

All values are from Segment Anything, appendix A ("Training algorithm", "Training recipe") and appendix B (the model
for mask generation), unless a comment says otherwise.
"""

import dataclasses
import difflib
from dataclasses import dataclass, replace

from samjax.errors import InputError

TRAINS = ("everything", "decoder", "encoder", "lora", "lora+decoder")
SCHEDULES = ("steps", "cosine", "constant")
ADAPTS = ("encoder", "decoder", "both")


def _alike(value, default) -> bool:
    """Whether a value has the type of a default; whole numbers will do for floats, finite numbers only."""
    if isinstance(default, tuple):
        number = default[0] if default else 1.0
        return isinstance(value, tuple) and all(_alike(x, number) for x in value)
    if isinstance(default, float):
        return type(value) in (int, float) and abs(value) < float("inf")
    return type(value) is type(default)


def _require(holds: bool, name: str, what: str, recipe: "Recipe"):
    if not holds:
        raise InputError(f"recipe: {name} must be {what}, not {getattr(recipe, name)!r}")


@dataclass(frozen=True)
class Recipe:
    """A recipe. Hashable, so it can be a static argument of `jit`.

    Raises InputError for values that make no sense.
    """

    # The data
    batch: int = 256  # images a step, over all devices together
    objects: int = 64  # masks of an image at most, drawn at random (the paper: 64 a GPU, which holds one image)
    jitter: tuple[float, ...] = ()  # scales of large-scale jitter, (0.1, 2.0) where data is scarce; () for none

    # The annotator
    points: int = 9  # the first prompt and the points after it
    refinements: int = 2  # rounds that bring no new point: 1 last, a second at a random place
    boxes: float = 0.5  # how often the first prompt is a box
    box_noise: float = 0.1  # standard deviation of each coordinate, of the box's side
    box_noise_limit: float = 20.0  # in pixels of an input of 1024; scaled for other sizes

    # The losses
    focal: float = 20.0
    dice: float = 1.0
    iou: float = 1.0
    focal_alpha: float = 0.25  # and gamma: the values of RetinaNet, DETR and MaskFormer, which the paper follows
    focal_gamma: float = 2.0
    iou_of: str = "best"  # the score head learns from the mask of least loss; or from "all" three
    single_first: bool = False  # the first answer to a box trains the single mask too, which answers boxes in use

    # The optimiser
    steps: int = 90_000
    lr: float = 8e-4
    warmup: int = 250
    schedule: str = "steps"
    drops: tuple[int, ...] = (60_000, 86_666)  # the learning rate is divided by 10 at each ("steps" only)
    betas: tuple[float, ...] = (0.9, 0.999)
    weight_decay: float = 0.1
    layer_decay: float = 0.8
    clip: float = 0.0  # largest norm of the gradient; 0: never clipped (the paper names none)
    accumulate: int = 1  # each device takes its share of a batch in so many parts, one after the other

    # The model
    drop_path: float = 0.4
    dropout: float = 0.1  # of the decoder
    decoder_depth: int = 0  # 0: as the model has it
    train: str = "everything"
    lora_rank: int = 8  # with train "lora" or "lora+decoder"
    lora_on: str = "encoder"

    @property
    def rounds(self) -> int:
        """Predictions for each mask: 11 by default."""
        return self.points + self.refinements

    def pipeline(self) -> dict:
        """What `samjax.data.make_pipeline` is to be given: batch, objects, augment. (Masks over 90 % of a picture are
        dropped by every pipeline.)"""
        from samjax.data.transforms import Augment

        jitter = Augment(flip=0.0, scale=self.jitter) if self.jitter else None
        return {"batch": self.batch, "objects": self.objects, "augment": jitter}

    def __post_init__(self):
        for name, value in dataclasses.asdict(self).items():
            if not _alike(value, _DEFAULTS[name]):
                raise InputError(f"recipe: {name} cannot be {value!r}, it must be like {_DEFAULTS[name]!r}")
        for name, choices in (("train", TRAINS), ("schedule", SCHEDULES), ("lora_on", ADAPTS),
                              ("iou_of", ("best", "all"))):
            if getattr(self, name) not in choices:
                raise InputError(f"recipe: {name} {getattr(self, name)!r} is none of {', '.join(choices)}")
        for name in ("batch", "objects", "points", "steps", "accumulate", "lora_rank"):
            _require(getattr(self, name) >= 1, name, "at least 1", self)
        _require(0 <= self.boxes <= 1, "boxes", "from 0 to 1", self)
        for name in ("drop_path", "dropout"):
            _require(0 <= getattr(self, name) < 1, name, "at least 0 and below 1", self)
        for name in ("lr", "warmup", "weight_decay", "clip", "box_noise", "box_noise_limit", "focal", "dice", "iou",
                     "focal_gamma", "decoder_depth"):
            _require(getattr(self, name) >= 0, name, "at least 0", self)
        _require(0 < self.layer_decay <= 1, "layer_decay", "above 0, at most 1", self)
        _require(self.refinements in (0, 1, 2), "refinements", "0, 1 or 2", self)
        _require(len(self.betas) == 2 and all(0 <= b < 1 for b in self.betas), "betas", "two numbers below 1", self)
        _require(self.batch % self.accumulate == 0, "accumulate", f"a divisor of the batch ({self.batch})", self)
        _require(self.jitter == () or (len(self.jitter) == 2 and 0 < self.jitter[0] <= self.jitter[1]), "jitter",
                 "() or two scales, the smaller first", self)


_DEFAULTS = {field.name: field.default for field in dataclasses.fields(Recipe)}

# The paper gives no steps of decay for the other lengths: here they keep their share of the training.
VIT_H = Recipe()
VIT_L = replace(VIT_H, batch=128, steps=180_000, drops=(120_000, 173_332), lr=4e-4)
VIT_B = replace(VIT_L, lr=8e-4, layer_decay=0.6, drop_path=0.6)
# The model that made SA-1B: points and masks only, four points, a third layer in the decoder, trained for longer.
MASK_GENERATION = replace(VIT_H, steps=177_656, drops=(118_437, 171_075), jitter=(0.1, 2.0), boxes=0.0, points=4,
                          decoder_depth=3)
# Not the paper's: for a trained model and few pictures. Two rounds, since it knows how to be corrected already.
FINETUNE = Recipe(batch=4, objects=4, points=2, refinements=0, steps=1000, lr=3e-4, warmup=20, schedule="constant",
                  drops=(), weight_decay=0.01, layer_decay=0.8, clip=1.0, drop_path=0.0, dropout=0.0, train="decoder",
                  iou_of="all", single_first=True)
PRESETS = {"vit_h": VIT_H, "vit_l": VIT_L, "vit_b": VIT_B, "mask_generation": MASK_GENERATION, "finetune": FINETUNE}


def preset(name: str) -> Recipe:
    """A recipe by name: the paper's vit_b, vit_l, vit_h, mask_generation; or finetune. Raises InputError."""
    if name not in PRESETS:
        raise InputError(f"recipe {name!r} is none of {', '.join(PRESETS)}")
    return PRESETS[name]


def to_dict(recipe: Recipe) -> dict:
    """A JSON-able dict; `from_dict` reads it back."""
    return {name: list(value) if isinstance(value, tuple) else value
            for name, value in dataclasses.asdict(recipe).items()}


def from_dict(values: dict) -> Recipe:
    """A recipe from settings by name, as JSON or a command line holds them; what is missing keeps its default.

    The setting "preset" names a recipe whose values are the defaults. Raises InputError that names an unknown setting
    (with the nearest known one) or a value of a wrong type or range.
    """
    if not isinstance(values, dict):
        raise InputError(f"a recipe must be a table of settings by name, not {values!r}")
    values = {name: tuple(value) if isinstance(value, list) else value for name, value in values.items()}
    base = preset(values.pop("preset")) if "preset" in values else Recipe()
    for name in values:
        if name not in _DEFAULTS:
            near = difflib.get_close_matches(str(name), _DEFAULTS, n=1)
            raise InputError(f"recipe: unknown setting {name!r}"
                             + (f"; did you mean {near[0]!r}?" if near else f"; it knows {', '.join(_DEFAULTS)}"))
    return replace(base, **values)
