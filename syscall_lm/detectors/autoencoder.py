"""The autoencoder as a detector."""

from syscall_lm.detectors.window_models import WindowDetector
from syscall_lm.models import autoencoder


class AutoencoderDetector(WindowDetector):
    """Reconstruction error of windows (Soni et al. 2019, section IV B).

    The error is the categorical cross-entropy that training minimises, in nats per call: unlike the number of calls
    told wrongly, it also tells windows apart that are all reconstructed. See `WindowDetector` for arguments.
    """

    model = autoencoder.NAME
