"""Rounds of tensor environments: acting, environment steps, replay and updates as programs that are played from a tape.

What `QLearning` does step by step with other environments is done here for many rounds at once: Python draws the random
numbers of a block of rounds, the programs run, and Python reads which episodes ended. A block ends where something else
is due, such as an evaluation. The programs are:

- a step: action values, actions, the environments, and the transitions' way into the ring;
- the drawing of a batch;
- the update, as elsewhere, and the target network that follows it.

The order of random numbers, and what is computed from them, do not depend on the length of blocks.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.func import vmap

from qohort.agent.acting import Actor
from qohort.agent.callbacks import CohortCallback, has_hook
from qohort.agent.optimizers import MemberOptimizer
from qohort.agent.q_values import MemberValues
from qohort.agent.results import UpdateResult
from qohort.agent.update import Update
from qohort.cohort.noise import Noise
from qohort.cohort.program import Compiler
from qohort.cohort.schedules import Floats, Progress
from qohort.cohort.tape import Call, Player, Slots
from qohort.environments.episodes import Episode
from qohort.environments.tensor.vector import TensorVectorEnv, advance
from qohort.replay.base import Replay
from qohort.replay.ring import StoredSteps, UniformReplay
from qohort.replay.storage import Storage, put

CALLS = 256
"""The calls of programs after which a block ends, if nothing ends it before."""

State = Mapping[str, Any]


class Rates(Protocol):
    """The learning rates of the next updates."""

    def __call__(self, progress: Progress) -> NDArray[np.float32]:
        """Return the learning rate of each member, `[M]`."""


def is_current(component: object, fast: str, plain: str) -> bool:
    """Return whether a component's method `fast` belongs to its method `plain`.

    A class of a user's that inherits both and replaces `plain` alone has a `fast` that does something else.
    """
    owners = [next((one for one in type(component).__mro__ if name in vars(one)), None) for name in (fast, plain)]
    return owners[0] is not None and owners[1] is not None and issubclass(owners[0], owners[1])


@dataclass
class Block:
    """Several rounds: the steps and updates to play, and where metrics of updates are due.

    Attributes:
        env_steps: The env_steps before the block.
        gradient_steps: The updates before the block.
        updates_after: The updates of the block that are done after each of its steps, `[steps]`.
        logged: The numbers of the updates, counted in the block, of which metrics are due.
    """

    env_steps: int
    gradient_steps: int
    updates_after: list[int] = field(default_factory=list)
    logged: list[int] = field(default_factory=list)

    @property
    def steps(self) -> int:
        """The number of steps of all environments."""
        return len(self.updates_after)

    @property
    def updates(self) -> int:
        """The number of updates."""
        return self.updates_after[-1] if self.updates_after else 0


class Steps:
    """The program that steps the environments of a cohort, with its inputs.

    Args:
        actor: Has the environments, the exploration and the statistics of episodes.
        values: The action values of one member.
        parameters: The online parameters.
        replay: Stores the transitions.
        compiler: Compiles the program.
        device: The device of the networks.
    """

    def __init__(
        self,
        actor: Actor,
        values: MemberValues,
        parameters: Mapping[str, Tensor],
        replay: StoredSteps,
        compiler: Compiler,
        device: torch.device,
    ) -> None:
        assert isinstance(actor.environments, TensorVectorEnv)
        self._actor, self._environments, self._replay, self.device = actor, actor.environments, replay, device
        self._values, self._choose, self._preprocess = values, actor.member_exploration.choose, actor.preprocessing
        self._state: dict[str, Any] = {
            "environment": self._environments.to(device),
            "observation": torch.from_numpy(actor.observation).to(device),
            "running": {name: tensor.to(device) for name, tensor in actor.statistics.running.items()},
            "online": parameters,
            "arrays": replay.storage.arrays,
        }
        self._program = compiler.program("the environments", self._step, self._state)
        self._slots: dict[str, Slots] = {}
        self.calls: list[Call] = []

    def fill(self, parameter: Floats, slots: NDArray[np.int64], noise: Mapping[str, Floats]) -> None:
        """Draw the random numbers of the next steps, and set the inputs of their calls.

        Args:
            parameter: The parameter of the exploration at each step, `[n, M]`.
            slots: The slot of the replay at each step, `[n]`.
            noise: The random numbers of the networks, `[n, M, ...]` each.
        """
        count, members = parameter.shape
        inputs: dict[str, NDArray[Any]] = {
            "uniforms": self._actor.uniforms.take(count),
            "parameter": parameter,
            "slot": np.broadcast_to(slots[:, None], (count, members)),
            **{name: array.astype(np.float32) for name, array in noise.items()},
        }
        if len(self.calls) < count:
            self._make_calls(count, inputs)
        for name, array in inputs.items():
            self._slots[name].fill(array)

    def episodes(self, count: int) -> Iterator[tuple[int, Episode]]:
        """Yield the episodes that ended in the steps just played, each with the number of its step."""
        ended = self._slots["ended"].read(count)
        which = np.argwhere(ended)
        if not len(which):
            return
        returns, lengths = self._slots["returns"].read(count), self._slots["lengths"].read(count)
        for step, m, e in which.tolist():
            record = self._actor.statistics.record
            yield step, record(m, float(returns[step, m, e]), int(lengths[step, m, e]))

    def to_host(self) -> None:
        """Copy what checkpoints save to the host, where it is not there already."""
        if self.device.type != "cpu":
            torch.from_numpy(self._actor.observation).copy_(self._state["observation"])
            for name, tensor in self._actor.statistics.running.items():
                tensor.copy_(self._state["running"][name])

    def _make_calls(self, count: int, inputs: Mapping[str, NDArray[Any]]) -> None:
        """Make slots and calls for at least `count` steps."""
        size = max(2 * len(self.calls), count)
        examples = {name: torch.from_numpy(array[0].copy()) for name, array in inputs.items()}
        examples |= {
            "ended": torch.zeros(self._state["running"]["lengths"].shape, dtype=torch.bool),
            **{name: torch.zeros_like(tensor) for name, tensor in self._actor.statistics.running.items()},
        }
        self._slots = {name: Slots(size, one.shape, one.dtype, self.device) for name, one in examples.items()}
        self.calls = [
            self._program.bind({name: slots.tensors[n] for name, slots in self._slots.items()}) for n in range(size)
        ]

    def _step(self, state: State, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Step all environments once; everything is written in place."""
        observation, running = state["observation"], state["running"]
        numbers = {name: inputs[name] for name in ("normal", "fractions") if name in inputs}
        values = vmap(self._values)(state["online"], {"observation": observation, **numbers})
        action = vmap(self._choose)(values, inputs["parameter"], inputs["uniforms"])
        new, outcome = advance(self._environments.environment, state["environment"], action)
        ended = outcome.terminated | outcome.truncated
        reward = outcome.reward.double()
        rows = {
            "observation": observation,
            "action": action,
            "reward": self._preprocess.scaled(reward),
            "continues": ~outcome.terminated,
            "next_observation": outcome.next_observation,
            "ended": ended,
        }
        put(state["arrays"], inputs["slot"], rows)
        returns, lengths = running["returns"] + reward, running["lengths"] + 1
        inputs["ended"].copy_(ended)
        inputs["returns"].copy_(returns)
        inputs["lengths"].copy_(lengths)
        running["returns"].copy_(torch.where(ended, 0.0, returns))
        running["lengths"].copy_(torch.where(ended, 0, lengths))
        for name, tensor in new.items():
            state["environment"][name].copy_(tensor)
        observation.copy_(outcome.observation)
        return {}


