"""The legend of dimensions, used in every docstring and comment.

B  lanes (scoring, packed) or traces of a minibatch
T  time steps: calls of a tile or of the longest trace
V  vocabulary: names and UNK; inputs know one id more, GO
E  embedding width
D  input width of a layer: E for the first, H for the others
H  cells of a layer
M  members of an ensemble
N  traces

Models of windows, and some detectors:

L  calls in a window
W  windows; in a beam, the beginnings that are kept
K  width of the autoencoder's code
F  features of a trace
S  states of a hidden Markov model; sections of traces

Sequences inside the models are time-major, `[T, B, ...]`, because a scan walks over the first axis.
"""

from typing import Any

import jax
import numpy as np

Array = jax.Array
HostArray = jax.Array | np.ndarray  # what may still lie in the host's memory
Params = dict[str, Any]  # nested dicts of arrays; see models/lstm.py for the layout
