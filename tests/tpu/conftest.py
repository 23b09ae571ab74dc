"""These tests compile for TPUs that are not there, by libtpu; where it is not installed they are not collected.

    python -m venv tpu && . tpu/bin/activate && pip install ".[test]" "jax[tpu]==0.10.2" && python -m pytest tests/tpu
"""

import importlib.util
import os

from tpu_programs import environment

collect_ignore_glob = [] if importlib.util.find_spec("libtpu") else ["test_*.py"]
os.environ.update(environment())
