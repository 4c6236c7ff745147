"""The errors that end a command with one line, instead of a traceback.

``OSError`` comes from ``linux/`` and ``wire.ProtocolError`` from ``wire/``; what a remote end does wrong is a
flow's outcome and never one of these.
"""


class GraftError(Exception):
    """netns-graft itself failed: ``netns-graft: error: …`` and, where there is a cure, ``netns-graft: hint: …``.

    ``status`` is the exit status: 125, 126 and 127 as in the contract.
    """

    status = 125

    def __init__(self, message: str, *, hint: str | None = None, status: int | None = None) -> None:
        super().__init__(message)
        self.hint = hint
        if status is not None:
            self.status = status


class ConfigError(GraftError):
    """What the user wrote cannot be used: a URL, a pattern, a file. ``where`` is "FILE:LINE" or an option's name."""

    def __init__(self, message: str, *, where: str | None = None, hint: str | None = None) -> None:
        super().__init__(f"{where}: {message}" if where else message, hint=hint)
        self.where = where


class UsageError(GraftError):
    """Wrong usage of the command line: exit status 2."""

    status = 2
