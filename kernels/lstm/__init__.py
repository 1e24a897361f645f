"""The LSTM recurrence, one function with several implementations."""

from syscall_lm.kernels.lstm.api import lstm as lstm
from syscall_lm.kernels.lstm.xla import cell as cell
