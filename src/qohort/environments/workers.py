"""Environments in processes of their own: `env.workers=n` steps slow ones side by side.

An episode is a function of its seed and its actions, so it does not matter which process plays it, and no bit changes.
Each process steps a part of the environments with an `EpisodicVectorEnv`. Actions, and what comes back, are in shared
memory.
"""

from __future__ import annotations

import contextlib
import itertools
import math
import multiprocessing
import signal
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection
from multiprocessing.util import Finalize
from typing import Any

import numpy as np
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space
from numpy.typing import NDArray

from qohort.config.schema import EnvironmentConfig
from qohort.environments.checked import INFO_METRICS, LIFE_LOST, in_words
from qohort.environments.making import make_environment
from qohort.environments.vector import EpisodicVectorEnv, MemberFailure, episode_seeds

CONTEXT = multiprocessing.get_context("spawn")  # a fork would copy the locks of PyTorch's threads
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1)
"""What a terminal or SLURM sends to all processes. The process of the agent alone answers them, by saving."""


class WorkerEnded(RuntimeError):
    """A process that steps environments has ended, or raised an error that is not of its environment."""


@dataclass
class Shared:
    """Shared memory of all environments, as raw arrays that processes inherit.

    Args:
        count: The number of environments, N.
        space: The observation space of one environment.
        action_space: Its action space.
        metrics: The number of `info_metrics`.
    """

    count: int
    space: spaces.Space[Any]
    action_space: spaces.Space[Any]
    metrics: int = 0

    def __post_init__(self) -> None:
        """Allocate the memory."""
        self._memory = {
            name: CONTEXT.RawArray("b", self.count * math.prod(shape) * np.dtype(dtype).itemsize)
            for name, (shape, dtype) in self._layout.items()
        }

    @property
    def _layout(self) -> dict[str, tuple[tuple[int, ...], Any]]:
        observation = (tuple(self.space.shape or ()), self.space.dtype)
        return {
            **({INFO_METRICS: ((self.metrics,), np.float64)} if self.metrics else {}),
            "action": (tuple(self.action_space.shape or ()), np.int64),
            "observation": observation,
            "final": observation,
            "reward": ((), np.float64),
            "terminated": ((), np.bool_),
            "truncated": ((), np.bool_),
            LIFE_LOST: ((), np.bool_),
        }

    def arrays(self) -> dict[str, NDArray[Any]]:
        """Return the arrays `[N, ...]` in this process."""
        return {
            name: np.frombuffer(self._memory[name], dtype).reshape(self.count, *shape)
            for name, (shape, dtype) in self._layout.items()
        }


