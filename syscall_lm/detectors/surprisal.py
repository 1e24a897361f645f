"""Detectors that give every call a surprisal, of which a trace's score is the mean."""

import abc

import numpy as np

from syscall_lm import scoring
from syscall_lm.detectors.base import Detector
from syscall_lm.traces.trace import Sequences


class SurprisalDetector(Detector):
    """Scores a trace by its average negative log-likelihood (Kim et al., section 2.1)."""

    @abc.abstractmethod
    def surprisal(self, traces: Sequences) -> np.ndarray:
        """-ln P(call | the calls before it) in nats, `[total]`, laid out like `traces.calls`."""

    def decision_function(self, traces: Sequences) -> np.ndarray:
        """Nats per call, float64 `[N]`."""
        return scoring.means(self.surprisal(traces), traces)
