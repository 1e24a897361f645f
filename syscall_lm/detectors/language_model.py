"""The language-model detector: members, scorer, calibration and ensemble as one detector."""

import collections
import pathlib
from collections.abc import Callable, Sequence
from typing import Self

import numpy as np

from syscall_lm import scoring, training
from syscall_lm.detectors import ensemble
from syscall_lm.detectors.base import Detector
from syscall_lm.detectors.surprisal import SurprisalDetector
from syscall_lm.models import lstm, shapes, store
from syscall_lm.models.store import Member, Model
from syscall_lm.traces.trace import Sequences
from syscall_lm.window_scoring import window_means


class LanguageModelDetector(Detector):
    """Average negative log-likelihood under an ensemble of LSTM language models (Kim et al. 2017).

    Args:
      vocabulary_size: V of the traces' vocabulary.
      members: what to train, as "LAYERSxCELLS" or a model of windows (models/shapes.py).
      recipe: how to train.
      method: "leaky_relu" (eq. 3), "average" or "vote".
      false_alarm_rate: see `Detector`.

    Attributes:
      scorer: scores calls.
      calibration: medians, spreads and held-out scores.
    """

    needs_held_out = True

    def __init__(
        self,
        vocabulary_size: int,
        members: Sequence[str] = ("1x200", "1x400", "2x400"),
        recipe: training.Recipe | None = None,
        method: str = "leaky_relu",
        false_alarm_rate: float = 0.01,
    ):
        super().__init__(false_alarm_rate)
        self._shapes = [shapes.parse(member, vocabulary_size) for member in members]
        self._recipe = recipe or training.Recipe()
        self.method = method

    def fit(self, normal: Sequences, held_out: Sequences | None = None) -> Self:
        """Trains, stops early by, and calibrates on held-out traces; a tenth is set aside if none are given."""
        normal, self._held_out = training.with_held_out(normal, held_out, self._recipe.seed)
        super().fit(normal, self._held_out)
        return self

    def _fit(self, normal: Sequences) -> None:
        members, _ = training.train_members(self._shapes, self._recipe, normal, self._held_out)
        self.scorer = scoring.Scorer(members)
        self.calibration = calibrate(members, normal, self._held_out, "held-out normal traces")

    @classmethod
    def load(
        cls, model: Model, method: str = "leaky_relu", false_alarm_rate: float = 0.01, operands: str = "float32"
    ) -> "LanguageModelDetector":
        """A detector from a calibrated model directory.

        Args:
          model: that was loaded.
          method: how the members' scores become one, see `ensemble`.
          false_alarm_rate: what the threshold is set for.
          operands: see `Scorer`.

        Raises:
          SyscallLMError: the calibration is missing or does not fit, or `Scorer` refuses.
        """
        detector = cls(model.vocabulary.size, [str(m.shape) for m in model.members], None, method, false_alarm_rate)
        detector.scorer = scoring.Scorer(model.members, operands=operands)
        detector.calibration = load_calibration(model.path, model.members)
        detector.threshold_ = detector.calibration.threshold(method, false_alarm_rate)
        return detector

    def member_scores(self, traces: Sequences) -> np.ndarray:
        """Average negative log-likelihood under each member, nats per call, float64 `[M, N]`."""
        return scoring.means(self.scorer.surprisal(traces), traces)

    def decision_function(self, traces: Sequences) -> np.ndarray:
        """The ensemble's scores `[N]`."""
        return self.calibration.combine(self.member_scores(traces), self.method)


class TrainedMember(SurprisalDetector):
    """One trained model's average negative log-likelihood (Kim et al., section 2.1); `fit` only sets the threshold.

    Several detectors may look into one member: it computes the same traces' surprisals and states once.

    Args:
      member: the model.
      false_alarm_rate: see `Detector`.
    """

    def __init__(self, member: Member, false_alarm_rate: float = 0.01):
        super().__init__(false_alarm_rate)
        self.name = member.name
        scorer = scoring.Scorer([member])
        self._surprisal = _Remembered(lambda traces: scorer.surprisal(traces)[0])
        self._final_states = _Remembered(lambda traces: scorer.final_states(traces)[0])

    def _fit(self, normal: Sequences) -> None:
        del normal  # the model is trained

    def surprisal(self, traces: Sequences) -> np.ndarray:
        """-ln P(call | the calls before it) in nats, float32 `[total]`, laid out like `traces.calls`; read-only."""
        return self._surprisal(traces)

    def final_states(self, traces: Sequences) -> np.ndarray:
        """What the last layer holds after each trace, float32 `[N, H]`, see `Scorer.final_states`; read-only."""
        return self._final_states(traces)


class _Remembered:
    """A function of traces that keeps its last answers for whoever asks with the same object again."""

    def __init__(self, function: Callable[[Sequences], np.ndarray], answers: int = 16):
        self._function = function
        self._known: collections.deque[tuple[Sequences, np.ndarray]] = collections.deque(maxlen=answers)

    def __call__(self, traces: Sequences) -> np.ndarray:
        for known, answer in self._known:
            if known is traces:
                return answer
        answer = self._function(traces)
        answer.setflags(write=False)
        self._known.append((traces, answer))
        return answer


class Ensemble(Detector):
    """Trained members as one detector: leaky ReLU (Kim et al., eq. 3), averaging or voting.

    `fit` takes the members' medians and spreads from the normal traces, and trains nothing.

    Args:
      members: M trained members.
      method: "leaky_relu", "average" or "vote".
      false_alarm_rate: see `Detector`.
    """

    def __init__(self, members: Sequence[TrainedMember], method: str, false_alarm_rate: float = 0.01):
        super().__init__(false_alarm_rate)
        self._members, self.method = members, method

    def _fit(self, normal: Sequences) -> None:
        scores = self._scores(normal)
        self.calibration = ensemble.Calibration.from_scores(scores, scores, "normal training traces")

    def _scores(self, traces: Sequences) -> np.ndarray:
        return np.stack([member.decision_function(traces) for member in self._members])

    def decision_function(self, traces: Sequences) -> np.ndarray:
        """The ensemble's scores, float64 `[N]`."""
        return self.calibration.combine(self._scores(traces), self.method)


def calibrate(members: Sequence[Member], train: Sequences, held_out: Sequences, source: str) -> ensemble.Calibration:
    """Scores normal training and held-out traces for a calibration."""
    scorer = scoring.Scorer(members)
    train_scores = scoring.means(scorer.surprisal(train), train)
    held_out_scores, windows = trace_and_window_scores(scorer, [member.shape for member in members], held_out)
    return ensemble.Calibration.from_scores(train_scores, held_out_scores, source, windows)


def trace_and_window_scores(
    scorer: scoring.Scorer, sizes: Sequence[shapes.Shape], traces: Sequences
) -> tuple[np.ndarray, list[np.ndarray]]:
    """Each member's scores of traces `[M, N]`, and of their windows `[W]`, of which a language model has none."""
    surprisal = scorer.surprisal(traces)
    windows = [
        np.zeros(0) if isinstance(shape, lstm.Shape) else window_means(one, traces, shape.length)
        for one, shape in zip(surprisal, sizes, strict=True)
    ]
    return scoring.means(surprisal, traces), windows


def load_calibration(path: pathlib.Path, members: Sequence[Member]) -> ensemble.Calibration:
    """The calibration of a model directory.

    Raises:
      SyscallLMError: it is missing, damaged, or of other members.
    """
    file = path / store.CALIBRATION
    value = store.read_json(file, f"{path}: the model has no calibration; run `calibrate --medians`")
    return ensemble.Calibration.from_json(value, [member.name for member in members], str(file))
