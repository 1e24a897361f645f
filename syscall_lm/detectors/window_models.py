"""What the detectors of Soni et al. (2019) share: a trace is judged window by window."""

import dataclasses
from typing import NamedTuple, Self

import jax
import numpy as np

from syscall_lm import scoring, training
from syscall_lm.detectors.base import Detector, conformal_threshold
from syscall_lm.detectors.language_model import load_calibration
from syscall_lm.errors import SyscallLMError
from syscall_lm.models.shapes import WindowShape, module_of, window_shape
from syscall_lm.models.store import Model
from syscall_lm.traces.trace import Sequences, require_ids
from syscall_lm.types import Params
from syscall_lm.window_scoring import WindowScorer, WindowStream, window_means
from syscall_lm.window_training import WindowRecipe, train_group

AGGREGATES = ("mean", "highest")
STRETCH = 60  # calls: whole windows of 3, 10 and 15


@dataclasses.dataclass(frozen=True)
class Verdicts:
    """Judgements of W windows.

    Attributes:
      trace: int64 `[W]`, the number of the trace.
      start: int64 `[W]`, position of the window's first call in its trace.
      size: int64 `[W]`, calls in it: L, or fewer at the trace's end.
      score: float64 `[W]`, average surprisal of its calls in nats.
      abnormal: bool `[W]`, whether the score exceeds the windows' threshold.
      least_expected: int64 `[W]`, position in the trace of the window's most surprising call.
      call: int64 `[W]`, that call's id.
      surprisal: float64 `[W]`, its surprisal in nats.
    """

    trace: np.ndarray
    start: np.ndarray
    size: np.ndarray
    score: np.ndarray
    abnormal: np.ndarray
    least_expected: np.ndarray
    call: np.ndarray
    surprisal: np.ndarray

    def __len__(self) -> int:
        return len(self.score)


class LiveVerdict(NamedTuple):
    """The judgement of one window of a live trace; see `Verdicts`."""

    start: int
    score: float
    abnormal: bool
    least_expected: int
    call: int
    surprisal: float


class WindowDetector(Detector):
    """A trace's score from its windows' surprisal, under a model that reads windows.

    Args:
      vocabulary_size: V of the traces' vocabulary.
      recipe: how to train; its `length` is L. Without one, the model's own, for windows of 10 calls (the paper's best).
      cells: H.
      members: trained side by side with different initialisations; their surprisals are averaged.
      aggregate: "mean": a trace's score is the average over all its calls (in other words, over its windows, each with
        the weight of its calls); "highest": the average over those `STRETCH` consecutive calls where it is highest.
      false_alarm_rate: see `Detector`; it holds for traces and, by a threshold of their own, for windows.
      seed: of the recipe, if none is given.

    Attributes:
      scorer: scores calls.
      window_threshold_: after `fit` or `load`, the score above which a window is abnormal.
      held_out_windows_: from how many windows that threshold comes.
    """

    needs_held_out = True
    model: str
    window_threshold_: float
    held_out_windows_: int

    def __init__(
        self,
        vocabulary_size: int,
        recipe: WindowRecipe | None = None,
        cells: int = 64,
        members: int = 1,
        aggregate: str = "mean",
        false_alarm_rate: float = 0.01,
        seed: int = 0,
    ):
        super().__init__(false_alarm_rate)
        if aggregate not in AGGREGATES:
            raise SyscallLMError(f"aggregate={aggregate!r}: must be one of {', '.join(AGGREGATES)}")
        self.recipe = recipe or WindowRecipe.of(self.model, seed=seed)
        self.shape = window_shape(self.model, vocabulary_size, self.recipe.length, cells)
        self.aggregate = aggregate
        self.members = members
        self.scorer: WindowScorer | None = None

    @classmethod
    def of_trained(
        cls, shape: WindowShape, params: Params, aggregate: str = "mean", false_alarm_rate: float = 0.01
    ) -> Self:
        """A detector around one trained model; `fit` only sets the thresholds then."""
        recipe = WindowRecipe(length=shape.length)
        detector = cls(shape.vocabulary_size, recipe, shape.cells, 1, aggregate, false_alarm_rate)
        detector.scorer = WindowScorer(shape, jax.tree.map(lambda leaf: leaf[None], params))
        return detector

    @classmethod
    def load(cls, model: Model, member: str = "", false_alarm_rate: float = 0.01) -> Self:
        """A detector around one member of a calibrated model directory, ready to judge traces and to `watch`.

        Args:
          model: from `store.load`; its vocabulary is that of the traces.
          member: its name; not needed where only one is of this kind.
          false_alarm_rate: see `Detector`; both thresholds come from the scores that `train` or `calibrate` kept.

        Raises:
          SyscallLMError: there is no such member, or there are several; the calibration is missing or does not fit, or
            was made by a version that kept no scores of windows.
        """
        own = [
            (number, one.shape, one.params)
            for number, one in enumerate(model.members)
            if isinstance(one.shape, WindowShape)
            and module_of(one.shape).NAME == cls.model
            and member in ("", one.name)
        ]
        if len(own) != 1:
            names = ", ".join(one.name for one in model.members)
            asked = f" called {member}" if member else ""
            raise SyscallLMError(
                f"{model.path}: not one but {len(own)} of its members ({names}) are {cls.model}s{asked}"
            )
        number, shape, params = own[0]
        calibration = load_calibration(model.path, model.members)
        if not len(calibration.windows[number]):
            raise SyscallLMError(f"{model.path}: its calibration holds no scores of windows; run `calibrate` again")
        detector = cls.of_trained(shape, params, false_alarm_rate=false_alarm_rate)
        detector.threshold_ = conformal_threshold(calibration.held_out[number], false_alarm_rate)
        detector._set_window_threshold(calibration.windows[number])
        return detector

    def fit(self, normal: Sequences, held_out: Sequences | None = None) -> Self:
        """Trains, stops early by, and sets thresholds from held-out traces; a tenth is set aside if none are given."""
        normal, held_out = training.with_held_out(normal, held_out, self.recipe.seed)
        self._held_out = held_out
        super().fit(normal, held_out)
        self._set_window_threshold(window_means(self.surprisal(held_out), held_out, self.shape.length))
        return self

    def _set_window_threshold(self, scores: np.ndarray) -> None:
        self.window_threshold_ = conformal_threshold(scores, self.false_alarm_rate)
        self.held_out_windows_ = len(scores)

    def _fit(self, normal: Sequences) -> None:
        if self.scorer is None:
            trained = train_group(self.shape, range(self.members), self.recipe, normal, self._held_out)
            self.scorer = WindowScorer(self.shape, trained.params)

    def _params(self, member: int) -> Params:
        """One trained member's parameters."""
        scorer = self._trained()
        if not 0 <= member < scorer.members:
            raise SyscallLMError(f"member={member}: there are {scorer.members}, counted from 0")
        return jax.tree.map(lambda leaf: leaf[member], scorer.params)

    def _trained(self) -> WindowScorer:
        if self.scorer is None:
            raise SyscallLMError(f"{type(self).__name__}: fit it before it scores")
        return self.scorer

    def _window_threshold(self) -> float:
        if not hasattr(self, "window_threshold_"):
            raise SyscallLMError(f"{type(self).__name__}: fit it before it judges windows")
        return self.window_threshold_

    def surprisal(self, traces: Sequences) -> np.ndarray:
        """Every call's surprisal in nats, the members' average, float32 `[total]`, laid out like `traces.calls`."""
        return self._trained().surprisal(traces).mean(0)

    def decision_function(self, traces: Sequences) -> np.ndarray:
        """Nats per call, float64 `[N]`."""
        return aggregated(self.surprisal(traces), traces, self.aggregate)

    def verdicts(self, traces: Sequences, surprisal: np.ndarray | None = None) -> Verdicts:
        """Judges every window of N traces; the windows of a trace follow one another without overlap.

        Args:
          traces: ids in the detector's vocabulary.
          surprisal: what `surprisal(traces)` returned, if it is known already.
        """
        if surprisal is None:
            surprisal = self.surprisal(traces)
        score = window_means(surprisal, traces, self.shape.length)
        windows = self._trained().windows(traces)
        inside = np.arange(windows.length)[:, None] < windows.sizes  # [L, W]
        positions = np.minimum(windows.starts + np.arange(windows.length)[:, None], max(len(surprisal) - 1, 0))
        worst = windows.starts + np.argmax(np.where(inside, surprisal[positions], -np.inf), 0)
        begins = traces.offsets[:-1][windows.trace]
        return Verdicts(
            trace=windows.trace,
            start=windows.starts - begins,
            size=windows.sizes,
            score=score,
            abnormal=score > self._window_threshold(),
            least_expected=worst - begins,
            call=traces.calls[worst].astype(np.int64),
            surprisal=surprisal[worst].astype(np.float64),
        )

    def watch(self) -> "Watch":
        """Judges one live trace, call by call."""
        return Watch(self._trained().stream(), self._window_threshold())


