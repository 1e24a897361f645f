"""The one exception that users see."""


class SyscallLMError(ValueError):
    """A user's mistake or an unusable input, told in one clear sentence.

    The command line prints the message and exits with code 2; nothing else that reaches it is expected.
    """


class Interrupted(Exception):
    """A run that was ended from outside; the same command goes on where its last checkpoint stands.

    The command line prints the message and exits with `exit_code` (EX_TEMPFAIL), by which a scheduler knows that
    starting it again helps.
    """

    exit_code = 75
