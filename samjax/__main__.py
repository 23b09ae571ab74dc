"""`python -m samjax`."""

import sys

from samjax.cli import main

sys.exit(main())