class Updates:
    """The programs that draw batches and update the members, with their inputs.

    Args:
        replay: The replay.
        update: The update.
        optimizer: The optimiser.
        compiler: Compiles the programs.
        device: The device of the networks.
    """

    def __init__(
        self,
        replay: UniformReplay,
        update: Update,
        optimizer: MemberOptimizer,
        compiler: Compiler,
        device: torch.device,
    ) -> None:
        assert isinstance(replay.storage, Storage)
        self._replay, self._storage = replay, replay.storage
        self._update, self._optimizer, self._device, self._compiler = update, optimizer, device, compiler
        self._slots: dict[str, Slots] = {}
        self.calls: list[list[Call]] = []
        """The calls of each update: the drawing of its batch, the update itself, and the target network's, if any."""

    def fill(self, added: NDArray[np.int64], rates: NDArray[np.float32], noise: Mapping[str, Floats]) -> None:
        """Draw the random numbers of the next updates, and set the inputs of their calls.

        Args:
            added: The transitions ever stored at each update, `[n]`.
            rates: The learning rates at each update, `[n, M]`.
            noise: The random numbers of the networks, `[n, M, ...]` each.
        """
        inputs: dict[str, NDArray[Any]] = {
            "index": self._replay.draw(added),
            **self._optimizer.ahead(rates),
            **{name: array.astype(np.float32) for name, array in noise.items()},
        }
        if len(self.calls) < len(added):
            self._make_calls(len(added), inputs)
        for name, array in inputs.items():
            self._slots[name].fill(array)

    def result(self, n: int) -> UpdateResult:
        """Return the statistics of update `n` of those just played."""
        result: UpdateResult = self.calls[n][1].results()
        return result

    def _make_calls(self, count: int, inputs: Mapping[str, NDArray[Any]]) -> None:
        """Make slots and calls for at least `count` updates."""
        size = max(2 * len(self.calls), count)
        examples = {name: torch.from_numpy(array[0].copy()) for name, array in inputs.items()}
        self._slots = {name: Slots(size, one.shape, one.dtype, self._device) for name, one in examples.items()}
        if not self.calls:
            state = self._storage.state
            example = self._storage.gather(state, self._slots["index"].tensors[0])
            drawn = {name: torch.empty_like(tensor) for name, tensor in example.items()}
            self._batch = self._storage.observed(drawn)
            self._draw = self._compiler.program("the drawing of batches", self._gather, {**state, "batch": drawn})
        self.calls = [self._calls(n) for n in range(size)]

    def _calls(self, n: int) -> list[Call]:
        inputs = {name: slots.tensors[n] for name, slots in self._slots.items()}
        index = inputs.pop("index")
        return [self._draw.bind(index), *self._update.bind({**self._batch, **inputs})]

    def _gather(self, state: State, index: Tensor) -> dict[str, Tensor]:
        """Write a batch for every member in place."""
        for name, tensor in self._storage.gather(state, index).items():
            state["batch"][name].copy_(tensor)
        return {}


