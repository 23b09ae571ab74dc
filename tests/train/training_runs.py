"""A run of `samjax train` that takes seconds; as a script, one process of several: its arguments are the command's."""

import sys

from samjax.config import Decoder, SamConfig, ViT

SMALL = SamConfig("custom", ViT(width=16, depth=4, heads=2, global_blocks=(1, 3), window=3),
                  Decoder(depth=1, heads=2, mlp=16), channels=16, image_size=(64, 64))


def prepare(place):
    """data/, val/ and init/, a model of random numbers, in a folder."""
    import shapes
    from conftest import random_params

    from samjax.checkpoint import save_model

    shapes.write_folder(place / "data", pictures=12)
    shapes.write_folder(place / "val", pictures=3, seed=1)
    save_model(place / "init", SMALL, random_params(SMALL), {})
    return place


def empty(folder):
    """Two pictures whose masks are empty."""
    import numpy as np
    from PIL import Image

    for name in ("images", "masks"):
        (folder / name).mkdir(parents=True)
    for i in range(2):
        Image.fromarray(np.zeros((48, 64, 3), np.uint8)).save(folder / "images" / f"{i}.png")
        Image.fromarray(np.zeros((48, 64), np.uint16)).save(folder / "masks" / f"{i}.png")


def words(place, out, *more, val: bool = True, steps: int = 6):
    """The command: eight pictures a step, one round."""
    validated = ["--val", str(place / "val")] if val else []
    return ["train", str(place / "data"), "--init", str(place / "init"), "--out", str(place / out), *validated,
            "--batch", "8", "--objects", "2", "--steps", str(steps), "--dtype", "float32", "--set", "points=1",
            "--set", "refinements=0", "--evaluate-every", "3", "--save-every", "2", "--sharding", "one", *more]


if __name__ == "__main__":
    import quick_programs  # noqa: F401 (the same programs in a process of its own)

    from samjax.cli import main

    sys.exit(main(sys.argv[1:]))
