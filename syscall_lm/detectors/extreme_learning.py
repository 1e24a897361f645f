"""Extreme learning machine on phrases: a random hidden layer that is never trained, and a readout in closed form."""

from typing import Self

import numpy as np
import scipy.sparse

from syscall_lm.detectors.base import Detector
from syscall_lm.detectors.windows import Text, Windows
from syscall_lm.errors import SyscallLMError
from syscall_lm.traces.trace import Sequences


class Phrases:
    """How often each phrase occurs in a trace; a phrase is 1 to `longest` consecutive calls.

    A feature is a phrase that normal traces hold at least `least` times; one more for each length gathers all other
    phrases of that length. The frequencies of each length sum to one; the whole row is scaled to unit length.

    Args:
      longest: calls in the longest phrase.
      least: see above.
    """

    def __init__(self, longest: int = 5, least: int = 10):
        if longest < 1 or least < 1:
            raise SyscallLMError(f"phrases cannot have longest={longest}, least={least}")
        self.longest, self.least = longest, least

    def fit(self, normal: Sequences) -> Self:
        """Collects the phrases."""
        text = Text.of(normal)
        self._windows = Windows(text, self.longest)
        self._columns: list[np.ndarray] = []  # from a window's number to its feature; the last entry: any other phrase
        self.features = 0
        for numbers in self._windows.numbers(text):
            counts = np.bincount(numbers[numbers >= 0])
            frequent = np.append(counts >= self.least, False)
            self._columns.append(np.where(frequent, np.cumsum(frequent), 0) + self.features)
            self.features += int(frequent.sum()) + 1
        return self

    def transform(self, traces: Sequences) -> scipy.sparse.csr_array:
        """float64 `[N, F]`, sparse."""
        from sklearn.preprocessing import normalize  # slow to load

        text = Text.of(traces)
        trace = np.repeat(np.arange(len(traces)), text.lengths)
        frequencies = scipy.sparse.csr_array((len(traces), self.features))
        for length, numbers in enumerate(self._windows.numbers(text), start=1):
            within = text.remaining >= length
            columns = self._columns[length - 1][numbers[within]]  # -1, an unseen phrase, reads the last entry
            share = 1 / (text.lengths - length + 1)[trace[within]]  # of one phrase among those of its length
            frequencies += scipy.sparse.csr_array((share, (trace[within], columns)), shape=frequencies.shape)
        return scipy.sparse.csr_array(normalize(frequencies, norm="l2"))


class ExtremeLearning(Detector):
    """The error with which a random network, its readout fitted to normal traces, reproduces a trace's phrases.

    With x the phrase frequencies of a trace (`Phrases`), W and b random and fixed,

      h(x) = tanh(x W + b),    beta = (H'H + ridge N I)^-1 H'X,    score(x) = || x - h(x) beta ||

    where the rows of H and X are the training traces' h(x) and x. The network is an extreme learning machine (Huang et
    al. 2006), used as an autoencoder (Kasun et al. 2013) because there is one class to learn.

    Creech & Hu (2014) feed an extreme learning machine with counts of semantic phrases. Reproduced: phrases of one to
    five units, collected from normal traces, as features; a random hidden layer; a readout by least squares. Not
    reproduced: their phrases join words (themselves runs of calls) that need not be adjacent, here a phrase is adjacent
    calls; and their decision, of which too little is printed (Kim et al., section 3.2), is replaced by the
    reconstruction error, for which normal traces suffice. Their figures are therefore not expected here.

    Args:
      longest: calls in the longest phrase.
      least: how often a phrase must occur in training to be a feature of its own.
      hidden: random units.
      ridge: the readout's penalty, as a share of the number of training traces.
      seed: of W and b.
      false_alarm_rate: see `Detector`.
    """

    def __init__(
        self,
        longest: int = 5,
        least: int = 10,
        hidden: int = 200,
        ridge: float = 1e-3,
        seed: int = 0,
        false_alarm_rate: float = 0.01,
    ):
        super().__init__(false_alarm_rate)
        if hidden < 1 or not ridge > 0:
            raise SyscallLMError(f"an extreme learning machine cannot have hidden={hidden}, ridge={ridge}")
        self.phrases, self.hidden, self.ridge, self.seed = Phrases(longest, least), hidden, ridge, seed

    def _fit(self, normal: Sequences) -> None:
        x = self.phrases.fit(normal).transform(normal)
        rng = np.random.default_rng(self.seed)
        # Rows of x have unit length, so x W is normal with deviation 1: within the curved part of tanh.
        self._weights = rng.standard_normal((self.phrases.features, self.hidden))
        self._bias = rng.standard_normal(self.hidden)
        h = self._activations(x)
        penalty = self.ridge * len(normal) * np.eye(self.hidden)
        self._readout = np.linalg.solve(h.T @ h + penalty, np.asarray((x.T @ h).T))

    def _activations(self, x: scipy.sparse.csr_array) -> np.ndarray:
        return np.tanh(x @ self._weights + self._bias)

    def decision_function(self, traces: Sequences) -> np.ndarray:
        """A distance, float64 `[N]`."""
        errors = [np.zeros(0)]
        for start in range(0, len(traces), 256):  # a row is dense here, F numbers long
            x = self.phrases.transform(traces.take(np.arange(start, min(start + 256, len(traces)))))
            errors.append(np.linalg.norm(x.toarray() - self._activations(x) @ self._readout, axis=1))
        return np.concatenate(errors)