def stepwise(actor: Actor, replay: Replay, callbacks: Sequence[CohortCallback]) -> str | None:
    """Return why rounds must be played one step at a time; None if they need not.

    Args:
        actor: Has the environments, the exploration and the preprocessing.
        replay: The replay.
        callbacks: The callbacks of the run.
    """
    if not isinstance(actor.environments, TensorVectorEnv):
        return "the environments are not tensors"
    if not isinstance(replay, StoredSteps):
        return f"replay={type(replay).__name__} does not keep its steps in a Storage"
    if not is_current(replay, "written", "add"):
        return f"{type(replay).__name__} has an add of its own"
    if not is_current(actor.member_exploration, "choose", "act"):
        return f"{type(actor.member_exploration).__name__} has no method choose of its own"
    if actor.preprocessing.normalizes:
        return "observations or rewards are normalised by running statistics"
    for callback in callbacks:
        if has_hook(callback, "on_env_step") and not callback.by_rounds:
            return f"{type(callback).__name__}.on_env_step is called at every step"
    return None


class Rounds:
    """Plays rounds of a cohort whose environments are tensors.

    Args:
        steps: Steps the environments.
        updates: Updates the members; None if they are updated from Python. Then a block ends before the first update.
        noise: The random numbers of the networks.
        replay: The replay.
        actor: Has the exploration.
        progress: The cohort's progress. It is advanced when the events of a block are told.
        updates_by: Returns the updates that are due within the first env_steps.
        rates: Returns the learning rates.
        next_event: Returns the env_steps at which a block ends at the latest.
        log_every: The env_steps between metrics of updates.
        one_by_one: Whether a block has one step only, because the next depends on the episodes that have ended.
    """

    def __init__(
        self,
        steps: Steps,
        updates: Updates | None,
        noise: Noise,
        replay: StoredSteps,
        actor: Actor,
        progress: Progress,
        updates_by: Callable[[NDArray[np.int64]], NDArray[np.int64]],
        rates: Rates,
        next_event: Callable[[], int],
        log_every: int,
        one_by_one: bool,
    ) -> None:
        self._steps, self._updates, self._noise, self._replay, self._actor = steps, updates, noise, replay, actor
        self._player = Player(steps.device)
        self._progress, self._updates_by, self._rates = progress, updates_by, rates
        self._next_event, self._log_every, self._one_by_one = next_event, log_every, one_by_one

    def plan(self, last_log: int) -> Block:
        """Draw the random numbers of the next block and return it.

        Args:
            last_log: The env_steps at which metrics of an update were last written.
        """
        progress, num_envs = self._progress, self._actor.num_envs
        start, updated = progress.env_steps, progress.gradient_steps
        longest = min(-(-(self._next_event() - start) // num_envs), (progress.budget - start) // num_envs, CALLS)
        after_step = start + num_envs * np.arange(1, 2 if self._one_by_one else longest + 1)
        updates_after = self._updates_by(after_step) - updated
        if self._updates is None:
            after_step = after_step[: np.argmax(updates_after > 0) + 1] if updates_after.any() else after_step
            updates_after = np.zeros_like(after_step)
        steps = max(1, int(np.sum(np.arange(1, len(after_step) + 1) + updates_after <= CALLS)))
        after_step, updates_after = after_step[:steps], updates_after[:steps]
        at_update = np.repeat(after_step, np.diff(updates_after, prepend=0))
        counted = np.concatenate([[last_log], at_update]) // self._log_every
        block = Block(start, updated, updates_after.tolist(), np.flatnonzero(np.diff(counted)).tolist())
        before_step = progress.at(after_step - num_envs, updated + np.concatenate([[0], updates_after[:-1]]))
        rates = self._rates(progress.at(at_update, updated + np.arange(block.updates)))
        self._fill(block, self._actor.exploration.parameter(before_step), rates)
        return block

    def _fill(self, block: Block, parameter: Floats, rates: NDArray[np.float32]) -> None:
        """Set the inputs of the programs of a block; a constant parameter or rate `[M]` stands for all of its steps."""
        members = len(self._progress.episodes)
        acting, updating = self._noise.ahead(block.steps, 0 if self._updates is None else block.updates)
        added = self._replay.added_after(block.steps)
        self._steps.fill(np.broadcast_to(parameter, (block.steps, members)), added[:-1] % self._replay.capacity, acting)
        if block.updates and self._updates is not None:
            new = np.diff(block.updates_after, prepend=0)
            rates = np.broadcast_to(rates, (block.updates, members))
            self._updates.fill(np.repeat(added[1:], new), rates, updating)

    def play(self, block: Block) -> None:
        """Run the programs of a block."""
        calls: list[Call] = []
        done = 0
        for step, after in enumerate(block.updates_after):
            calls.append(self._steps.calls[step])
            if self._updates is not None:
                calls += itertools.chain.from_iterable(self._updates.calls[done:after])
            done = after
        self._player.play(calls)
        self._replay.written(block.steps)
        self._steps.to_host()

    def tell(
        self, block: Block, on_episode: Callable[[Episode], None], on_update: Callable[[UpdateResult], None]
    ) -> None:
        """Tell what happened in a block that was played, in order, and advance the progress to its end.

        Args:
            block: The block.
            on_episode: Called for each episode that ended, with the progress at its end.
            on_update: Called for each update of which metrics are due, with the progress after it.
        """
        progress, num_envs = self._progress, self._actor.num_envs
        episodes = list(self._steps.episodes(block.steps))
        step_of = np.searchsorted(block.updates_after, block.logged, side="right")
        logs = [(int(step), n) for step, n in zip(step_of, block.logged, strict=True)]
        moments = sorted([(step, 0, i) for i, (step, _) in enumerate(episodes)] + [(step, 1, n) for step, n in logs])
        for step, is_update, which in moments:
            progress.env_steps = block.env_steps + (step + 1) * num_envs
            if is_update and self._updates is not None:
                progress.gradient_steps = block.gradient_steps + which + 1
                on_update(self._updates.result(which))
            else:
                progress.gradient_steps = block.gradient_steps + (block.updates_after[step - 1] if step else 0)
                on_episode(episodes[which][1])
        progress.env_steps = block.env_steps + block.steps * num_envs
        progress.gradient_steps = block.gradient_steps + block.updates
