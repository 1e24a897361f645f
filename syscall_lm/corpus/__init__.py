"""The embedded corpus: real traces that the project recorded itself. A demonstration, not a benchmark (README.md)."""

import pathlib

NOTICE = (
    "A demonstration, not a benchmark: the embedded corpus holds a few programs on made-up inputs and re-enacted "
    "intrusions of a few lines each. Figures on it say nothing about detection in the field."
)


def path() -> pathlib.Path:
    """The embedded trace archive."""
    return pathlib.Path(__file__).with_name("corpus.parquet")
