"""`python -m convert SRC DST`: the same as `samjax convert SRC DST`."""

import sys

from samjax.cli import main

sys.exit(main(["convert", *sys.argv[1:]]))
