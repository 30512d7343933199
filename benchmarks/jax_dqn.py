# mypy: ignore-errors
# JAX and its libraries live in an environment of their own (jax_requirements.txt), and mypy does not see them.
"""A plain JAX DQN on CartPole-v1, on one core: what Qohort's cohorts are measured beside.

It is written as users of JAX write it (PureJaxRL): flax, optax, gymnax and flashbax, with environment, replay, acting
and update in one `lax.scan`, under `jit(vmap(...))` over seeds, one environment a seed. The state, replay included, is
donated. The env_step comes from the scan, not from a seed's state, so that the branch of the update stays a branch
under `vmap`: PureJaxRL's own predicate becomes a select there, which computes the update at every env_step.

The line of JSON has the env_steps per second summed over members (the median of the repeats), the seconds of
compilation, and of each repeat the mean return in the first and in the last tenth of the budget.

python benchmarks/jax_dqn.py --geometry article --members 30 --env-steps 20000 --start 2000 --repeats 3
"""

from __future__ import annotations

import os

os.environ["XLA_FLAGS"] = "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1"  # before jax
os.environ["JAX_PLATFORMS"] = "cpu"

import argparse
import json
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import flashbax
import gymnax
import jax
import jax.numpy as jnp
import optax
from flax import linen
from gymnax.wrappers import LogWrapper


@dataclass(frozen=True)
class Geometry:
    """One piece of work. No `target_every` is no target network."""

    hidden: tuple[int, ...]
    lr: float
    capacity: int
    batch_size: int
    gamma: float
    learning_starts: int
    train_every: int
    target_every: int | None
    epsilon: Callable[[jax.Array, jax.Array, int], jax.Array]
    """Of the env_steps, the updates and the budget."""


def _linear(env_steps: jax.Array, _: jax.Array, budget: int) -> jax.Array:
    return jnp.maximum(1 - 0.95 * env_steps / (0.5 * budget), 0.05)


def _exponential(_: jax.Array, updates: jax.Array, __: int) -> jax.Array:
    return jnp.maximum(0.995**updates, 0.01)


GEOMETRIES = {
    "cleanrl": Geometry((120, 84), 2.5e-4, 10_000, 128, 0.99, 10_000, 10, 500, _linear),
    "article": Geometry((24, 24), 1e-3, 50_000, 20, 0.95, 20, 1, None, _exponential),
}


class QNetwork(linen.Module):
    """Multilayer perceptron with ReLU."""

    hidden: tuple[int, ...]
    actions: int

    @linen.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """The value of each action."""
        for width in self.hidden:
            x = linen.relu(linen.Dense(width)(x))
        return linen.Dense(self.actions)(x)


class State(NamedTuple):
    """What a seed carries through the scan."""

    key: jax.Array
    environment: Any
    observation: jax.Array
    replay: Any
    params: Any
    target: Any
    optimizer: Any
    updates: jax.Array


