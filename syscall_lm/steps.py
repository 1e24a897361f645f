"""The programs that make a step of training: one for a mesh, or one for each core of a CPU.

A mesh's devices share a program, which XLA's partitioner splits (mesh.py). The cores of one process do better with
programs of their own, on devices of one thread (`cpu.single_cores`): each finds the gradients of its lanes, hands them
over in memory, and all that learn the same members make the same update of their own copies.
"""

import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np
import optax

from syscall_lm import cpu
from syscall_lm.mesh import Mesh
from syscall_lm.models import lstm
from syscall_lm.objective import Objective
from syscall_lm.types import Array, HostArray, Params

Origin = tuple[HostArray, HostArray]  # of all that is random: the seed's key data, uint32 [2]; member numbers [M]
State = dict[str, Any]
Share = tuple[dict[str, Any], Any]  # a core's: what it has learned, and what its lanes carry
LEARNED = ("params", "optimizer", "sums", "step")


class Step(Protocol):
    """A compiled step of all members.

    Between steps a state lies as the programs like it. What is kept, judged or read is the `whole` of it: arrays on the
    mesh, those of members with a leading axis M, that any other number of devices could go on with.
    """

    def __call__(self, state: State, /, *plans: np.ndarray) -> State:
        """The state after the minibatch of a plan, or after those of several; the one before is used up."""
        ...

    def spread(self, whole: State, /) -> State:
        """A whole state as the step takes it; it is used up."""
        ...

    def whole(self, state: State, /) -> State:
        """The inverse of `spread`."""
        ...

    def sums(self, state: State, /) -> dict[str, np.ndarray]:
        """The sums over the epoch so far, each `[M]`; waits for the last step."""
        ...


def step_on(mesh: Mesh, objective: Objective, optimizer: optax.GradientTransformation, origin: Origin) -> Step:
    """The step for a mesh: of programs for single cores, where it has several of one process's, else of one program.

    Args:
      mesh: rows and columns of devices.
      objective: what to learn.
      optimizer: how gradients become updates.
      origin: of all that is random.
    """
    member, size = Member(objective, optimizer), mesh.rows * mesh.columns
    local = jax.default_backend() == "cpu" and jax.process_count() == 1
    # One core alone does better with products that XLA spreads over all of them.
    cores = cpu.single_cores(jax.device_count())[:size] if local and size > 1 else ()
    return OnCores(mesh, member, origin, cores) if cores else OnMesh(mesh, member, origin)


class Member:
    """What a step does for one member."""

    def __init__(self, objective: Objective, optimizer: optax.GradientTransformation):
        self.objective, self._optimizer = objective, optimizer

    def learn(
        self, params: Params, opt_state: Any, key: Array, step: Array, carry: Any, batch: Any
    ) -> tuple[tuple[Params, Any], dict[str, Array], Any]:
        """Forward, backward, clip, Adam: parameters and optimizer's state, sums, carry."""
        key = jax.random.fold_in(key, step)
        gradient = jax.grad(self.objective.loss, has_aux=True)
        gradients, (sums, carry) = gradient(params, key, carry, batch, 0)
        return self.update(params, opt_state, gradients), sums, carry

    def gradients(
        self, params: Params, key: Array, step: Array, carry: Any, batch: Any, first: int | Array
    ) -> tuple[tuple[Params, dict[str, Array]], Any]:
        """Of the sum over the calls of a part of the minibatch; gradients and sums, carry."""

        def total(params: Params) -> tuple[Array, tuple[dict[str, Array], Any]]:
            mean, (sums, after) = self.objective.loss(params, jax.random.fold_in(key, step), carry, batch, first)
            return mean * sums["calls"], (sums, after)

        gradients, (sums, after) = jax.grad(total, has_aux=True)(params)
        return (gradients, sums), after

    def update(self, params: Params, opt_state: Any, gradients: Params) -> tuple[Any, Any]:
        """Clip, Adam: parameters and optimizer's state."""
        with jax.named_scope("adam"):
            updates, opt_state = self._optimizer.update(gradients, opt_state, params)
            return optax.apply_updates(params, updates), opt_state


