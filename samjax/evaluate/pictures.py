"""Which pictures of a source are scored, one after the other, and what is said of those that cannot be."""

from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

from samjax.data.sources import LEAST
from samjax.errors import InputError

Result = TypeVar("Result")
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


def each(source, limit: int | None, score: Callable[[int], Result], failures: list[Failure],
         progress: Callable[[int, int], None] | None = None) -> Iterator[tuple[str, Result]]:
    """Yields (name, score(place)) of at most `limit` pictures, evenly spread; what cannot be read is added to failures.

    progress: called with (pictures done, pictures) after each.
    """
    places = spread(len(source), limit)
    for done, place in enumerate(places, 1):
        name = name_of(source, place)
        try:
            found = score(place)
        except (InputError, OSError) as error:
            failures.append((name, reason_of(error)))
        else:
            yield name, found
        if progress is not None:
            progress(done, len(places))


def reason_of(error: InputError | OSError) -> str:
    """In one line."""
    return getattr(error, "strerror", None) or str(error)


class NoObjects(InputError):
    """A source has no object that could be scored. failures: what could not be read."""

    def __init__(self, message: str, failures: Sequence[Failure]):
        super().__init__(message)
        self.failures = list(failures)


def no_objects(name: str, pictures: int, failures: Sequence[Failure]) -> NoObjects:
    """What to raise for a source without an object that could be scored."""
    return NoObjects(f"{name}: no objects of {LEAST} px or more to score in {pictures} pictures{first_of(failures)}",
                     failures)


def first_of(failures: Sequence[Failure]) -> str:
    """Ends an error that has its cause in pictures; empty if none failed."""
    return "; the first: {}: {}".format(*failures[0]) if failures else ""
