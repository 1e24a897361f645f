"""From several members' scores to one verdict: leaky-ReLU ensemble, averaging, voting, and their thresholds."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from syscall_lm.detectors.base import conformal_threshold
from syscall_lm.errors import SyscallLMError

SLOPE = 0.001
METHODS = ("leaky_relu", "average", "vote")
MOST_WINDOWS = 10_000  # scores of windows that a calibration keeps for each member


def leaky_relu(scores: np.ndarray, medians: np.ndarray) -> np.ndarray:
    """f(x) = sum_i w_i s(f_i(x) - b_i) with s(x) = max(x, 0.001 x) and w_i = 1/m (Kim et al., eq. 3).

    Below its median a member says "highly normal" almost without a difference, so one member that doubts outweighs
    others that are sure.

    Args:
      scores: `[M, N]`, each member's average negative log-likelihood.
      medians: `[M]`, b_i, the median score of the normal training traces.
    """
    distance = scores - medians[:, None]
    return np.maximum(distance, SLOPE * distance).mean(axis=0)


def average(scores: np.ndarray) -> np.ndarray:
    """The members' mean score, `[M, N]` to `[N]`."""
    return scores.mean(axis=0)


def vote(scores: np.ndarray, medians: np.ndarray, spreads: np.ndarray) -> np.ndarray:
    """Majority voting as a score, so that it has a ROC curve.

    Every member's threshold is set at the same level above its own median, in units of its own interquartile range. A
    majority of members votes "abnormal" at a level exactly if the score returned here exceeds it: the lower median,
    over members, of the standardised scores.
    """
    standardised = np.sort((scores - medians[:, None]) / spreads[:, None], axis=0)
    return standardised[(len(scores) - 1) // 2]


@dataclasses.dataclass(frozen=True)
class Calibration:
    """What turns members' scores into verdicts.

    Attributes:
      medians: `[M]`, each member's median score of the normal training traces (b_i of eq. 3).
      spreads: `[M]`, its interquartile range there.
      held_out: float64 `[M, n]`, scores of held-out normal traces; thresholds for any false alarm rate come from them.
      source: which traces these were, for people.
      windows: for each member that reads windows the ascending scores of windows of those held-out traces, of many
        `thinned`; empty for others, and where a calibration does not tell.
    """

    medians: np.ndarray
    spreads: np.ndarray
    held_out: np.ndarray
    source: str = ""
    windows: tuple[np.ndarray, ...] = ()

    @classmethod
    def from_scores(
        cls, train: np.ndarray, held_out: np.ndarray, source: str = "", windows: Sequence[np.ndarray] = ()
    ) -> "Calibration":
        """From the scores of normal training traces `[M, N]`, held-out normal traces `[M, n]`, and their windows."""
        quartiles = np.quantile(train, [0.25, 0.5, 0.75], axis=1)
        spreads = np.maximum(quartiles[2] - quartiles[0], 1e-6)
        return cls(quartiles[1], spreads, held_out, source, tuple(map(thinned, windows)))

    @property
    def distinct(self) -> int:
        """How many of the held-out traces differ; what differs by rounding only is a copy."""
        return np.unique(np.round(self.held_out, 5), axis=1).shape[1]

    def combine(self, scores: np.ndarray, method: str) -> np.ndarray:
        """Members' scores `[M, N]` to the ensemble's `[N]`; with one member every method ranks as that member does.

        Raises:
          SyscallLMError: an unknown method.
        """
        if method == "leaky_relu":
            return leaky_relu(scores, self.medians)
        if method == "average":
            return average(scores)
        if method == "vote":
            return vote(scores, self.medians, self.spreads)
        raise SyscallLMError(f"--ensemble={method}: must be one of {', '.join(METHODS)}")

    def threshold(self, method: str, false_alarm_rate: float) -> float:
        """The ensemble's threshold for a false alarm rate, from the held-out traces."""
        return conformal_threshold(self.combine(self.held_out, method), false_alarm_rate)

    def to_json(self, names: list[str]) -> dict[str, Any]:
        """Plain values; `names` are the members', in order."""
        members: dict[str, dict[str, Any]] = {
            name: {"median": self.medians[i], "spread": self.spreads[i], "held_out": self.held_out[i].tolist()}
            for i, name in enumerate(names)
        }
        for name, scores in zip(names, self.windows, strict=False):  # there may be none
            if len(scores):
                members[name]["windows"] = scores.tolist()
        return {"source": self.source, "members": members}

    @classmethod
    def from_json(cls, value: Mapping[str, Any], names: list[str], path: str) -> "Calibration":
        """Reads what `to_json` made.

        Raises:
          SyscallLMError: it does not fit the members `names`; `path` names the file.
        """
        try:
            members = [value["members"][name] for name in names]
            medians = np.array([member["median"] for member in members], np.float64)
            spreads = np.array([member["spread"] for member in members], np.float64)
            held_out = np.array([member["held_out"] for member in members], np.float64)
            windows = tuple(np.array(member.get("windows", []), np.float64) for member in members)
            source = str(value["source"])
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise SyscallLMError(f"{path}: damaged, or of another model; run `calibrate --medians`") from error
        usable = all(np.isfinite(values).all() for values in (medians, spreads, held_out, *windows))
        if held_out.ndim != 2 or not held_out.size or not usable:
            raise SyscallLMError(f"{path}: holds no usable scores; run `calibrate --medians`")
        return cls(medians, spreads, held_out, source, windows)


def thinned(scores: np.ndarray, most: int = MOST_WINDOWS) -> np.ndarray:
    """Ascending scores, of more than `most` so many at equal distances.

    Each stands for itself and those below it down to the one before, so that a threshold which is set by them is never
    lower than one set by all, and keeps what that one promises.
    """
    ranks = np.arange(len(scores))
    if len(scores) > most:
        ranks = -(-(np.arange(most) + 1) * len(scores) // most) - 1
    return np.sort(scores)[ranks]