class OnMesh:
    """See `Step`: one program for all devices; on one GPU it may take several minibatches at a time."""

    def __init__(self, mesh: Mesh, member: Member, origin: Origin):
        self._mesh, self._member, self._origin = mesh, member, origin
        self._compiled: dict[bool, Callable[..., State]] = {}
        self._pad = jax.jit(mesh.padded, out_shardings=mesh.by_lane)
        self._cut = jax.jit(_cut, static_argnums=1, out_shardings=mesh.by_member)
        self._lanes = 0  # of what members carry

    def __call__(self, state: State, /, *plans: np.ndarray) -> State:
        """See `Step`."""
        lanes, single, gather = plans[0].shape[-1], len(plans) == 1, self._member.objective.gather
        with jax.profiler.TraceAnnotation("gather minibatches"):
            if single:
                batch = self._mesh.feed(gather, plans[0])
            else:
                stacked = jax.tree.map(lambda *leaves: np.stack(leaves), *map(gather, plans))
                batch = jax.device_put(stacked, self._mesh.everywhere)
        if single not in self._compiled:
            layout = layout_of(state, self._mesh)
            self._compiled[single] = cpu.jit(
                self.one if single else self._several,
                eigen=self._mesh.rows * self._mesh.columns == 1,
                donate_argnums=0,
                static_argnames="lanes",
                out_shardings={
                    name: self._mesh.by_lane if name == "carry" else place for name, place in layout.items()
                },
            )
        return self._compiled[single](state, batch, self._origin, lanes=lanes)

    def spread(self, whole: State, /) -> State:
        """See `Step`."""
        if "carry" not in whole:
            return whole
        self._lanes = jax.tree.leaves(whole["carry"])[0].shape[1]
        return {**whole, "carry": self._pad(whole["carry"])}

    def whole(self, state: State, /) -> State:
        """See `Step`."""
        if "carry" not in state:
            return state
        return {**state, "carry": self._cut(state["carry"], self._lanes)}

    def sums(self, state: State, /) -> dict[str, np.ndarray]:
        """See `Step`."""
        return jax.tree.map(np.asarray, state["sums"])

    def one(self, state: State, batch: Any, origin: Origin, lanes: int) -> State:
        """The program for one minibatch, to be compiled."""

        def member(params, opt_state, key, carry, batch):
            return self._member.learn(params, opt_state, key, state["step"], carry, batch)

        stacked = state["params"], state["optimizer"], _keys(origin)
        (params, opt_state), sums, carry = self._mesh.over_members(
            member, *stacked, carry=state.get("carry"), batch=batch, lanes=lanes
        )
        after = {**state, **_after(state, params, opt_state, sums)}
        return {**after, "carry": carry} if "carry" in state else after

    def _several(self, state: State, batches: Any, origin: Origin, lanes: int) -> State:
        return jax.lax.scan(lambda state, batch: (self.one(state, batch, origin, lanes), None), state, batches)[0]


