"""A detector that is taught: normal traces tell it what is usual, labelled ones which unusual traces are attacks."""

import dataclasses
from typing import Self

import numpy as np

from syscall_lm.detectors.base import Detector
from syscall_lm.detectors.features import Features
from syscall_lm.errors import SyscallLMError
from syscall_lm.traces.trace import Sequences

TREES = 300
LEAF = 3  # examples, at least
CERTAINTY = 0.997  # the highest vote that counts


@dataclasses.dataclass(frozen=True)
class Examples:
    """Labelled traces, n of them: `is_attack` is bool `[n]`.

    Raises:
      SyscallLMError: attacks, or normal traces, are missing.
    """

    traces: Sequences
    is_attack: np.ndarray

    def __post_init__(self):
        """Checks."""
        attacks = int(self.is_attack.sum())
        if len(self.traces) != len(self.is_attack) or not 0 < attacks < len(self.is_attack):
            raise SyscallLMError(
                f"examples must hold attacks and normal traces; there are {attacks} attacks and "
                f"{len(self.traces) - attacks} normal traces"
            )


class Judge:
    """Tells attacks from normal traces by vectors of evidence: the sum of two models' log-odds.

      score = (w x + b) + ln(p(x) / (1 - p(x))),    p from 0.003 to 0.997

    The first is logistic regression on standardised evidence (L2 with C = 0.1), which carries on where no example is;
    p is the vote of extremely randomised trees (Geurts et al. 2006; three examples or more in a leaf), whose borders
    follow the examples. Their sum is the logarithmic opinion pool (Genest & Zidek 1986).

    Examples of three kinds weigh 2 to 1 to 1, however many there are of each: attacks, normal traces that somebody
    labelled, and usual ones. The latter are what features learned normality from; without them, nothing would tell that
    what is familiar is normal.

    Args:
      seed: of the trees.
    """

    def __init__(self, seed: int = 0):
        self.seed = seed

    def fit(self, evidence: np.ndarray, is_attack: np.ndarray, usual: np.ndarray) -> Self:
        """Learns from evidence `[n, F]`, labels bool `[n]`, both among them, and evidence of usual traces `[u, F]`."""
        # These are slow to load.
        from sklearn.ensemble import ExtraTreesClassifier
        from sklearn.linear_model import LogisticRegression
        from sklearn.preprocessing import StandardScaler

        x, attack = np.concatenate([evidence, usual]), np.append(is_attack, np.zeros(len(usual), bool))
        attacks, normal = is_attack.sum(), (~is_attack).sum()
        each = np.where(is_attack, 2 / attacks, 1 / normal)
        weights = np.append(each, np.full(len(usual), 1 / len(usual))) * len(x) / 4
        self._scaler = StandardScaler().fit(x)
        self._linear = LogisticRegression(C=0.1, max_iter=10_000).fit(self._scaler.transform(x), attack, weights)
        self._trees = ExtraTreesClassifier(TREES, min_samples_leaf=LEAF, random_state=self.seed).fit(x, attack, weights)
        return self

    def log_odds(self, evidence: np.ndarray) -> np.ndarray:
        """The sum, float64 `[N]`; higher is more like an attack."""
        return self.linear(evidence) + self.votes(evidence)

    def linear(self, evidence: np.ndarray) -> np.ndarray:
        """The log-odds of logistic regression, float64 `[N]`."""
        return self._linear.decision_function(self._scaler.transform(evidence))

    def votes(self, evidence: np.ndarray) -> np.ndarray:
        """The log-odds of the trees' vote, float64 `[N]`."""
        votes = np.clip(np.asarray(self._trees.predict_proba(evidence))[:, 1], 1 - CERTAINTY, CERTAINTY)
        return np.log(votes / (1 - votes))


class Taught(Detector):
    """Scores a trace by what labelled examples say of traces that are surprising in the same ways.

    Features learn from normal traces alone. A `Judge` then learns from labelled traces what tells attacks from false
    alarms, so that the best lessons are normal traces that look abnormal. With `Evidence`, it knows how surprising a
    trace is in several ways, not which calls it makes, and so what some attacks taught it can hold for attacks of other
    kinds; where nothing like a trace was among the examples, it may do worse than a detector that saw none.

    Args:
      features: turn traces into vectors.
      examples: labelled traces.
      seed: see `Judge`.
      false_alarm_rate: see `Detector`.
    """

    def __init__(self, features: Features, examples: Examples, seed: int = 0, false_alarm_rate: float = 0.01):
        super().__init__(false_alarm_rate)
        self.features, self.examples = features, examples
        self._judge = Judge(seed)

    def _fit(self, normal: Sequences) -> None:
        features = self.features.fit(normal)
        evidence, usual = (np.asarray(features.transform(traces)) for traces in (self.examples.traces, normal))
        self._judge.fit(evidence, self.examples.is_attack, usual)

    def decision_function(self, traces: Sequences) -> np.ndarray:
        """The judge's score, float64 `[N]`; at 0 it is undecided."""
        if not len(traces):
            return np.zeros(0)  # scikit-learn refuses to judge nothing
        return self._judge.log_odds(np.asarray(self.features.transform(traces)))
