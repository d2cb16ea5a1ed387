"""The two ways a step can fail, told apart because they ask different things of the user, and what messages share."""

from collections.abc import Iterable


class UsageError(ValueError):
    """The input is wrong: nothing was written, and the same command will fail again. Exit code 2."""


class WorkError(RuntimeError):
    """The work failed: finished output is untouched, and the same command may resume. Exit code 1."""


LISTED = 20  # ranges of pairs that a message names


def numbered(pairs: Iterable[int]) -> str:
    """Pairs by their numbers, neighbours in one: "pairs 3, 7-9"; of very many the first ranges, and how many more."""
    numbers = sorted(set(map(int, pairs)))
    ranges: list[tuple[int, int]] = []
    for number in numbers:
        if ranges and ranges[-1][1] == number - 1:
            ranges[-1] = ranges[-1][0], number
        else:
            ranges.append((number, number))
    named = ", ".join(str(first) if first == last else f"{first}-{last}" for first, last in ranges[:LISTED])
    more = sum(last - first + 1 for first, last in ranges[LISTED:])
    return f"pair{'s' if len(numbers) > 1 else ''} {named}" + (f" and {more} more" if more else "")
