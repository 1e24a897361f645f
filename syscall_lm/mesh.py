"""All devices of all processes as a grid, and how training's arrays lie on it.

The grid has two named axes: `member` (each row of devices trains its share of an ensemble's members) and `data` (the
devices of a row share the lanes of every minibatch). XLA's partitioner splits the program by how its arrays lie; random
numbers are functions of their place in the whole array, so that dropout is the same on any number of devices.

Lanes rarely divide by the devices. Between steps arrays of lanes are padded to what the grid can hold; the program
itself sees the true lanes, and nothing that is computed depends on the padding.
"""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from syscall_lm.models import lstm
from syscall_lm.types import Array


class Mesh:
    """The devices for M members.

    Rows of the `member` axis are as many as divide M: rows need not talk to each other, devices of one row must add up
    gradients after every minibatch. Neighbours, which share a host, share a row.

    Args:
      members: M.
      rows: of the `member` axis, if not as many as possible; must divide M and the number of devices.
      columns: of the `data` axis, at most; None for all devices.
    """

    def __init__(self, members: int, rows: int | None = None, columns: int | None = None):
        devices = np.array(jax.devices())
        self.members = members
        self.rows = math.gcd(members, len(devices)) if rows is None else rows
        self._grid = jax.sharding.Mesh(devices.reshape(self.rows, -1)[:, :columns], ("member", "data"))
        self.columns = self._grid.shape["data"]

    def __str__(self) -> str:
        kind, size = self._grid.devices.flat[0].device_kind, self._grid.size
        return (
            f"mesh member={self.rows} x data={self.columns}: {size} device{'s' * (size > 1)} ({kind}) "
            f"of {jax.process_count()} process{'es' * (jax.process_count() > 1)}"
        )

    @property
    def everywhere(self) -> NamedSharding:
        """Every device holds all of it."""
        return NamedSharding(self._grid, PartitionSpec())

    @property
    def by_member(self) -> NamedSharding:
        """Arrays `[M, ...]`."""
        return NamedSharding(self._grid, PartitionSpec("member"))

    @property
    def by_lane(self) -> NamedSharding:
        """What members carry from minibatch to minibatch, `[M, B, ...]`."""
        return NamedSharding(self._grid, PartitionSpec("member", "data"))

    def _of_batch(self, dimensions: int) -> NamedSharding:
        return NamedSharding(self._grid, PartitionSpec(*[None] * (dimensions - 1), "data"))

    def feed(self, gather: Callable[[np.ndarray], Any], plan: np.ndarray) -> Any:
        """Puts a minibatch on the devices; each process gathers the lanes of its own devices only.

        Args:
          gather: gives the arrays `[..., B]` of a plan `[..., B]`.
          plan: numbers, -1 for padding; the same in all processes.

        Returns:
          the arrays, their lanes padded.
        """
        if self._grid.size == 1:
            return jax.device_put(gather(plan), self.everywhere)
        if missing := -plan.shape[-1] % self.columns:
            plan = np.concatenate([plan, np.full((*plan.shape[:-1], missing), -1, plan.dtype)], axis=-1)
        sharding = self._of_batch(plan.ndim)
        places = {
            device: index[-1] for device, index in sharding.addressable_devices_indices_map(plan.shape).items() if index
        }
        own = {(lanes.start, lanes.stop): lanes for lanes in places.values()}
        gathered = {key: gather(plan[..., lanes]) for key, lanes in own.items()}
        parts = [gathered[lanes.start, lanes.stop] for lanes in places.values()]
        leaves = [jax.tree.leaves(jax.device_put(part, device)) for part, device in zip(parts, places, strict=True)]

        def whole(pieces: tuple[Array, ...]) -> Array:
            shape = (*pieces[0].shape[:-1], plan.shape[-1])
            return jax.make_array_from_single_device_arrays(shape, self._of_batch(len(shape)), list(pieces))

        return jax.tree.unflatten(jax.tree.structure(parts[0]), map(whole, zip(*leaves, strict=True)))

    def over_members(
        self, function: Callable[..., Any], *stacked: Any, carry: Any, batch: Any, lanes: int
    ) -> tuple[Any, Any, Any]:
        """Applies `function(*one_member, carry, batch)` to every member; to be used under `jit`.

        Args:
          function: gives (anything, sums, carry), for one member.
          stacked: trees of arrays `[M, ...]`.
          carry: a tree of arrays `[M, B, ...]`, padded; or None.
          batch: from `feed`.
          lanes: B, without padding.

        Returns:
          the three results, stacked: the first lies by member, sums everywhere, the carry by lane and padded.
        """
        constrain = jax.lax.with_sharding_constraint
        batch = jax.tree.map(lambda leaf: constrain(leaf[..., :lanes], self._of_batch(leaf.ndim)), batch)
        carry = jax.tree.map(lambda leaf: constrain(leaf[:, :lanes], self.by_lane), carry)
        result, sums, carry = self._rows(function, (*stacked, carry), batch)
        return constrain(result, self.by_member), constrain(sums, self.everywhere), self.padded(carry)

    def _rows(self, function: Callable[..., Any], stacked: Any, batch: Any) -> Any:
        if self.rows == 1:
            return lstm.over_members(function, *stacked, shared=(batch,))
        split = jax.tree.map(lambda leaf: leaf.reshape(self.rows, -1, *leaf.shape[1:]), stacked)
        one_row = jax.vmap(lambda *row: lstm.over_members(function, *row, shared=(batch,)), spmd_axis_name="member")
        return jax.tree.map(lambda leaf: leaf.reshape(self.members, *leaf.shape[2:]), one_row(*split))

    def padded(self, carry: Any) -> Any:
        """A carry `[M, B, ...]` with lanes that divide by the devices, laid out by lane; under `jit`."""

        def pad(leaf: Array) -> Array:
            missing = -leaf.shape[1] % self.columns
            padded = jnp.pad(leaf, [(0, 0), (0, missing), *[(0, 0)] * (leaf.ndim - 2)])
            return jax.lax.with_sharding_constraint(padded, self.by_lane)

        return jax.tree.map(pad, carry)

    def to_host(self, tree: Any) -> Any:
        """Arrays that lie anywhere on the grid, in every process's own memory."""
        return jax.tree.map(np.asarray, jax.jit(lambda tree: tree, out_shardings=self.everywhere)(tree))
