"""How well scores separate attacks from normal traces.

False alarm rate: the share of normal traces above a threshold. Detection rate: the share of attacks above it. Ties are
handled as scikit-learn's `roc_curve` does: traces of one score are decided together.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from syscall_lm.errors import SyscallLMError

DETECTION_RATES = (0.90, 0.95, 0.99)
FALSE_ALARM_RATES = (0.001, 0.01, 0.05)


@dataclasses.dataclass(frozen=True)
class Curve:
    """A ROC curve: false alarm and detection rate `[P]` at falling thresholds `[P]`, and the area under it."""

    false_alarm_rate: np.ndarray
    detection_rate: np.ndarray
    thresholds: np.ndarray
    auc: float

    def false_alarms_at(self, detection_rate: float) -> float:
        """The smallest false alarm rate at which at least this share of the attacks is detected."""
        return float(self.false_alarm_rate[np.argmax(self.detection_rate >= detection_rate - 1e-12)])

    def detection_at(self, false_alarm_rate: float) -> float:
        """The largest detection rate with at most this false alarm rate."""
        return float(self.detection_rate[self.false_alarm_rate <= false_alarm_rate + 1e-12].max())


def curve(normal: np.ndarray, attack: np.ndarray) -> Curve:
    """The ROC curve of scores of normal traces `[n]` and of attacks `[a]`.

    Raises:
      SyscallLMError: there are none of either, or a score is not finite.
    """
    from sklearn.metrics import roc_auc_score, roc_curve  # slow to load

    if not len(normal) or not len(attack):
        raise SyscallLMError(
            f"an evaluation needs normal traces ({len(normal)}) and attacks ({len(attack)}), told apart by their label"
        )
    scores = np.concatenate([normal, attack])
    if not np.isfinite(scores).all():
        raise SyscallLMError("a score is not finite")
    truth = np.concatenate([np.zeros(len(normal)), np.ones(len(attack))])
    false_alarms, detections, thresholds = roc_curve(truth, scores, drop_intermediate=False)
    return Curve(false_alarms, detections, thresholds, float(roc_auc_score(truth, scores)))


def auc_interval(normal: np.ndarray, attack: np.ndarray, level: float = 0.95) -> tuple[float, float]:
    """The percentile interval of `bootstrap_aucs`."""
    low, high = np.quantile(bootstrap_aucs(normal, attack), [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def bootstrap_aucs(normal: np.ndarray, attack: np.ndarray, samples: int = 1000, seed: int = 0) -> np.ndarray:
    """The AUC of bootstrap samples; normal traces and attacks are resampled separately.

    The same traces are drawn for the same seed, whatever their scores: for two detectors, the difference of their
    results is a sample of the difference.

    Args:
      normal: scores of normal traces `[n]`.
      attack: scores of attacks `[a]`.
      samples: how many.
      seed: draws the traces.

    Returns:
      float64 `[samples]`.
    """
    scores = np.concatenate([normal, attack])
    _, group = np.unique(scores, return_inverse=True)
    groups = group.max() + 1
    rng = np.random.default_rng(seed)
    areas = np.empty(samples)
    for i in range(samples):
        below = np.bincount(rng.choice(group[: len(normal)], len(normal)), minlength=groups)
        hits = np.bincount(rng.choice(group[len(normal) :], len(attack)), minlength=groups)
        wins = hits @ (np.cumsum(below) - below) + 0.5 * (hits @ below)
        areas[i] = wins / (len(normal) * len(attack))
    return areas


def summary(normal: np.ndarray, attack: np.ndarray, families: Sequence[str] | np.ndarray) -> dict[str, Any]:
    """Every figure of one detector.

    Args:
      normal: scores of normal traces `[n]`.
      attack: scores of attacks `[a]`.
      families: the kind of each attack, `[a]`.

    Returns:
      plain JSON values: AUC with its 95 % bootstrap interval, false alarm rates at given detection rates, detection
      rates at given false alarm rates, and the AUC and detection of each family.
    """
    roc = curve(normal, attack)
    low, high = auc_interval(normal, attack)
    per_family = {}
    for family in sorted(set(families)):
        scores = attack[np.asarray(families) == family]
        one = curve(normal, scores)
        per_family[family] = {
            "attacks": len(scores),
            "auc": one.auc,
            "detection_at_5_percent_false_alarms": one.detection_at(0.05),
        }
    return {
        "normal": len(normal),
        "attacks": len(attack),
        "auc": roc.auc,
        "auc_interval": [low, high],
        "false_alarms_at_detection": {f"{rate:g}": roc.false_alarms_at(rate) for rate in DETECTION_RATES},
        "detection_at_false_alarms": {f"{rate:g}": roc.detection_at(rate) for rate in FALSE_ALARM_RATES},
        "families": per_family,
    }
