"""The autoencoder as a detector."""

import jax
import numpy as np

from syscall_lm.detectors.window_models import WindowDetector
from syscall_lm.models import autoencoder
from syscall_lm.traces.trace import Sequences
from syscall_lm.traces.windows import in_batches

BATCH = 64  # windows that are told again side by side

_reconstruct = jax.jit(autoencoder.reconstruct)


class AutoencoderDetector(WindowDetector):
    """Reconstruction error of windows (Soni et al. 2019, section IV B).

    The error is the categorical cross-entropy that training minimises, in nats per call: unlike the number of calls
    told wrongly, it also tells windows apart that are all reconstructed. See `WindowDetector` for arguments.
    """

    model = autoencoder.NAME

    def reconstruct(self, traces: Sequences, member: int = 0) -> np.ndarray:
        """Tells every call again from its window's code: the most probable one, int32 `[total]`, as `traces.calls` lie.

        Args:
          traces: N traces; a window of L calls has zero reconstruction error in the paper's sense if all are equal.
          member: which of the trained members tells.

        Raises:
          SyscallLMError: no such member.
        """
        params = self._params(member)
        windows = self._trained().windows(traces)
        found = np.empty(len(traces.calls), np.int32)
        for plan in in_batches(np.arange(len(windows)), BATCH):
            batch = windows.gather(plan)
            positions = windows.starts[plan] + np.arange(windows.length)[:, None]
            found[positions[batch.mask]] = np.asarray(_reconstruct(params, batch))[batch.mask]
        return found
