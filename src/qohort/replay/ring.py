"""The ring buffer that stores the newest transitions of a cohort, and uniform replay from it.

Each member samples with its own random stream, so its batches do not depend on the other members.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qohort.cohort.schedules import Progress
from qohort.cohort.streams import UniformStream
from qohort.config.annotations import PositiveInt
from qohort.config.schema import TrainConfig
from qohort.replay.base import Replay, ReplaySpec
from qohort.replay.frames import FrameStorage, stores_frames
from qohort.replay.storage import Storage
from qohort.replay.transition import Batch, Transition


class StoredSteps(Replay):
    """A replay that keeps its newest steps in a storage. Programs may write them in place in a `Storage`.

    Args:
        storage: The storage.
        num_envs: Environments per member, E.
        capacity: The number of slots after which the storage is written from the start again, a multiple of E.
    """

    def __init__(self, storage: Storage | FrameStorage, num_envs: int, capacity: int) -> None:
        self.storage, self.capacity = storage, capacity
        self._num_envs, self._added = num_envs, 0

    def add(self, transition: Transition) -> None:
        """Store one step of every environment."""
        self.storage.write(self._added % self.capacity, transition)
        self._added += self._num_envs

    def added_after(self, steps: int) -> NDArray[np.int64]:
        """Return the transitions ever stored, now and after each of the next steps of all environments, `[1 + steps]`.

        Modulo `capacity`, each is the slot of the first environment in the step that follows.
        """
        return self._added + self._num_envs * np.arange(steps + 1)

    def written(self, steps: int) -> None:
        """Take note of steps of all environments that a program has stored."""
        self._added += steps * self._num_envs

    def truncate(self) -> None:
        """Mark the newest step of each environment as the end of its episode."""
        if self._added:
            self.storage.truncate((self._added - self._num_envs) % self.capacity, self._num_envs)

    @property
    def nbytes(self) -> int:
        """The size of the stored transitions of all members, in bytes."""
        return self.storage.nbytes

    def state_dict(self) -> dict[str, Any]:
        """Return the stored transitions and the number of those ever stored."""
        written = min(self._added, self.storage.slots)
        return {"transitions": self.storage.state_dict(written), "added": self._added}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore the state that `state_dict` returned."""
        self.storage.load_state_dict(state["transitions"])
        self._added = int(state["added"])


class Ring(StoredSteps):
    """A ring buffer of the newest transitions. Base class of the replays that sample from it.

    The final observation of each episode is stored, too. Termination and truncation are distinguished: only termination
    sets the discount to 0. Large observations are stored once, in a `FrameStorage`; others in a `Storage`.

    An n-step transition (Sutton, 1988; in DQN: Hessel et al., 2018) is built when it is sampled. Its reward is the
    discounted sum of rewards over n steps, or until the end of the episode if that comes first. Its next observation
    is the observation after the last of these steps. A window never crosses the end of an episode, terminated or
    truncated. It never crosses the end of the ring either: the newest n - 1 steps of each environment are not sampled
    before the steps that complete them are stored.

    Args:
        spec: See `ReplaySpec`.
        capacity: Transitions per member. Rounded down to a multiple of the number of environments, so that one step
            of all environments is stored in consecutive slots.
        n_step: The number of steps of a transition, n.
        ended: Whether the storage has the entry `ended` even for n = 1.
    """

    def __init__(self, spec: ReplaySpec, capacity: int, n_step: int, ended: bool = False) -> None:
        capacity = capacity // spec.num_envs * spec.num_envs
        self._batch_size = spec.batch_size
        self._incomplete = (n_step - 1) * spec.num_envs
        # Slots that the budget cannot fill are not allocated.
        slots = min(capacity, -(-spec.budget // spec.num_envs) * spec.num_envs)
        storage = (
            FrameStorage(spec, slots, n_step, capacity)
            if stores_frames(spec)
            else Storage(spec, slots, n_step, capacity, ended)
        )
        super().__init__(storage, spec.num_envs, capacity)

    def __len__(self) -> int:
        """The number of stored transitions per member."""
        return min(self._added, self.capacity)

    @property
    def complete(self) -> int:
        """The number of stored transitions per member that can be sampled. These are the oldest ones."""
        return len(self) - self._incomplete

    @classmethod
    def min_env_steps(cls, config: TrainConfig) -> int:
        """Return the env_steps after which `batch_size` transitions are complete."""
        return config.batch_size + (int(config.replay.get("n_step", 1)) - 1) * config.env.num_envs

    @classmethod
    def incompatibility(cls, config: TrainConfig) -> str | None:
        """Return a message if the capacity is too small for a batch."""
        capacity = config.replay["capacity"]
        minimum = cls.min_env_steps(config)
        if capacity // config.env.num_envs * config.env.num_envs >= minimum:
            return None
        needed = f"batch_size={minimum}" if minimum == config.batch_size else str(minimum)
        return f"replay.capacity={capacity} holds less than a batch: give at least {needed}"


class UniformReplay(Ring):
    """A ring buffer sampled uniformly with replacement (Lin, 1992; Mnih et al., 2015).

    Args:
        spec: See `ReplaySpec`.
        capacity: Transitions per member; see `Ring`.
        n_step: The number of steps of a transition, n.
    """

    def __init__(self, spec: ReplaySpec, capacity: PositiveInt, n_step: PositiveInt = 1) -> None:
        super().__init__(spec, capacity, n_step)
        self._uniforms = UniformStream(spec.seeds, "replay", (spec.batch_size,), block=64)

    def sample(self, progress: Progress) -> Batch:
        """Sample `[M, B]` transitions uniformly from those that are complete."""
        return self.storage.batch(self.draw(np.array([self._added]))[0])

    def draw(self, added: NDArray[np.int64]) -> NDArray[np.int64]:
        """Draw the slots of batches.

        Args:
            added: The transitions ever stored when each batch is drawn, `[n]`.

        Returns:
            The slots, `[n, M, B]`.
        """
        complete = np.minimum(added, self.capacity) - self._incomplete
        index: NDArray[np.int64] = (self._uniforms.take(len(added)) * complete[:, None, None]).astype(np.int64)
        if self._incomplete:  # once the ring is full, `index` counts from the oldest transition
            oldest = np.where(added > self.capacity, added, 0)
            index = (index + oldest[:, None, None]) % self.capacity
        return index

    def state_dict(self) -> dict[str, Any]:
        """Return the stored transitions, the position in the ring and the random stream."""
        return {**super().state_dict(), "uniforms": self._uniforms.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore the state that `state_dict` returned."""
        super().load_state_dict(state)
        self._uniforms.load_state_dict(state["uniforms"])
