"""A detector that is taught: normal traces tell it what is usual, labelled ones which unusual traces are attacks."""

import dataclasses
from typing import Self

import numpy as np

from syscall_lm.detectors.base import Detector
from syscall_lm.detectors.features import Features
from syscall_lm.errors import SyscallLMError
from syscall_lm.traces.trace import Sequences

TREES = 300
_RARELY = 0.003  # a forest's probabilities stay this far from 0 and 1: it has seen hundreds of traces, not thousands


@dataclasses.dataclass(frozen=True)
class Examples:
    """Labelled traces, n of them: `is_attack` is bool `[n]`."""

    traces: Sequences
    is_attack: np.ndarray

    def __post_init__(self):
        """Raises `SyscallLMError` where attacks, or normal traces, are missing."""
        attacks = int(self.is_attack.sum())
        if not 0 < attacks < len(self.is_attack):
            raise SyscallLMError(
                "what is to be taught needs attacks and normal traces as examples; there are "
                f"{attacks} and {len(self.is_attack) - attacks}"
            )


class Judge:
    """Tells attacks from normal traces by vectors of evidence: the sum of two models' log-odds.

      score = (w x + b) + ln(p(x) / (1 - p(x)))

    The first is logistic regression on standardised evidence (L2 with C = 0.1), which carries on where no example is;
    p is the vote of extremely randomised trees (Geurts et al. 2006; three examples or more in a leaf), whose borders
    follow the examples. Their sum is the logarithmic opinion pool (Genest & Zidek 1986). All attacks together weigh as
    much as all normal traces.

    Args:
      seed: of the trees.
    """

    def __init__(self, seed: int = 0):
        self.seed = seed

    def fit(self, evidence: np.ndarray, is_attack: np.ndarray) -> Self:
        """Learns from labelled evidence `[n, F]`, bool `[n]`: some of either label."""
        # These are slow to load.
        from sklearn.ensemble import ExtraTreesClassifier
        from sklearn.linear_model import LogisticRegression
        from sklearn.pipeline import make_pipeline
        from sklearn.preprocessing import StandardScaler

        linear = LogisticRegression(C=0.1, class_weight="balanced", max_iter=10_000)
        self._linear = make_pipeline(StandardScaler(), linear).fit(evidence, is_attack)
        self._trees = ExtraTreesClassifier(
            TREES, min_samples_leaf=3, class_weight="balanced", random_state=self.seed
        ).fit(evidence, is_attack)
        return self

    def log_odds(self, evidence: np.ndarray) -> np.ndarray:
        """The sum, float64 `[N]`; higher is more like an attack."""
        return self.linear(evidence) + self.votes(evidence)

    def linear(self, evidence: np.ndarray) -> np.ndarray:
        """The log-odds of logistic regression, float64 `[N]`."""
        return self._linear.decision_function(evidence)

    def votes(self, evidence: np.ndarray) -> np.ndarray:
        """The log-odds of the trees' vote, float64 `[N]`."""
        votes = np.clip(np.asarray(self._trees.predict_proba(evidence))[:, 1], _RARELY, 1 - _RARELY)
        return np.log(votes / (1 - votes))


class Taught(Detector):
    """Scores a trace by what labelled examples say of traces that are surprising in the same ways.

    Features learn from normal traces alone. A `Judge` then learns from labelled traces what tells attacks from false
    alarms, so that the best lessons are normal traces that look abnormal; the normal traces that the features learned
    from are examples too, so that what is familiar stays normal whatever the others are. It looks at surprisals, not at
    calls by name, and so what it was taught by some attacks can hold for attacks of other kinds; where nothing like a
    trace was among the examples, it may do worse than a detector that saw none.

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
        self._judge.fit(
            np.concatenate([evidence, usual]), np.append(self.examples.is_attack, np.zeros(len(usual), bool))
        )

    def decision_function(self, traces: Sequences) -> np.ndarray:
        """Log-odds, float64 `[N]`: 0 is undecided, if attacks and normal traces were equally frequent."""
        if not len(traces):
            return np.zeros(0)  # scikit-learn refuses to judge nothing
        return self._judge.log_odds(np.asarray(self.features.transform(traces)))
