"""Which pictures of a source are scored, what they are called, and what is said if none can be."""

from collections.abc import Sequence

from samjax.data.sources import LEAST
from samjax.errors import InputError

Failure = tuple[str, str]  # a picture's name, why it could not be scored


def spread(pictures: int, limit: int | None) -> list[int]:
    """Places of at most `limit` of so many pictures, evenly spread. Raises InputError for a limit below 1."""
    if limit is not None and limit < 1:
        raise InputError(f"a limit of {limit} pictures leaves nothing to score: give 1 or more")
    count = pictures if limit is None else min(limit, pictures)
    return [i * pictures // count for i in range(count)]


def name_of(source, place: int) -> str:
    """A picture's name, of a source or a list of records."""
    return source.item_name(place) if hasattr(source, "item_name") else source[place].name


def reason_of(error: InputError | OSError) -> str:
    """In one line."""
    return getattr(error, "strerror", None) or str(error)


def no_objects(name: str, pictures: int, failures: Sequence[Failure]) -> InputError:
    """What to raise for a source without an object that could be scored."""
    return InputError(f"{name}: no objects of {LEAST} px or more to score in {pictures} pictures{first_of(failures)}")


def first_of(failures: Sequence[Failure]) -> str:
    """Ends an error that has its cause in pictures; empty if none failed."""
    return "; the first: {}: {}".format(*failures[0]) if failures else ""
