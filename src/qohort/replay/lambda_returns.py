"""λ-returns as targets: from blocks of a replay (DQN(λ)), and from rollouts without a replay (PQN).

Batches have the entry `target`, computed at the last call of `refresh`. The loss does not bootstrap.
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
from qohort.config.schema import TrainConfig
from qohort.config.targets import locate
from qohort.networks.branches import BranchedActions
from qohort.replay.base import ReplaySpec
from qohort.replay.ring import Ring, StoredSteps
from qohort.replay.storage import Storage
from qohort.replay.transition import Batch, Values

ROWS = 512
"""The maximum number of observations per member in one call of the networks."""


def lambda_returns(reward: Floats, discount: Floats, value: Floats, decay: Floats) -> Floats:
    """Compute λ-returns: G_t = r_t + d_t ((1 - λ_t) v_t + λ_t G_{t+1}) (Sutton, 1988).

    Args:
        reward: The reward r of each step, `[..., T]`.
        discount: The discount d of each step: γ, 0 where terminated, `[..., T]`.
        value: The value v of the observation after each step, see `state_values`, `[..., T]`.
        decay: λ of each step, `[..., T]`. It is 0 at the end of an episode, and where the return is cut. The last
            step bootstraps from its value, whatever its λ.

    Returns:
        The returns G, `[..., T]`.
    """
    returns = np.empty_like(reward)
    following = value[..., -1]
    for t in reversed(range(reward.shape[-1])):
        λ = decay[..., t]
        following = reward[..., t] + discount[..., t] * ((1 - λ) * value[..., t] + λ * following)
        returns[..., t] = following
    return returns


def traces(q_lambda: float, ended: NDArray[np.bool_], greedy: NDArray[np.bool_] | None) -> Floats:
    """Return λ_t for `lambda_returns`: Peng's Q(λ) (Peng & Williams, 1996), or Watkins's Q(λ) (Watkins, 1989).

    Args:
        q_lambda: λ.
        ended: Whether the episode ended with the step, `[..., T]`.
        greedy: Whether the action of the step is greedy, `[..., T]`. The return is cut before an action that is not
            greedy (Watkins). None for no cuts (Peng).
    """
    decay: Floats = np.where(ended, 0.0, q_lambda)
    if greedy is not None:
        decay[..., :-1] *= greedy[..., 1:]
    return decay


def other_targets(config: TrainConfig, name: str) -> str | None:
    """Return a message if a setting has no effect because the replay computes the targets, else None.

    Args:
        config: The configuration.
        name: The name of the replay, for the message.
    """
    head, bootstrap, target = (
        locate(getattr(config, key)["_target_"], f"{key}._target_") for key in ("head", "bootstrap", "target_network")
    )
    for key, compatible, choice in (
        ("head", getattr(head, "scalar", False), "squared or huber"),
        ("bootstrap", getattr(bootstrap, "maximum", False), "greedy"),
        ("target_network", not getattr(target, "separate", True), "none"),
    ):
        if not compatible:
            value = getattr(config, key)["_target_"]
            return f"{key}={value} has no effect on the returns that {name} computes: use {key}={choice}"
    return None


def in_rows(values: Values, observation: Tensor) -> Floats:
    """Compute action values `[M, N, A]` of observations `[M, N, ...]` in calls of at most `ROWS` observations.

    All calls have the same shape. The last one is padded.
    """
    count = observation.shape[1]
    size = min(count, ROWS)
    index = torch.arange(-(-count // size) * size, device=observation.device) % count
    pieces = [values(observation[:, part]) for part in torch.split(index, size)]
    return torch.cat(pieces, 1)[:, :count].cpu().numpy().astype(np.float64)


def state_values(q: Floats, branches: BranchedActions | None) -> Floats:
    """Return the values `[...]` of states from action values `[..., A]`: max_a Q, or its mean over branches."""
    of_branches = [q[..., part].max(-1) for part in ([slice(None)] if branches is None else branches.parts)]
    values: Floats = np.mean(of_branches, 0)
    return values


def is_greedy(q: Floats, action: NDArray[np.int64], branches: BranchedActions | None) -> NDArray[np.bool_]:
    """Return whether actions have the greatest of values `[..., A]`, in all branches."""
    greedy: NDArray[np.bool_]
    if branches is None:
        greedy = np.take_along_axis(q, action[..., None], -1)[..., 0] == q.max(-1)
    else:
        greedy = np.all([is_greedy(q[..., part], action[..., k], None) for k, part in enumerate(branches.parts)], 0)
    return greedy


class Permutations:
    """Samples indices without replacement for every member, from one random permutation after another.

    Args:
        spec: See `ReplaySpec`.
        size: The number of indices.
    """

    def __init__(self, spec: ReplaySpec, size: int) -> None:
        self._uniforms = UniformStream(spec.seeds, "replay", (size,), block=1)
        self._batch_size, self.size = spec.batch_size, size
        self.restart()

    def restart(self) -> None:
        """Start a new permutation at the next batch."""
        self._at = self.size

    def next(self) -> NDArray[np.int64]:
        """Return the next `[M, B]` indices. The rest of a permutation that does not fill a batch is dropped."""
        if self._at + self._batch_size > self.size:
            self._order = np.argsort(self._uniforms.next(), axis=1)
            self._at = 0
        index: NDArray[np.int64] = self._order[:, self._at : self._at + self._batch_size]
        self._at += self._batch_size
        return index

    def state_dict(self) -> dict[str, Any]:
        """Return the random stream and the current permutation."""
        order = torch.from_numpy(self._order) if self._at < self.size else None
        return {"uniforms": self._uniforms.state_dict(), "at": self._at, "order": order}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore the state that `state_dict` returned."""
        self._uniforms.load_state_dict(state["uniforms"])
        self._at = int(state["at"])
        if state["order"] is not None:
            self._order = state["order"].numpy()


