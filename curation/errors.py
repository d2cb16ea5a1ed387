"""The two ways a step can fail, told apart because they ask different things of the user."""


class UsageError(ValueError):
    """The input is wrong: nothing was written, and the same command will fail again. Exit code 2."""


class WorkError(RuntimeError):
    """The work failed: finished output is untouched, and the same command may resume. Exit code 1."""
