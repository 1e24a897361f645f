"""What training needs to know of a model and its data."""

from collections.abc import Iterable, Mapping
from typing import Any, Protocol

import numpy as np

from syscall_lm.mesh import Mesh
from syscall_lm.types import Array, Params


class Objective(Protocol):
    """What the loop needs to know of a model and its data.

    Attributes:
      name: of the model, in messages and in the history's rows.
      sums: what `loss` and `evaluate` add up; among them "calls", by which the others are divided in `metrics`.
      step_flops: floating-point operations of one member's step, forward and backward, about.
    """

    @property
    def name(self) -> str: ...  # noqa: D102

    @property
    def sums(self) -> tuple[str, ...]: ...  # noqa: D102

    @property
    def step_flops(self) -> float: ...  # noqa: D102

    def initialise(self, key: Array, /) -> Params:
        """Fresh parameters of one member."""
        ...

    def initial_carry(self, params: Params, /) -> Any:
        """What one member carries from minibatch to minibatch within an epoch, at its beginning.

        Arrays `[B, ...]`, B the lanes of every minibatch; None for nothing.
        """
        ...

    def plans(self, epoch: int, /) -> Iterable[np.ndarray]:
        """The epoch's minibatches, as numbers `[..., B]`; how many there are must not depend on the epoch."""
        ...

    def gather(self, plan: np.ndarray, /) -> Any:
        """The minibatch of a plan, or of some of its lanes: a tree of arrays `[..., B]`. Plans hold -1 for padding."""
        ...

    def loss(
        self, params: Params, key: Array, carry: Any, batch: Any, first: int | Array, /
    ) -> tuple[Array, tuple[dict[str, Array], Any]]:
        """What one member minimises, and beside it the sums and the carry for the next minibatch.

        Of a minibatch, or of some of its lanes from `first` on, with which it depends on a lane's number where it is
        random, not on the part: the minibatch's loss is the mean of its parts', weighted by the calls of their sums;
        finite where there are none.
        """
        ...

    def evaluate(self, params: Params, mesh: Mesh, /) -> dict[str, np.ndarray]:
        """The sums over the held-out data, each float64 `[M]`, of members stacked along a leading axis M."""
        ...

    def metrics(self, sums: Mapping[str, np.ndarray], /) -> dict[str, np.ndarray]:
        """What the history tells of sums `[M]`: "nll" in nats per call, which decides when to stop, and any others."""
        ...
