"""Projection, log-sum-exp and gather in one: the surprisal of calls, one function with several implementations."""

from syscall_lm.kernels.nll.api import nll as nll
