"""How a reader knows a file for its own: by its first lines."""

from collections.abc import Callable

HEAD_LINES = 200


def head_lines(head: bytes) -> list[bytes]:
    """The first lines that are not empty; the last one is left out where it may be cut."""
    lines = head.split(b"\n")[: HEAD_LINES + 1]
    if len(lines) > 1:
        lines.pop()
    return [line.rstrip(b"\r") for line in lines if line.strip()]


def mostly(head: bytes, is_own: Callable[[bytes], object], share: float = 0.5) -> bool:
    """Whether at least one of the first lines, and this share of them, is of the format.

    Args:
      head: the beginning of the file.
      is_own: says it of one line.
      share: how many of the lines have to be; less than half where a format carries much else.
    """
    lines = head_lines(head)
    own = sum(bool(is_own(line)) for line in lines)
    return own > 0 and own >= share * len(lines)