class OnCores:
    """See `Step`: programs for each core.

    A state is the shares of all cores, row by row, and beside them what no step changes. The cores of a row learn the
    same members; each has lanes of its own, about as many as the others.
    """

    def __init__(self, mesh: Mesh, member: Member, origin: Origin, cores: Sequence[Any]):
        self._mesh, self._member, self._cores = mesh, member, cores
        key_data, numbers = origin
        self._origins = [(key_data, some) for some in np.split(np.asarray(numbers), mesh.rows)]
        self._learn = cpu.OneForCores(self._learned, donate_argnums=(0, 1))
        self._find = cpu.OneForCores(self._found, donate_argnums=2)
        self._update = cpu.OneForCores(self._updated, donate_argnums=0)

    def __call__(self, state: State, /, *plans: np.ndarray) -> State:
        """See `Step`."""
        shares = state["shares"]
        for plan in plans:
            shares = self._one(shares, plan)
        return {**state, "shares": shares}

    def _one(self, shares: list[Share], plan: np.ndarray) -> list[Share]:
        columns, bounds = self._mesh.columns, self._bounds(plan.shape[-1])
        with jax.profiler.TraceAnnotation("gather minibatches"):
            batches = [
                self._member.objective.gather(plan[..., first:end]) if end > first else None
                for first, end in itertools.pairwise(bounds)
            ]

        def begin(number: int) -> Any:
            """A core's share after the step; where others share its row, what it found and what its lanes carry."""
            (learned, carry), core, (row, column) = shares[number], self._cores[number], divmod(number, columns)
            batch, origin = batches[column], self._origins[row]
            if columns == 1:
                return self._learn(core, learned, carry, batch, origin)
            if batch is None:
                return None, carry
            first = np.int32(bounds[column])
            return self._find(core, learned["params"], learned["step"], carry, batch, origin, first)

        begun = [begin(number) for number in range(len(shares))]  # all are at work before one is waited for
        if columns == 1:
            return begun
        found = [jax.tree.map(np.asarray, part) for part, _ in begun]  # views, no copies
        after = []
        for number, (core, (learned, _), (_, carry)) in enumerate(zip(self._cores, shares, begun, strict=True)):
            row = number // columns * columns
            parts = [part for part in found[row : row + columns] if part]
            after.append((self._update(core, learned, parts), carry))
        return after

    def spread(self, whole: State, /) -> State:
        """See `Step`."""
        rows, columns = self._mesh.rows, self._mesh.columns
        host = {name: jax.tree.map(np.asarray, whole[name]) for name in (*LEARNED, "carry") if name in whole}

        def of_row(tree: Any, row: int) -> Any:
            return jax.tree.map(lambda leaf: np.split(leaf, rows)[row] if leaf.ndim else leaf, tree)

        def of_column(tree: Any, column: int) -> Any:
            def of_leaf(leaf: np.ndarray) -> np.ndarray:
                first, end = self._bounds(leaf.shape[1])[column : column + 2]
                return leaf[:, first:end]

            return jax.tree.map(of_leaf, tree)

        shares = []
        for number, core in enumerate(self._cores):
            row, column = divmod(number, columns)
            learned = {name: of_row(host[name], row) for name in LEARNED}
            carry = of_column(of_row(host["carry"], row), column) if "carry" in host else None
            shares.append(jax.device_put(jax.tree.map(np.array, (learned, carry)), core))  # a copy, which it may change
        return {**{name: whole[name] for name in whole if name not in host}, "shares": shares}

    def whole(self, state: State, /) -> State:
        """See `Step`."""
        rest = {name: value for name, value in state.items() if name != "shares"}
        columns = self._mesh.columns
        host = [jax.tree.map(np.asarray, share) for share in state["shares"]]

        def joined(trees: Sequence[Any], axis: int) -> Any:
            """A copy, since a step writes over what it has learned."""
            return jax.tree.map(lambda *leaves: np.concatenate(leaves, axis) if leaves[0].ndim else +leaves[0], *trees)

        learned = joined([learned for learned, _ in host[::columns]], 0)
        carry = joined(
            [joined([carry for _, carry in host[i : i + columns]], 1) for i in range(0, len(host), columns)], 0
        )
        if carry is not None:
            learned["carry"] = carry
        return {**rest, **jax.device_put(learned, layout_of(learned, self._mesh))}

    def sums(self, state: State, /) -> dict[str, np.ndarray]:
        """See `Step`."""
        by_row = [learned["sums"] for learned, _ in state["shares"][:: self._mesh.columns]]
        return {name: np.concatenate([np.asarray(sums[name]) for sums in by_row]) for name in by_row[0]}

    def _bounds(self, lanes: int) -> list[int]:
        """Where the columns' lanes begin, and where the last one's end."""
        return [lanes * column // self._mesh.columns for column in range(self._mesh.columns + 1)]

    def _learned(self, learned: dict[str, Any], carry: Any, batch: Any, origin: Origin) -> Share:
        """A step of members that no other core learns."""

        def member(params, opt_state, key, carry):
            return self._member.learn(params, opt_state, key, learned["step"], carry, batch)

        stacked = learned["params"], learned["optimizer"], _keys(origin), carry
        (params, opt_state), sums, after = lstm.over_members(member, *stacked)
        return _after(learned, params, opt_state, sums), after if carry else None

    def _found(
        self, params: Params, step: Array, carry: Any, batch: Any, origin: Origin, first: Array
    ) -> tuple[Any, Any]:
        """What a core finds on its lanes: gradients and sums; and the carry."""

        def member(params, key, carry):
            return self._member.gradients(params, key, step, carry, batch, first)

        found, after = lstm.over_members(member, params, _keys(origin), carry)
        return found, after if carry else None

    def _updated(self, learned: dict[str, Any], parts: Sequence[Any]) -> dict[str, Any]:
        """What a core has learned after the step in which the cores of its row found these."""
        gradients, sums = jax.tree.map(lambda *leaves: sum(leaves[1:], leaves[0]), *parts)

        def member(params, opt_state, gradients, calls):
            mean = jax.tree.map(lambda leaf: leaf / jnp.maximum(calls, 1), gradients)
            return self._member.update(params, opt_state, mean)

        stacked = learned["params"], learned["optimizer"], gradients, sums["calls"]
        params, opt_state = lstm.over_members(member, *stacked)
        return _after(learned, params, opt_state, sums)


def _after(before: Mapping[str, Any], params: Params, opt_state: Any, sums: dict[str, Array]) -> dict[str, Any]:
    """What has been learned after a step that found these."""
    return {
        "params": params,
        "optimizer": opt_state,
        "sums": {name: before["sums"][name] + sums[name] for name in before["sums"]},
        "step": before["step"] + 1,
    }


def _keys(origin: Origin) -> Array:
    """The members' keys `[M]`."""
    key_data, numbers = origin
    return jax.vmap(jax.random.fold_in, (None, 0))(jax.random.wrap_key_data(jnp.asarray(key_data)), numbers)


def initial_state(
    objective: Objective, origin: Origin, optimizer: optax.GradientTransformation, mesh: Mesh
) -> dict[str, Any]:
    """Everything that the first step depends on, as a whole."""

    def build(origin: Origin) -> dict[str, Any]:
        params = jax.vmap(objective.initialise)(_keys(origin))
        members = mesh.members
        state = {
            "params": params,
            "optimizer": jax.vmap(optimizer.init)(params),
            "best": params,
            "best_nll": jnp.full(members, jnp.inf, jnp.float32),
            "stale": jnp.zeros(members),  # epochs since the best
            "sums": {name: jnp.zeros(members) for name in objective.sums},  # over the epoch so far
            "step": jnp.int32(0),
            "epoch": jnp.int32(0),
            "batch": jnp.int32(0),
        }
        carry = jax.vmap(objective.initial_carry)(params)
        return state if carry is None else {**state, "carry": carry}

    # It runs once, for milliseconds; optimised it would be compiled for seconds.
    options = {"xla_backend_optimization_level": 0}
    layout = layout_of(jax.eval_shape(build, origin), mesh)
    return jax.jit(build, out_shardings=layout, compiler_options=options)(origin)


def layout_of(whole: Mapping[str, Any], mesh: Mesh) -> dict[str, Any]:
    """Where each part of a whole state lies; small things lie everywhere, so that every process can read them."""
    of_members = ("params", "optimizer", "best", "carry")
    return {name: mesh.by_member if name in of_members else mesh.everywhere for name in whole}


def _cut(carry: Any, lanes: int) -> Any:
    """A carry without its padding."""
    return jax.tree.map(lambda leaf: leaf[:, :lanes], carry)