class Watch:
    """One live trace: a verdict whenever all calls of a window have a surprisal."""

    def __init__(self, stream: WindowStream, threshold: float):
        self._stream, self._threshold = stream, threshold
        self._length = stream.shape.length
        self._calls: list[int] = []  # of windows that are not judged yet
        self._surprisals: list[float] = []
        self._start = 0

    def push(self, call: int) -> LiveVerdict | None:
        """The next call; returns the verdict on the window that this one completes, if it does.

        The autoencoder's verdicts come L calls after their window.

        Raises:
          SyscallLMError: an id outside the vocabulary.
        """
        require_ids(call, self._stream.shape.vocabulary_size)
        self._calls.append(call)
        self._take(call)
        return self._verdict() if len(self._surprisals) == self._length else None

    def finish(self) -> list[LiveVerdict]:
        """The trace ends: the verdicts that were still to come. The next call begins a new trace."""
        found = []
        for _ in range(self._stream.delay):
            self._take(self._stream.shape.vocabulary_size)
            if len(self._surprisals) == self._length:
                found.append(self._verdict())
        if self._surprisals:
            found.append(self._verdict())
        self._stream.restart(0)
        self._calls, self._start = [], 0
        return found

    def _take(self, call: int) -> None:
        surprisal = float(self._stream.push(np.array([call])).mean())
        if not np.isnan(surprisal):
            self._surprisals.append(surprisal)

    def _verdict(self) -> LiveVerdict:
        values, start = np.array(self._surprisals, np.float32), self._start
        worst = int(np.argmax(values))
        score = float(values.mean(dtype=np.float64))
        verdict = LiveVerdict(
            start, score, score > self._threshold, start + worst, self._calls[worst], float(values[worst])
        )
        self._start += len(values)
        self._calls, self._surprisals = self._calls[len(values) :], []
        return verdict


def aggregated(surprisal: np.ndarray, traces: Sequences, aggregate: str) -> np.ndarray:
    """A trace's score from its calls' surprisal `[total]`: float64 `[N]`; see `WindowDetector`."""
    if aggregate == "mean":
        return scoring.means(surprisal, traces)
    return scoring.most_surprising_stretches(surprisal, traces, STRETCH)[2]
