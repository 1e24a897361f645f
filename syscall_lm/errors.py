"""The one exception that users see."""


class SyscallLMError(ValueError):
    """A user's mistake or an unusable input, told in one clear sentence.

    The command line prints the message and exits with code 2; nothing else that reaches it is expected.
    """
