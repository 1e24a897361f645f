"""The LSTM encoder-decoder as a detector."""

import functools
from typing import NamedTuple

import jax
import numpy as np

from syscall_lm.detectors.window_models import WindowDetector
from syscall_lm.errors import SyscallLMError
from syscall_lm.models import encoder_decoder
from syscall_lm.traces.trace import Sequences
from syscall_lm.traces.windows import in_batches

BATCH = 64  # traces that are continued side by side

_search = functools.partial(jax.jit, static_argnames="width")(encoder_decoder.beam)


class Continuations(NamedTuple):
    """What may come next after each of N traces.

    Attributes:
      calls: int32 `[N, W, L]`, the W most probable continuations that were found, the best first.
      log_probability: float32 `[N, W]`, ln P of each; -inf where there are fewer than W different ones (V^L < W).
    """

    calls: np.ndarray
    log_probability: np.ndarray


class EncoderDecoderDetector(WindowDetector):
    """Average negative log-likelihood of the next L calls given the last L (Soni et al. 2019, section IV A).

    See `WindowDetector` for arguments; a model of L = 10 did best in the paper.
    """

    model = encoder_decoder.NAME

    def predict_next(self, traces: Sequences, width: int = 1, member: int = 0) -> Continuations:
        """Foretells the L calls that come after each trace's last one.

        Args:
          traces: N traces, of which the last L calls are read.
          width: W, how many beginnings the beam search keeps; 1 takes the most probable call each time (greedy).
          member: which of the trained members foretells.

        Raises:
          SyscallLMError: a width below 1, or no such member.
        """
        if width < 1:
            raise SyscallLMError(f"width={width}: a beam keeps at least 1 beginning")
        params, length = self._params(member), self.shape.length
        before = np.full((length, len(traces)), self.shape.vocabulary_size, np.int32)
        for number, calls in enumerate(traces):
            last = calls[-length:]
            before[length - len(last) :, number] = last
        found = np.empty((len(traces), width, length), np.int32)
        scores = np.empty((len(traces), width), np.float32)
        for plan in in_batches(np.arange(len(traces)), BATCH):
            calls, score = _search(params, before[:, plan], width=width)  # -1 reads the last trace again
            used = plan >= 0
            found[plan[used]] = np.transpose(calls, (2, 0, 1))[used]
            scores[plan[used]] = np.transpose(score)[used]
        return Continuations(found, scores)
