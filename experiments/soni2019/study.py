"""The old name of settings.py, which `benchmarking.gpu_cases` still uses."""

from syscall_lm.experiments.soni2019.settings import MODELS as MODELS
from syscall_lm.experiments.soni2019.settings import Settings as Settings
from syscall_lm.experiments.soni2019.settings import windows as windows
