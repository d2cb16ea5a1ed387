"""The two ways a step can fail, told apart because they ask different things of the user, and what messages share."""

from collections.abc import Iterable


class UsageError(ValueError):
    """The input is wrong: nothing was written, and the same command will fail again. Exit code 2."""


class WorkError(RuntimeError):
    """The work failed: finished output is untouched, and the same command may resume. Exit code 1."""


LISTED = 20  # ranges of numbers that a message names


def ranges_text(numbers: Iterable[int]) -> str:
    """Numbers as people write them, such as "3, 7-9"; of very many the first ranges, and how many more there are."""
    ranges: list[tuple[int, int]] = []
    for number in sorted(set(numbers)):
        if ranges and ranges[-1][1] == number - 1:
            ranges[-1] = ranges[-1][0], number
        else:
            ranges.append((number, number))
    text = ", ".join(str(first) if first == last else f"{first}-{last}" for first, last in ranges[:LISTED])
    more = sum(last - first + 1 for first, last in ranges[LISTED:])
    return f"{text} and {more} more" if more else text
