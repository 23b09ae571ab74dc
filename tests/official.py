"""The official PyTorch models for parity tests; the code lives with the experiments, which time them.

Call `pytest.importorskip("torch")` before any of these.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "experiments"))

from peers import (  # noqa: F401
    official_mobile_sam,
    official_predictor,
    official_sam,
    seed_model,
    seeded_tensor,
)
