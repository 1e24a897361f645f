"""The embedded corpus: real traces that the project recorded itself. A demonstration, not a benchmark (README.md)."""

import pathlib


def path() -> pathlib.Path:
    """The embedded trace archive."""
    return pathlib.Path(__file__).with_name("corpus.parquet")
