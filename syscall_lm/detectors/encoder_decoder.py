"""The LSTM encoder-decoder as a detector."""

from syscall_lm.detectors.window_models import WindowDetector
from syscall_lm.models import encoder_decoder


class EncoderDecoderDetector(WindowDetector):
    """Average negative log-likelihood of the next L calls given the last L (Soni et al. 2019, section IV A).

    See `WindowDetector` for arguments; a model of L = 10 did best in the paper.
    """

    model = encoder_decoder.NAME
