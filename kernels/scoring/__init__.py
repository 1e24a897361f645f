"""Scoring a tile of calls in one operation: gather, recurrence, head and negative log-likelihood."""

from syscall_lm.kernels.scoring.api import score_branching_tile as score_branching_tile
from syscall_lm.kernels.scoring.api import score_tile as score_tile