def make(geometry: Geometry, budget: int) -> tuple[Callable[..., Any], Callable[..., Any]]:
    """The functions of one seed: `init(key)`, and `train(state, env_steps)`, which returns the ends of episodes too."""
    environment, settings = gymnax.make("CartPole-v1")
    environment = LogWrapper(environment)
    network = QNetwork(geometry.hidden, environment.num_actions)
    optimizer = optax.adam(geometry.lr)
    replay = flashbax.make_item_buffer(geometry.capacity, geometry.batch_size, geometry.batch_size)

    def init(key: jax.Array) -> State:
        key, reset, weights = jax.random.split(key, 3)
        observation, state = environment.reset(reset, settings)
        zero = jnp.zeros(())
        item = (observation, jnp.zeros((), jnp.int32), zero, zero, observation)
        params = network.init(weights, observation)
        target = None if geometry.target_every is None else jax.tree.map(jnp.copy, params)
        updates = jnp.zeros((), jnp.int32)
        return State(key, state, observation, replay.init(item), params, target, optimizer.init(params), updates)

    def loss(params: Any, target: Any, batch: tuple[jax.Array, ...]) -> jax.Array:
        observation, action, reward, terminated, following = batch
        bootstrap = network.apply(target, following).max(axis=-1)
        goal = jax.lax.stop_gradient(reward + geometry.gamma * (1 - terminated) * bootstrap)
        value = jnp.take_along_axis(network.apply(params, observation), action[:, None], axis=-1)[:, 0]
        return jnp.mean((value - goal) ** 2)

    def update(params: Any, target: Any, moments: Any, replayed: Any, key: jax.Array) -> tuple[Any, Any]:
        batch = replay.sample(replayed, key).experience
        gradient = jax.grad(loss)(params, params if target is None else target, batch)
        change, moments = optimizer.update(gradient, moments)
        return optax.apply_updates(params, change), moments

    def env_step(state: State, step: jax.Array) -> tuple[State, jax.Array]:
        key, explore, chance, move, draw = jax.random.split(state.key, 5)
        greedy = network.apply(state.params, state.observation).argmax()
        random = jax.random.randint(explore, (), 0, environment.num_actions, greedy.dtype)
        epsilon = geometry.epsilon(step, state.updates, budget)
        action = jnp.where(jax.random.uniform(chance) < epsilon, random, greedy)
        following, inner, reward, terminated, _, info = environment.step(move, state.environment, action, settings)
        item = (state.observation, action, reward, terminated.astype(jnp.float32), info["final_observation"])
        replayed = replay.add(state.replay, item)
        count = step + 1
        learns = (count >= geometry.learning_starts) & (count % geometry.train_every == 0)
        params, moments = jax.lax.cond(
            learns,
            update,
            lambda *same: (same[0], same[2]),
            state.params,
            state.target,
            state.optimizer,
            replayed,
            draw,
        )
        target = state.target
        if geometry.target_every is not None:
            copies = count % geometry.target_every == 0
            target = jax.tree.map(lambda new, old: jnp.where(copies, new, old), params, target)
        updates = state.updates + learns
        state = State(key, inner, following, replayed, params, target, moments, updates)
        return state, info["returned_episode"]

    def train(state: State, steps: jax.Array) -> tuple[State, jax.Array]:
        return jax.lax.scan(env_step, state, steps)

    return init, train


def main() -> None:
    """Compile, run every repeat with seeds of its own, and print one line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--geometry", choices=GEOMETRIES, required=True)
    parser.add_argument("--members", type=int, default=1)
    parser.add_argument("--env-steps", type=int, required=True, help="the budget of a member")
    parser.add_argument("--start", type=int, default=0, help="env_steps at which the clock starts")
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--capacity", type=int, help="another size of the replay")
    given = parser.parse_args()
    if given.members < 1 or given.repeats < 1 or not 0 <= given.start < given.env_steps:
        parser.error("members and repeats are at least 1, and start lies within env-steps")
    geometry = GEOMETRIES[given.geometry]
    if given.capacity:
        geometry = replace(geometry, capacity=given.capacity)
    init, train = make(geometry, given.env_steps)
    init = jax.jit(jax.vmap(init))
    train = jax.jit(jax.vmap(train, in_axes=(0, None)), donate_argnums=0)
    keys = jax.vmap(jax.random.key)
    steps = jnp.arange(given.env_steps)
    parts = [part for part in jnp.split(steps, [given.start]) if part.size]
    began = time.perf_counter()
    state = init(keys(jnp.arange(given.members)))
    programs = [train.lower(state, part).compile() for part in parts]
    compile_s = time.perf_counter() - began
    speeds, returns = [], []
    for repeat in range(given.repeats):
        state = jax.block_until_ready(init(keys(jnp.arange(given.members) + repeat * given.members)))
        ends = []
        for program, part in zip(programs, parts, strict=True):
            began = time.perf_counter()
            state, ended = jax.block_until_ready(program(state, part))
            seconds = time.perf_counter() - began
            ends.append(ended)
        speeds.append(part.size * given.members / seconds)
        ended, tenth = jnp.concatenate(ends, axis=1), max(given.env_steps // 10, 1)
        # A reward is 1, so that the mean return is that of the length.
        tenths = ended[:, :tenth], ended[:, -tenth:]
        returns.append([float(tenth.size / jnp.maximum(tenth.sum(), 1)) for tenth in tenths])
    print(
        json.dumps(
            {
                "geometry": given.geometry,
                "members": given.members,
                "env_steps_per_s": statistics.median(speeds),
                "compile_s": compile_s,
                "repeats": speeds,
                "returns": returns,
            }
        )
    )


if __name__ == "__main__":
    main()
