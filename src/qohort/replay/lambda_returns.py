"""λ-returns as targets: from a replay's blocks (DQN(λ)) and from rollouts without a replay (PQN).

A batch of these has its `target`, made when the networks were looked at last; the loss bootstraps from nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from qohort.cohort.schedules import Floats, Progress
from qohort.cohort.streams import UniformStream
from qohort.config.annotations import PositiveInt, Range
from qohort.config.checks import locate
from qohort.config.schema import TrainConfig
from qohort.replay.base import Batch, Replay, ReplaySpec, Transition, Values
from qohort.replay.ring import Ring, Storage

ROWS = 512
"""Observations of a member that networks look at in one call."""


def lambda_returns(reward: Floats, discount: Floats, value: Floats, decay: Floats) -> Floats:
    """G_t = r_t + d_t ((1 - λ_t) v_t + λ_t G_{t+1}), where v_t is the value of what follows step t (Sutton, 1988).

    Args:
        reward: `[..., T]`.
        discount: γ, 0 where terminated.
        value: max_a Q of what was observed after the step.
        decay: λ_t, 0 where the return is not to be followed: at an episode's end, or where the next action is not
            greedy. After the last step there is nothing to follow.

    Returns:
        G, `[..., T]`.
    """
    returns = np.empty_like(reward)
    following = value[..., -1]
    for t in reversed(range(reward.shape[-1])):
        λ = decay[..., t]
        following = reward[..., t] + discount[..., t] * ((1 - λ) * value[..., t] + λ * following)
        returns[..., t] = following
    return returns


def traces(q_lambda: float, ended: NDArray[np.bool_], greedy: NDArray[np.bool_] | None) -> Floats:
    """λ_t for `lambda_returns`: Peng's Q(λ) (Peng & Williams, 1996), or with `greedy` Watkins's (1989).

    Args:
        q_lambda: λ.
        ended: Whether the episode ended with the step, `[..., T]`.
        greedy: Whether the step's own action is greedy, `[..., T]`: where the next one is not, the return is cut.
    """
    decay: Floats = np.where(ended, 0.0, q_lambda)
    if greedy is not None:
        decay[..., :-1] *= greedy[..., 1:]
    return decay


def other_targets(config: TrainConfig, name: str) -> str | None:
    """What in a configuration would have no effect, since a replay makes the targets; None for nothing.

    Args:
        config: The configuration.
        name: The replay.
    """
    head, bootstrap, target = (
        locate(getattr(config, key)["_target_"], f"{key}._target_") for key in ("head", "bootstrap", "target_network")
    )
    for key, fits, choice in (
        ("head", getattr(head, "scalar", False), "squared or huber"),
        ("bootstrap", getattr(bootstrap, "maximum", False), "greedy"),
        ("target_network", not getattr(target, "separate", True), "none"),
    ):
        if not fits:
            chosen = getattr(config, key)["_target_"]
            return f"{key}={chosen} has no effect on the returns that {name} makes: use {key}={choice}"
    return None


def in_rows(values: Values, observation: Tensor) -> Floats:
    """Action values `[M, N, A]` of observations `[M, N, ...]`, in calls of one shape; the last one is filled up."""
    count = observation.shape[1]
    size = min(count, ROWS)
    index = torch.arange(-(-count // size) * size, device=observation.device) % count
    pieces = [values(observation[:, part]) for part in torch.split(index, size)]
    return torch.cat(pieces, 1)[:, :count].cpu().numpy().astype(np.float64)


class Permutations:
    """Samples without replacement for every member: a permutation after the other, each from the member's stream.

    Args:
        spec: See `ReplaySpec`.
        size: The number of things.
    """

    def __init__(self, spec: ReplaySpec, size: int) -> None:
        self._uniforms = UniformStream(spec.seeds, "replay", (size,), block=1)
        self._batch_size, self.size = spec.batch_size, size
        self.restart()

    def restart(self) -> None:
        """Begin a new permutation at the next batch."""
        self._at = self.size

    def next(self) -> NDArray[np.int64]:
        """The next `[M, B]` indices; what is left of a permutation and is no whole batch is left out."""
        if self._at + self._batch_size > self.size:
            self._order = np.argsort(self._uniforms.next(), axis=1)
            self._at = 0
        index: NDArray[np.int64] = self._order[:, self._at : self._at + self._batch_size]
        self._at += self._batch_size
        return index

    def state_dict(self) -> dict[str, Any]:
        """The stream and the running permutation."""
        order = torch.from_numpy(self._order) if self._at < self.size else None
        return {"uniforms": self._uniforms.state_dict(), "at": self._at, "order": order}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue exactly where `state` was taken."""
        self._uniforms.load_state_dict(state["uniforms"])
        self._at = int(state["at"])
        if state["order"] is not None:
            self._order = state["order"].numpy()


