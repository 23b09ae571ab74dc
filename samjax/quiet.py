"""Loggers of packages that speak of their own affairs: a command's output belongs to its user."""

import contextlib
import logging


@contextlib.contextmanager
def quiet(name: str):
    """The logger of this name says only errors."""
    logger = logging.getLogger(name)
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)