class Targets:
    """Stores transitions with their targets, and samples batches from them without replacement.

    Args:
        spec: See `ReplaySpec`.
        size: The number of transitions per member.
    """

    def __init__(self, spec: ReplaySpec, size: int) -> None:
        self._permutations = Permutations(spec, size)
        self._members = torch.arange(len(spec.seeds), device=spec.device).unsqueeze(1)
        self._device = spec.device
        self.held: dict[str, Tensor] = {}

    def put(self, observation: Tensor, action: Tensor, target: Floats) -> None:
        """Replace the stored transitions.

        Args:
            observation: The observations, `[M, size, ...]`.
            action: The actions, `[M, size]`, or `[M, size, K]` with branches.
            target: The targets, `[M, size]`.
        """
        returns = torch.from_numpy(target).to(self._device, torch.float32)
        self.held = {"observation": observation, "action": action, "target": returns}
        self._permutations.restart()

    def batch(self) -> Batch:
        """Return the next batch, `[M, B]`."""
        index = torch.from_numpy(self._permutations.next()).to(self._device)
        return {name: tensor[self._members, index] for name, tensor in self.held.items()}

    def state_dict(self) -> dict[str, Any]:
        """Return the stored transitions and the state of the sampling."""
        held = {name: tensor.cpu().clone() for name, tensor in self.held.items()}
        return {"held": held, "permutations": self._permutations.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore the state that `state_dict` returned."""
        self.held = {name: tensor.to(self._device) for name, tensor in state["held"].items()}
        self._permutations.load_state_dict(state["permutations"])


class LambdaReplay(Ring):
    """The replay of DQN(λ): blocks of transitions whose λ-returns are refreshed at intervals (Daley & Amato, 2019).

    Every `refresh_every` env_steps, `blocks` blocks are sampled uniformly. A block is `block` consecutive steps of one
    environment. The λ-returns of its transitions are computed from the values of the online network, and end with the
    block (section 3). Until the next refresh, batches are sampled from these transitions without replacement, in as
    many passes as the updates need. No target network is used: choose `target_network=none`.

    Args:
        spec: See `ReplaySpec`.
        capacity: Transitions per member; see `Ring`.
        q_lambda: λ.
        block: The number of steps in a block.
        blocks: The number of blocks.
        refresh_every: The env_steps between refreshes.
        watkins: Whether a return is cut before an action that is not greedy (Watkins, 1989), and not only at the end
            of its episode (Peng & Williams, 1996).

    Deviations: 1. With the default settings, the updates between two refreshes make four passes over the blocks. The
    paper makes one. 2. Blocks are sampled uniformly. The paper's prioritised cache is not implemented.
    """

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
        super().__init__(spec, capacity, n_step=1, ended=True)
        self._rows = self.capacity // spec.num_envs
        self._lambda, self._block, self._blocks, self._watkins = q_lambda, block, blocks, watkins
        self._every, self._refreshed = refresh_every, -1
        self._places = UniformStream(spec.seeds, "replay", (blocks,), block=16, path=(1,))
        self._gamma = spec.gamma.numpy().astype(np.float64)[:, None, None]
        self._branches = spec.branches
        self._targets = Targets(spec, block * blocks)

    @classmethod
    def min_env_steps(cls, config: TrainConfig) -> int:
        """Return the env_steps after which each environment has a block of steps."""
        return int(config.replay["block"]) * config.env.num_envs

    @classmethod
    def incompatibility(cls, config: TrainConfig) -> str | None:
        """Return a message if a batch is larger than all blocks, a block does not fit, or a setting has no effect."""
        size = config.replay["block"] * config.replay["blocks"]
        if config.batch_size > size:
            return (
                f"batch_size={config.batch_size} is more than the {size} transitions in all blocks: "
                "raise replay.blocks or replay.block"
            )
        return super().incompatibility(config) or other_targets(config, "LambdaReplay")

    def refresh(self, values: Values) -> None:
        """Sample new blocks and compute their returns, if this is due."""
        interval = self._added // self._every
        if interval == self._refreshed:
            return
        self._refreshed = interval
        slots = self._block_slots()
        flat = slots.reshape(len(slots), -1)
        sampled = self.storage.entries(flat)
        q = in_rows(values, sampled["next_observation"]).reshape(*slots.shape, -1)
        arrays = {name: sampled[name].cpu().numpy() for name in ("reward", "continues", "action", "ended")}
        reward, continues, action, ended = (one.reshape(*slots.shape, *one.shape[2:]) for one in arrays.values())
        greedy = None
        if self._watkins:  # the next observation of a step is the observation of the next step
            after_first = is_greedy(q[..., :-1, :], action[:, :, 1:], self._branches)
            greedy = np.concatenate([np.ones_like(ended[..., :1]), after_first], -1)
        decay = traces(self._lambda, ended, greedy)
        returns = lambda_returns(
            reward.astype(np.float64), self._gamma * continues, state_values(q, self._branches), decay
        )
        self._targets.put(sampled["observation"], sampled["action"], returns.reshape(flat.shape))

    def _block_slots(self) -> NDArray[np.int64]:
        """Sample the slots of new blocks, `[M, blocks, block]`."""
        stored = len(self) // self._num_envs
        starts = (stored - self._block + 1) * self._num_envs
        start = (self._places.next() * starts).astype(np.int64)
        row, environment = start // self._num_envs, start % self._num_envs
        oldest = self._added // self._num_envs % self._rows if self._added > self.capacity else 0
        rows = (oldest + row[..., None] + np.arange(self._block)) % self._rows
        slots: NDArray[np.int64] = rows * self._num_envs + environment[..., None]
        return slots

    def sample(self, progress: Progress) -> Batch:
        """Sample `[M, B]` transitions from the blocks, with their returns."""
        return self._targets.batch()

    def state_dict(self) -> dict[str, Any]:
        """Return the stored transitions, the blocks with their returns, and the random streams."""
        return {
            **super().state_dict(),
            "refreshed": self._refreshed,
            "places": self._places.state_dict(),
            "targets": self._targets.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore the state that `state_dict` returned."""
        super().load_state_dict(state)
        self._refreshed = int(state["refreshed"])
        self._places.load_state_dict(state["places"])
        self._targets.load_state_dict(state["targets"])


class Rollout(StoredSteps):
    """The rollouts of PQN: λ-returns over parallel environments, without a replay (Gallici et al., 2024, algorithm 1).

    A rollout is the `train_every` env_steps before a round of updates. Batches are sampled from it without replacement,
    in as many passes (epochs) as the round needs: `gradient_steps` = epochs x train_every / batch_size.

    Args:
        spec: See `ReplaySpec`.
        q_lambda: λ.

    Deviations: 1. A return ends with its episode, and bootstraps if the episode was truncated. 2. A round uses the
    learning rate at its end, so with `lr_schedule=linear` the last round has a learning rate of 0.
    """

    refillable = False  # a rollout starts at a multiple of `train_every`, a checkpoint may be in between

    def __init__(self, spec: ReplaySpec, q_lambda: Annotated[float, Range(0, 1)] = 0.65) -> None:
        size = spec.train_every
        super().__init__(Storage(spec, size, ended=True), spec.num_envs, size)
        self._shape = (len(spec.seeds), size // spec.num_envs, spec.num_envs)
        self._lambda, self._gamma = q_lambda, spec.gamma.numpy().astype(np.float64)[:, None, None]
        self._branches = spec.branches
        self._targets = Targets(spec, size)

    @classmethod
    def min_env_steps(cls, config: TrainConfig) -> int:
        """Return the length of a rollout."""
        return config.train_every

    @classmethod
    def incompatibility(cls, config: TrainConfig) -> str | None:
        """Return a message if the rollout cannot be split evenly, or if a setting has no effect."""
        for key, divisor in (("env.num_envs", config.env.num_envs), ("batch_size", config.batch_size)):
            if config.train_every % divisor:
                return (
                    f"train_every={config.train_every} is the length of a rollout: "
                    f"it must be a multiple of {key}={divisor}"
                )
        return other_targets(config, "Rollout")

    def refresh(self, values: Values) -> None:
        """Compute the returns of the rollout."""
        arrays = self.storage.arrays

        def by_time(array: NDArray[Any]) -> NDArray[Any]:
            """Reshape `[M, T * E]` to `[M, E, T]`."""
            return array.reshape(self._shape).transpose(0, 2, 1)

        value = by_time(state_values(in_rows(values, arrays["next_observation"]), self._branches))
        reward = by_time(arrays["reward"].cpu().numpy().astype(np.float64))
        discount = self._gamma * by_time(arrays["continues"].cpu().numpy())
        ended = arrays["ended"].cpu().numpy()
        returns = lambda_returns(reward, discount, value, traces(self._lambda, by_time(ended), None))
        flat = returns.transpose(0, 2, 1).reshape(ended.shape)
        self._targets.put(arrays["observation"].clone(), arrays["action"].clone(), flat)

    def sample(self, progress: Progress) -> Batch:
        """Sample `[M, B]` transitions from the rollout, with their returns."""
        return self._targets.batch()

    def state_dict(self) -> dict[str, Any]:
        """Return the current rollout, the targets of the previous one, and the random stream."""
        return {**super().state_dict(), "targets": self._targets.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore the state that `state_dict` returned."""
        super().load_state_dict(state)
        self._targets.load_state_dict(state["targets"])