class Targets:
    """Transitions with targets of their own, and batches of them.

    Args:
        spec: See `ReplaySpec`.
        size: Transitions of a member.
    """

    def __init__(self, spec: ReplaySpec, size: int) -> None:
        self._permutations = Permutations(spec, size)
        self._members = torch.arange(len(spec.seeds), device=spec.device).unsqueeze(1)
        self._device = spec.device
        self.held: dict[str, Tensor] = {}

    def put(self, observation: Tensor, action: Tensor, target: Floats) -> None:
        """Replace what is held: `[M, size, ...]`, `[M, size]`, `[M, size]`."""
        returns = torch.from_numpy(target).to(self._device, torch.float32)
        self.held = {"observation": observation, "action": action, "target": returns}
        self._permutations.restart()

    def batch(self) -> Batch:
        """The next `[M, B]` of them."""
        index = torch.from_numpy(self._permutations.next()).to(self._device)
        return {name: one[self._members, index] for name, one in self.held.items()}

    def state_dict(self) -> dict[str, Any]:
        """What is held, and how far it was drawn."""
        held = {name: one.cpu().clone() for name, one in self.held.items()}
        return {"held": held, "permutations": self._permutations.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue exactly where `state` was taken."""
        self.held = {name: one.to(self._device) for name, one in state["held"].items()}
        self._permutations.load_state_dict(state["permutations"])


class LambdaReplay(Ring):
    """DQN(λ): blocks of a replay whose λ-returns are made anew now and then (Daley & Amato, 2019, section 3).

    Every `refresh_every` env_steps `blocks` blocks are drawn uniformly, each `block` consecutive steps of one
    environment, and the online network's values give the λ-returns of their transitions, each return cut at the end of
    its block. Until the next time batches go through these without replacement, and again with another order as long
    as there are updates. A target network would have nothing to do: `target_network=none`.

    Args:
        spec: See `ReplaySpec`.
        capacity: Transitions a member, in env_steps; see `Ring`.
        q_lambda: λ.
        block: Steps of a block.
        blocks: How many there are.
        refresh_every: env_steps of a member after which they are drawn anew.
        watkins: Whether a return is cut before an action that is not greedy (Watkins, 1989), not only at the end of
            its episode (Peng & Williams, 1996).

    Deviations: 1. by the default settings the updates between two refreshes go through what is held four times, where
    the paper has one pass. 2. what is held is drawn uniformly; the paper's prioritised cache is left out.
    """

    makes_targets = True

    def __init__(
        self,
        spec: ReplaySpec,
        capacity: PositiveInt,
        q_lambda: Annotated[float, Range(0, 1)] = 0.75,
        block: PositiveInt = 100,
        blocks: PositiveInt = 40,
        refresh_every: PositiveInt = 500,
        watkins: bool = False,
    ) -> None:
        super().__init__(spec, capacity, n_step=1)
        self._rows = self.capacity // spec.num_envs
        self._lambda, self._block, self._blocks, self._watkins = q_lambda, block, blocks, watkins
        self._every, self._refreshed = refresh_every, -1
        self._places = UniformStream(spec.seeds, "replay", (blocks,), block=16, path=(1,))
        self._gamma = spec.gamma.numpy().astype(np.float64)[:, None, None]
        self._ended = np.zeros((len(spec.seeds), self._storage.slots), dtype=bool)
        self._targets = Targets(spec, block * blocks)

    @classmethod
    def min_env_steps(cls, config: TrainConfig) -> int:
        """As many env_steps as a block has in each environment."""
        return int(config.replay["block"]) * config.env.num_envs

    @classmethod
    def incompatibility(cls, config: TrainConfig) -> str | None:
        """Whether a batch is larger than all blocks, a block than the replay, or something else makes targets too."""
        held = config.replay["block"] * config.replay["blocks"]
        if config.batch_size > held:
            return (
                f"batch_size={config.batch_size} is more than the {held} transitions of replay.blocks of replay.block"
            )
        return super().incompatibility(config) or other_targets(config, "LambdaReplay")

    def add(self, transition: Transition) -> None:
        """Store one step of every environment."""
        slot = self._added % self.capacity
        self._ended[:, slot : slot + self._num_envs] = transition.ended
        super().add(transition)

    def refresh(self, values: Values) -> None:
        """Draw blocks and make their returns, where that is due."""
        due = self._added // self._every
        if due == self._refreshed:
            return
        self._refreshed = due
        slots = self._block_slots()
        flat = slots.reshape(len(slots), -1)
        drawn = {name: one[np.arange(len(slots))[:, None], flat] for name, one in self._storage.arrays.items()}
        q = in_rows(values, drawn["next_observation"]).reshape(*slots.shape, -1)
        reward, continues = (drawn[name].cpu().numpy().reshape(slots.shape) for name in ("reward", "continues"))
        action = drawn["action"].cpu().numpy().reshape(slots.shape)
        ended = np.take_along_axis(self._ended, flat, 1).reshape(slots.shape)
        greedy = None
        if self._watkins:  # what follows a step is what the next one began with
            chosen = np.take_along_axis(q[..., :-1, :], action[..., 1:, None], -1)[..., 0]
            greedy = np.concatenate([np.ones_like(ended[..., :1]), chosen == q[..., :-1, :].max(-1)], -1)
        decay = traces(self._lambda, ended, greedy)
        returns = lambda_returns(reward.astype(np.float64), self._gamma * continues, q.max(-1), decay)
        self._targets.put(drawn["observation"], drawn["action"], returns.reshape(flat.shape))

    def _block_slots(self) -> NDArray[np.int64]:
        """The slots of new blocks: `[M, blocks, block]`."""
        held = len(self) // self._num_envs
        starts = (held - self._block + 1) * self._num_envs
        place = (self._places.next() * starts).astype(np.int64)
        row, environment = place // self._num_envs, place % self._num_envs
        oldest = self._added // self._num_envs % self._rows if self._added > self.capacity else 0
        rows = (oldest + row[..., None] + np.arange(self._block)) % self._rows
        slots: NDArray[np.int64] = rows * self._num_envs + environment[..., None]
        return slots

    def sample(self, progress: Progress) -> Batch:
        """Draw `[M, B]` transitions of the blocks, with their returns."""
        return self._targets.batch()

    def state_dict(self) -> dict[str, Any]:
        """The transitions held, the blocks with their returns, and the streams."""
        return {
            **super().state_dict(),
            "ended": torch.from_numpy(self._ended[:, : len(self)].copy()),
            "refreshed": self._refreshed,
            "places": self._places.state_dict(),
            "targets": self._targets.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue exactly where `state` was taken."""
        super().load_state_dict(state)
        self._ended[:, : len(self)] = state["ended"].numpy()
        self._refreshed = int(state["refreshed"])
        self._places.load_state_dict(state["places"])
        self._targets.load_state_dict(state["targets"])


class Rollout(Replay):
    """PQN: λ-returns over a rollout of parallel environments, without a replay (Gallici et al., 2024, algorithm 1).

    A rollout is the `train_every` env_steps before a round of updates. Its batches go through it without replacement,
    and again with another order as long as the round has updates: `gradient_steps` = epochs x train_every / batch_size.

    Args:
        spec: See `ReplaySpec`.
        q_lambda: λ.

    Deviations: 1. a return ends with its episode, and a truncated one is bootstrapped from. 2. of a falling
    learning rate a round has that of its end, so with `lr_schedule=linear` the last round changes nothing.
    """

    makes_targets = True

    def __init__(self, spec: ReplaySpec, q_lambda: Annotated[float, Range(0, 1)] = 0.65) -> None:
        size = spec.train_every
        self._storage = Storage(spec, size)
        self._shape = (len(spec.seeds), size // spec.num_envs, spec.num_envs)
        self._ended = np.zeros((len(spec.seeds), size), dtype=bool)
        self._lambda, self._gamma = q_lambda, spec.gamma.numpy().astype(np.float64)[:, None, None]
        self._targets = Targets(spec, size)
        self._size, self._num_envs, self._added = size, spec.num_envs, 0

    @classmethod
    def min_env_steps(cls, config: TrainConfig) -> int:
        """A rollout."""
        return config.train_every

    @classmethod
    def incompatibility(cls, config: TrainConfig) -> str | None:
        """Whether environments or batches do not divide the rollout, or something else makes targets too."""
        for key, parts in (("env.num_envs", config.env.num_envs), ("batch_size", config.batch_size)):
            if config.train_every % parts:
                return f"train_every={config.train_every} is a rollout here: it must be a multiple of {key}={parts}"
        return other_targets(config, "Rollout")

    def add(self, transition: Transition) -> None:
        """Store one step of every environment."""
        slot = self._added % self._size
        self._ended[:, slot : slot + self._num_envs] = transition.ended
        self._storage.write(slot, transition)
        self._added += self._num_envs

    def refresh(self, values: Values) -> None:
        """Make the rollout's returns."""
        arrays = self._storage.arrays

        def by_time(array: NDArray[Any]) -> NDArray[Any]:
            """`[M, T E]` as `[M, E, T]`."""
            return array.reshape(self._shape).transpose(0, 2, 1)

        value = by_time(in_rows(values, arrays["next_observation"]).max(-1))
        reward = by_time(arrays["reward"].cpu().numpy().astype(np.float64))
        discount = self._gamma * by_time(arrays["continues"].cpu().numpy())
        returns = lambda_returns(reward, discount, value, traces(self._lambda, by_time(self._ended), None))
        flat = returns.transpose(0, 2, 1).reshape(self._ended.shape)
        self._targets.put(arrays["observation"].clone(), arrays["action"].clone(), flat)

    def sample(self, progress: Progress) -> Batch:
        """The next `[M, B]` transitions of the rollout, with their returns."""
        return self._targets.batch()

    def state_dict(self) -> dict[str, Any]:
        """The rollout so far, the targets of the one before, and the stream."""
        return {
            "transitions": self._storage.state_dict(min(self._added, self._size)),
            "ended": torch.from_numpy(self._ended.copy()),
            "added": self._added,
            "targets": self._targets.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue exactly where `state` was taken."""
        self._storage.load_state_dict(state["transitions"])
        self._ended[:] = state["ended"].numpy()
        self._added = int(state["added"])
        self._targets.load_state_dict(state["targets"])
