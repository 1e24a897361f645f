"""The LSTM recurrence, one function with several implementations."""

from syscall_lm.kernels.lstm.api import lstm as lstm
from syscall_lm.kernels.lstm.reference import cell as cell
