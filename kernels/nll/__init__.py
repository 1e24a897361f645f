"""Projection, log-sum-exp and gather in one: the surprisal of calls, each function with several implementations."""

from syscall_lm.kernels.nll.api import nll as nll
from syscall_lm.kernels.nll.api import weighted_nll as weighted_nll