class WorkerVectorEnv(VectorEnv[Any, Any, Any]):
    """Steps the environments of a cohort in several processes, and is otherwise an `EpisodicVectorEnv`.

    Its state is that of an `EpisodicVectorEnv`, so a run may be resumed with another number of processes.

    Args:
        config: The environment. `workers` is the number of processes; there is at most one per environment.
        seeds: The members' seeds.
        stream: The random stream of the episodes' seeds.
        info_metrics: The names of numbers that the info of an episode's last step has.
    """

    def __init__(
        self, config: EnvironmentConfig, seeds: Sequence[int], stream: str, info_metrics: Sequence[str] = ()
    ) -> None:
        self.num_envs, self._size = len(seeds) * config.num_envs, config.num_envs
        example = make_environment(config)
        self.single_observation_space: spaces.Space[Any] = example.observation_space
        self.single_action_space: spaces.Space[Any] = example.action_space
        self.metadata = {**example.metadata, "autoreset_mode": AutoresetMode.SAME_STEP}
        self.render_mode = None
        example.close()
        self.observation_space = batch_space(self.single_observation_space, self.num_envs)
        self.action_space = batch_space(self.single_action_space, self.num_envs)
        spaces_of_one = self.single_observation_space, self.single_action_space
        shared = Shared(self.num_envs, *spaces_of_one, len(info_metrics))
        self._arrays = shared.arrays()
        self.observations = self._arrays["observation"]
        """The newest observations, `[num_envs, ...]`."""
        self.failures: dict[int, MemberFailure] = {}
        """The failures of members that nobody has taken yet, by index of the member."""
        self._stopped: set[int] = set()
        self._told = False
        workers = min(config.workers, self.num_envs)
        cuts = [self.num_envs * part // workers for part in range(workers + 1)]
        self._parts = [range(first, last) for first, last in itertools.pairwise(cuts)]
        self._pipes: list[Connection] = []
        self._processes = []
        # At an exit without `close`, processes end with their pipes, before multiprocessing waits for them.
        Finalize(self, _close, args=(self._pipes,), exitpriority=100)
        resource_tracker.ensure_running()  # whose start, by the first process, would unblock signals
        blocked = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)  # which the processes inherit
        try:
            for part in self._parts:
                pipe, theirs = CONTEXT.Pipe()
                arguments = (theirs, config, tuple(seeds), stream, tuple(info_metrics), part, shared)
                process = CONTEXT.Process(target=_work, args=arguments, daemon=True)
                process.start()
                theirs.close()
                self._pipes.append(pipe)
                self._processes.append(process)
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, blocked)

    def reset(
        self, *, seed: int | list[int | None] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[NDArray[Any], dict[str, Any]]:
        """Start the next episode of every environment; see `EpisodicVectorEnv.reset`."""
        if seed is not None:
            raise ValueError("episodes are seeded one by one: set episode_seed when creating the vector environment")
        self._ask("reset")
        return self.observations.copy(), {}

    def step(
        self, actions: NDArray[np.int64]
    ) -> tuple[NDArray[Any], NDArray[np.float64], NDArray[np.bool_], NDArray[np.bool_], dict[str, Any]]:
        """Step every environment; see `EpisodicVectorEnv.step`."""
        self._arrays["action"][:] = actions
        ended = self._ask("step")
        info: dict[str, Any] = {LIFE_LOST: self._arrays[LIFE_LOST]}
        if any(ended):
            for part, has_ended in zip(self._parts, ended, strict=True):
                if not has_ended:
                    self._arrays["final"][part] = self.observations[part]
            info["final_obs"] = self._arrays["final"]
            if INFO_METRICS in self._arrays:
                info[INFO_METRICS] = self._arrays[INFO_METRICS]
        reward, terminated, truncated = (self._arrays[name] for name in ("reward", "terminated", "truncated"))
        return self.observations, reward, terminated, truncated, info

    def beyond_bounds(self) -> str | None:
        """Return, once, a float that was beyond the bounds of the observation space since the last call."""
        if self._told:
            return None
        reason: str | None = next((one for one in self._ask("beyond_bounds") if one is not None), None)
        self._told = reason is not None
        return reason

    def state_dict(self) -> dict[str, Any]:
        """Return the state that `EpisodicVectorEnv.state_dict` returns."""
        single = [one for answer in self._ask("state_dict") for one in answer["members"]]
        groups = (single[first : first + self._size] for first in range(0, self.num_envs, self._size))
        return {"members": [{key: [one[key][0] for one in group] for key in group[0]} for group in groups]}

    def load_state_dict(self, state: Mapping[str, Any]) -> NDArray[Any]:
        """Restore the state; see `EpisodicVectorEnv.load_state_dict`."""
        keys = ("episodes", "actions", "observations")
        rows = [row for member in state["members"] for row in zip(*(member[key] for key in keys), strict=True)]
        single = [{key: [value] for key, value in zip(keys, row, strict=True)} for row in rows]
        self._ask("load_state_dict", [{"members": single[part.start : part.stop]} for part in self._parts])
        return self.observations.copy()

    def close_extras(self, **kwargs: Any) -> None:
        """Close every environment and end the processes."""
        for pipe in self._pipes:
            with contextlib.suppress(OSError):
                pipe.send(("close", None))
        for process in self._processes:
            process.join(timeout=10)
            if process.is_alive():
                process.kill()
        _close(self._pipes)

    def _ask(self, what: str, arguments: Sequence[Any] | None = None) -> list[Any]:
        """Have every process do something; return its answers, and stop the members whose environments have failed."""
        for worker, pipe in enumerate(self._pipes):
            with contextlib.suppress(OSError):  # its end is told by what it does not answer
                pipe.send((what, None if arguments is None else arguments[worker]))
        answers = [self._answer(worker) for worker in range(len(self._pipes))]
        failures = {part[i]: one for part, (_, failed) in zip(self._parts, answers, strict=True) for i, one in failed}
        for index in sorted(failures):
            member, environment = divmod(index, self._size)
            self.failures.setdefault(member, failures[index]._replace(environment=environment))
        new = {index // self._size for index in failures} - self._stopped
        if new:
            self._stopped |= new
            self._ask(
                "stop", [[i for i, index in enumerate(part) if index // self._size in new] for part in self._parts]
            )
        return [answer for answer, _ in answers]

    def _answer(self, worker: int) -> tuple[Any, list[tuple[int, MemberFailure]]]:
        """Return what a process answers, and the failures of its environments.

        Raises:
            WorkerEnded: If it has ended.
        """
        try:
            answer, failures = self._pipes[worker].recv()
        except (EOFError, OSError) as error:
            process, part = self._processes[worker], self._parts[worker]
            process.join(timeout=10)
            raise WorkerEnded(
                f"the process of the environments {part[0]} to {part[-1]} has ended with exit code {process.exitcode}"
            ) from error
        if isinstance(answer, Exception):
            raise answer
        return answer, failures


def _close(pipes: Sequence[Connection]) -> None:
    """Close pipes, whose processes then end."""
    for pipe in pipes:
        pipe.close()


def _work(
    pipe: Connection,
    config: EnvironmentConfig,
    seeds: Sequence[int],
    stream: str,
    info_metrics: Sequence[str],
    part: range,
    shared: Shared,
) -> None:
    """Step the environments of one process until it is told to close, or its parent has ended."""
    try:
        worker = _Worker(config, seeds, stream, info_metrics, part, shared)
    except Exception as error:
        with contextlib.suppress(OSError, EOFError):
            pipe.recv()
            pipe.send((_sendable(error), []))
        return
    with contextlib.suppress(EOFError, OSError):
        while True:
            what, argument = pipe.recv()
            if what == "close":
                break
            try:
                answer: Any = getattr(worker, what)() if argument is None else getattr(worker, what)(argument)
            except Exception as error:
                answer = _sendable(error)
            pipe.send((answer, worker.take_failures()))
    worker.close()


class _Worker:
    """The environments of one process, each a member of its own."""

    def __init__(
        self,
        config: EnvironmentConfig,
        seeds: Sequence[int],
        stream: str,
        info_metrics: Sequence[str],
        part: range,
        shared: Shared,
    ) -> None:
        seed_of = episode_seeds(seeds, config.num_envs, stream)
        makers = [lambda: make_environment(replace(config, workers=0))] * len(part)
        self._vector = EpisodicVectorEnv(
            makers, lambda index, episode: seed_of(part[index], episode), len(part), config.deterministic, info_metrics
        )
        self._shared = {name: array[part.start : part.stop] for name, array in shared.arrays().items()}
        self.state_dict, self.beyond_bounds = self._vector.state_dict, self._vector.beyond_bounds

    def reset(self) -> None:
        """Start the next episode of every environment."""
        self._shared["observation"][:] = self._vector.reset()[0]

    def step(self) -> bool:
        """Step every environment, and return whether an episode has ended."""
        *arrays, info = self._vector.step(self._shared["action"])
        for name, array in zip(("observation", "reward", "terminated", "truncated"), arrays, strict=True):
            self._shared[name][:] = array
        self._shared[LIFE_LOST][:] = info[LIFE_LOST]
        if "final_obs" in info:
            self._shared["final"][:] = info["final_obs"]
            if INFO_METRICS in self._shared:
                self._shared[INFO_METRICS][:] = info[INFO_METRICS]
        return "final_obs" in info

    def stop(self, indices: Sequence[int]) -> None:
        """Step some environments no more, since another one of their member has failed."""
        for index in indices:
            self._vector.stand_still(index)
            self._shared["observation"][index] = self._vector.observations[index]
            for name in ("reward", "terminated", "truncated", LIFE_LOST):
                self._shared[name][index] = 0

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore the state of every environment."""
        self._shared["observation"][:] = self._vector.load_state_dict(state)

    def take_failures(self) -> list[tuple[int, MemberFailure]]:
        """Return the failures since the last call, by index of the environment."""
        failures = list(self._vector.failures.items())
        self._vector.failures.clear()
        return failures

    def close(self) -> None:
        """Close every environment."""
        self._vector.close()


def _sendable(error: Exception) -> Exception:
    """Return an error as it is if it is one of ours, whose message is all it needs."""
    return error if type(error).__module__.startswith("qohort.") else WorkerEnded(in_words(error))
