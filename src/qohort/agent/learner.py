"""`QLearning`: DQN for a cohort, from the environment's step to the optimiser's.

In the order things happen: `collect` steps every environment into the replay, `training_step` takes a batch
and makes one update, `between_steps` evaluates and saves when that is due. The replay's dataset drives it.
"""

from __future__ import annotations

import inspect
import math
import time
from collections.abc import Callable, Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np
import pytorch_lightning as pl
import torch
from hydra.utils import instantiate
from numpy.typing import NDArray
from torch import Tensor

from qohort.agent.bootstrap import Bootstrap
from qohort.agent.dataset import ReplayDataset
from qohort.agent.evaluation import Evaluator
from qohort.agent.heads import Head
from qohort.agent.optimizers import MemberOptimizer
from qohort.agent.q_values import QValues, network_maker
from qohort.agent.td_loss import TDLoss
from qohort.agent.update import Update, UpdateResult
from qohort.cohort.held import across_members, per_member
from qohort.cohort.noise import Noise
from qohort.cohort.program import CohortNetwork
from qohort.cohort.schedules import Constant, Progress
from qohort.cohort.streams import UniformStream
from qohort.config.errors import Interrupted
from qohort.config.members import FOLDABLE
from qohort.config.schema import TrainConfig
from qohort.environments.episodes import EpisodeStatistics
from qohort.environments.making import make_environment
from qohort.environments.preprocessing import Preprocessing
from qohort.environments.vector import EpisodicVectorEnv, episode_seeds
from qohort.replay.base import Batch, Replay, ReplaySpec
from qohort.runs.checkpoints import step_name
from qohort.runs.interruption import STOP


class Recorder(Protocol):
    """Takes each member's metrics."""

    def row(self, member: int, progress: Progress, metrics: dict[str, float]) -> None:
        """One row of one member."""

    def speed(self, env_steps: int) -> float:
        """env_steps a second of each member since the last call."""

    def state_dict(self) -> dict[str, Any]:
        """How far each member's metrics were written."""

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Cut the metrics back to where `state` was taken."""


@runtime_checkable
class Watcher(Protocol):
    """A callback that wants to be called while environments step, with or without updates."""

    def on_env_steps(self, module: QLearning) -> None:
        """Called about every 100 env_steps of a member."""


BEHAVIOUR_EPSILON = "bootstrap.epsilon"
"""Held where the bootstrap's ε is to be that of the exploration."""


def held_numbers(members: Sequence[TrainConfig], device: torch.device) -> dict[str, Tensor]:
    """The numbers of an update that each member holds for itself, `[M]`, by their key in the configuration."""
    first = members[0]
    held = {}
    if first.max_grad_norm is not None:
        held["max_grad_norm"] = per_member([member.max_grad_norm or 0.0 for member in members], device)
    for key in FOLDABLE:
        group, _, name = key.partition(".")
        if group in ("target_network", "bootstrap") and name in getattr(first, group):
            held[key] = per_member([getattr(member, group)[name] for member in members], device)
    if "epsilon" in first.bootstrap and first.bootstrap["epsilon"] is None:
        held[BEHAVIOUR_EPSILON] = per_member([0.0] * len(members), device)
    return held


def is_of_output(name: str) -> bool:
    """Whether a parameter of this name belongs to a network's output layers: those of its submodule `output`."""
    return "output" in name.split(".")


class QLearning(pl.LightningModule):
    """A cohort of DQN agents.

    Args:
        members: The members' configurations; they differ in `seed`, and may in the keys of `qohort.config.members.FOLDABLE`.
        recorder: Takes the metrics.
        fail: Told of a member that has failed: which, at which env_steps, why.
    """

    def __init__(
        self, members: Sequence[TrainConfig], recorder: Recorder, fail: Callable[[int, int, str], None]
    ) -> None:
        super().__init__()
        self._fail = fail
        self.failed: set[int] = set()
        self.automatic_optimization = False
        self.members, self.recorder = members, recorder
        self.config = config = members[0]
        self.seeds = [member.seed for member in members]
        self.num_envs = config.env.num_envs

        makers = [lambda: make_environment(config.env)] * (len(members) * self.num_envs)
        seeds = episode_seeds(self.seeds, self.num_envs, "environments")
        self.environments = EpisodicVectorEnv(makers, seeds)
        space = self.environments.single_observation_space
        self.actions = int(self.environments.single_action_space.n)  # type: ignore[attr-defined]

        self.head: Head = instantiate(config.head)
        self.bootstrap: Bootstrap = instantiate(config.bootstrap)
        self._make_network = network_maker(config.network, space, self.actions, self.head)
        self.online = CohortNetwork(self._make_network, self.seeds)
        self.target_network = instantiate(config.target_network)
        self.target = self.online.frozen_copy() if self.target_network.separate else self.online

        self.exploration = across_members([instantiate(one.exploration, _convert_="all") for one in members])
        draws = (self.num_envs, self.exploration.draws(self.actions))
        self.uniforms = UniformStream(self.seeds, "exploration", draws)
        self.lr_schedule = across_members([instantiate(one.lr_schedule) for one in members])

        self.progress = Progress(config.budget, np.zeros(len(members), dtype=np.int64))
        self.episodes = EpisodeStatistics(len(members), self.num_envs)
        self.last_evaluation = np.full(len(members), np.nan)
        self.preprocessing = Preprocessing(members, space)
        self._observation = self.preprocessing.first(self._by_member(self.environments.reset()[0]))
        self._observed = torch.from_numpy(self._observation)  # the same memory
        self._place = torch.device("cpu")
        self._since = dict.fromkeys(("target", "log", "evaluation", "checkpoint", "report", "reset"), 0)

    # Lightning's hooks, in the order it calls them.

    def setup(self, stage: str) -> None:
        """Make what lives on the device, which is known only now."""
        device = self.trainer.strategy.root_device
        config = self.config
        gamma = per_member([member.gamma for member in self.members])
        space = self.environments.single_observation_space
        sizes = (self.num_envs, config.batch_size, config.train_every)
        spec = ReplaySpec(space, *sizes, gamma, self.seeds, config.budget, device, config.compile)
        self.replay: Replay = instantiate(config.replay, _partial_=True)(spec=spec)
        uses = ["online", "target"]
        if self.bootstrap.uses_online or self.bootstrap.adds_to_reward or self.head.fractions is not None:
            uses.append("policy")
        drawn = self.replay.drawn(config)
        self.noise = Noise(self.seeds, self.online.normals, self.head.fractions, uses, drawn, self.num_envs, device)
        self.evaluator = Evaluator(config.env, config.evaluation, self.seeds, device)

    def __setattr__(self, name: str, value: Any) -> None:
        """As of any module, but for the name of the running hook, which Lightning sets twenty times a batch."""
        if name == "_current_fx_name":
            self.__dict__[name] = value  # not looked at as a possible parameter, buffer or submodule
        else:
            super().__setattr__(name, value)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """One optimiser for the stacked parameters of all members."""
        lrs = [member.optimizer["lr"] for member in self.members]
        build = instantiate(self.config.optimizer, _partial_=True, _convert_="all")
        parameters = list(self.online.parameters())
        optimizer: torch.optim.Optimizer = build(parameters)
        if isinstance(optimizer, MemberOptimizer):
            optimizer.param_groups[0]["lr"].copy_(per_member(lrs))
        self._base_lr = np.array(lrs)
        return optimizer

    def train_dataloader(self) -> ReplayDataset:
        """Batches, which step the environments as they are drawn.

        Not in a `DataLoader`, which has nothing to collate or to distribute here, and costs more than drawing a batch.
        """
        return ReplayDataset(self)

    def transfer_batch_to_device(self, batch: Batch, device: torch.device, dataloader_idx: int) -> Batch:
        """Batches are made where the replay is: on the device."""
        return batch

    def on_train_start(self) -> None:
        """Build the lifted functions, on parameters and optimiser state as they are after any restore."""
        config, device = self.config, self.device
        self._place = device
        lightning_optimizer: Any = self.optimizers()
        self.optimizer = lightning_optimizer  # Lightning's wrapper: its step counts as global_step
        optimizer: torch.optim.Optimizer = lightning_optimizer.optimizer
        for group in optimizer.param_groups:
            group.update({key: value.to(device) for key, value in group.items() if isinstance(value, Tensor)})
        self.held = held_numbers(self.members, device)
        td_loss = TDLoss(self.online.member_forward, self.bootstrap, self.head)
        self.update = Update(
            td_loss, self.online, self.target, self.target_network, optimizer, self.held, config.compile
        )
        self.values = QValues(self.online, self.head, config.compile)
        self.evaluator.prepare(self.preprocessing.before(self.values))
        self._watchers = [one for one in self.trainer.callbacks if isinstance(one, Watcher)]  # type: ignore[attr-defined]
        self._set_learning_rate()
        self._saved = time.monotonic()

    def training_step(self, batch: Batch, batch_idx: int) -> None:
        """One update of every member."""
        if not isinstance(self.lr_schedule, Constant):
            self._set_learning_rate()
        result: UpdateResult | None = None

        if BEHAVIOUR_EPSILON in self.held:
            self.held[BEHAVIOUR_EPSILON].copy_(torch.from_numpy(self.exploration.parameter(self.progress)))
        batch = {**batch, **self.noise.for_update()}

        def closure() -> None:
            nonlocal result
            result = self.update(batch)

        self.optimizer.step(closure=closure)
        assert result is not None
        self.replay.feed_back(result.td_error)
        self.update.follow()
        self.progress.gradient_steps += 1
        if self._due("log", self.config.log_every):
            self._log_update(result)

    # Lightning reads the signature at every batch; found here, it need not be worked out each time.
    training_step.__signature__ = inspect.signature(training_step)  # type: ignore[attr-defined]

    def on_train_end(self) -> None:
        """Spend what is left of the budget after the last update, and evaluate the outcome."""
        while self.budget_left():
            self.between_steps()
            self.collect()
        self.between_steps()
        if self._since["evaluation"] != self.progress.env_steps:
            self.evaluate()
        self._check_weights()

    # The environment loop, driven by `ReplayDataset`.

    def collect(self) -> int:
        """Step every environment once into the replay; the number of updates due after it."""
        progress, exploration = self.progress, self.exploration
        parameter = exploration.parameter(progress)
        uniforms = self.uniforms.next()
        numbers = self.noise.for_acting()
        action = exploration.act(lambda: self._act_values(numbers), parameter, uniforms, self.actions)

        observation, reward, terminated, truncated, info = self.environments.step(action.ravel())
        reward = self._by_member(reward)
        terminated, truncated = self._by_member(terminated), self._by_member(truncated)
        next_observation = self._by_member(info.get("final_obs", observation))
        ended, observation = terminated | truncated, self._by_member(observation)
        shown = self.preprocessing.step(reward, ended, next_observation, observation)
        self.replay.add(self._observation, action, shown.reward, terminated, truncated, shown.next_observation)
        np.copyto(self._observation, shown.observation)

        progress.env_steps += self.num_envs
        self.episodes.add(reward)
        if "final_obs" in info:
            for m, score, length in self.episodes.end(ended):
                progress.episodes[m] += 1
                if m in self.failed:
                    continue
                self.recorder.row(m, progress, {"train/return": score, "train/length": length})
        return self.updates_by(progress.env_steps) - progress.gradient_steps

    def budget_left(self) -> bool:
        """Whether another step of the environments fits in the budget."""
        return self.progress.env_steps + self.num_envs <= self.config.budget

    def updates_by(self, env_steps: int) -> int:
        """Updates due within the first `env_steps`: `gradient_steps` at each multiple of `train_every`.

        The first are at the first multiple that is at least `learning_starts` and leaves the replay a batch.
        """
        every = self.config.train_every
        start = max(self.config.learning_starts, self.replay.needed(self.config))
        cycles = env_steps // every - (start - 1) // every
        return max(0, cycles) * self.config.gradient_steps

    def updates(self) -> int:
        """Updates in the whole budget."""
        return self.updates_by(self.config.budget // self.num_envs * self.num_envs)

    def between_steps(self) -> None:
        """Renew the target network, evaluate, save, report and reset, where it is due; before each step."""
        if self.target_network.every is not None and self._due("target", self.target_network.every):
            self.update.copy_target()
        if self._due("evaluation", self.config.evaluation.every):
            self.evaluate()
        if self._due("checkpoint", self.config.checkpoint.every) and not self.finished:
            self._save()
        if STOP.signal is not None and not self.finished:
            self._stop(STOP.signal)
        if self._due("report", 100):
            if time.monotonic() - self._saved > 60 * self.config.checkpoint.minutes:
                self._save()
            for callback in self._watchers:
                callback.on_env_steps(self)
        # Last: what is evaluated and saved here has learned. And not where no update would follow.
        due = self.config.reset_every is not None and self._due("reset", self.config.reset_every)
        if due and self.progress.gradient_steps < self.updates():
            self._reset_outputs()

    @torch.no_grad()
    def _reset_outputs(self) -> None:
        """Start the output layers anew, their targets and what the optimiser holds of them (Nikishin et al., 2022).

        Deviations: 1. the optimiser's count of steps goes on.
        """
        count = self.progress.env_steps // (self.config.reset_every or 1)
        fresh = dict(CohortNetwork(self._make_network, self.seeds, (count,)).network.named_parameters())
        optimizer: Any = self.optimizer
        for network in (self.online, self.target):
            for name, parameter in network.network.named_parameters():
                if not is_of_output(name):
                    continue
                parameter.copy_(fresh[name])
                for one in optimizer.state.get(parameter, {}).values():
                    if isinstance(one, Tensor) and one.shape == parameter.shape:
                        one.zero_()

    def _save(self) -> None:
        self.trainer.save_checkpoint(step_name(self.progress.env_steps))
        self._saved = time.monotonic()

    def _stop(self, reason: str) -> None:
        """End here, saved.

        Raises:
            Interrupted: Always.
        """
        at = f"interrupted by {reason} at {self.progress.env_steps:,} of {self.config.budget:,} env_steps"
        if self.progress.env_steps == 0:
            raise Interrupted(f"{at}: the same command starts over")
        self._save()
        command = "the same command" + (" without overwrite=true" if self.config.overwrite else "")
        raise Interrupted(f"{at}, and saved: {command} goes on from there")

    def evaluate(self) -> None:
        """Play greedy episodes with every member and log their mean return."""
        self._since["evaluation"] = self.progress.env_steps
        scores = self.evaluator(self.preprocessing.before(self.values), self.progress.env_steps)
        self.last_evaluation = scores.returns.mean(1)
        for m, mean in enumerate(self.last_evaluation.tolist()):
            if m in self.failed:
                continue
            length = float(scores.lengths[m].mean())
            self.recorder.row(m, self.progress, {"eval/return": mean, "eval/length": length})

    # State.

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add everything that changes while training and that Lightning does not know of."""
        progress = self.progress
        checkpoint["qohort"] = {
            "progress": {
                "env_steps": progress.env_steps,
                "gradient_steps": progress.gradient_steps,
                "episodes": torch.from_numpy(progress.episodes.copy()),
            },
            "episodes": self.episodes.state_dict(),
            "last_evaluation": torch.from_numpy(self.last_evaluation.copy()),
            "since": dict(self._since),
            "uniforms": self.uniforms.state_dict(),
            "noise": self.noise.state_dict(),
            "environments": self.environments.state_dict(len(self.members)),
            "preprocessing": self.preprocessing.state_dict(),
            "observation": torch.from_numpy(self._observation.copy()),
            "replay": {} if self.finished else self.replay.state_dict(),
            "recorder": self.recorder.state_dict(),
        }

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Put it back."""
        state = checkpoint["qohort"]
        progress = self.progress
        progress.env_steps = state["progress"]["env_steps"]
        progress.gradient_steps = state["progress"]["gradient_steps"]
        progress.episodes[:] = state["progress"]["episodes"].numpy()
        self.episodes.load_state_dict(state["episodes"])
        self.last_evaluation[:] = state["last_evaluation"].numpy()
        self._since = dict(state["since"])
        self.uniforms.load_state_dict(state["uniforms"])
        self.noise.load_state_dict(state["noise"])
        self.environments.load_state_dict(state["environments"])
        self.preprocessing.load_state_dict(state["preprocessing"])
        self._observation[:] = state["observation"].numpy()
        self.replay.load_state_dict(state["replay"])
        self.recorder.load_state_dict(state["recorder"])

    @property
    def finished(self) -> bool:
        """Whether the budget is spent."""
        return not self.budget_left()

    def _act_values(self, numbers: dict[str, Tensor]) -> NDArray[np.float64]:
        values: NDArray[np.float64] = self.values(self._observed.to(self._place), numbers).cpu().numpy()
        return values

    def _log_update(self, result: UpdateResult) -> None:
        parameter = self.exploration.parameter(self.progress)
        speed = self.recorder.speed(self.progress.env_steps)
        columns = (result.loss.tolist(), result.q_mean.tolist(), result.grad_norm.tolist(), parameter.tolist())
        for m, (loss, q_mean, grad_norm, value) in enumerate(zip(*columns, strict=True)):
            if m in self.failed:
                continue
            if not (math.isfinite(loss) and math.isfinite(q_mean)):
                self._give_up(m, f"diverged: loss {loss}, mean Q {q_mean}")
                continue
            metrics = {
                "train/loss": loss,
                "train/q_mean": q_mean,
                "train/grad_norm": grad_norm,
                f"train/{self.exploration.name}": value,
                "env_steps_per_s": speed,
            }
            self.recorder.row(m, self.progress, metrics)

    def _check_weights(self) -> None:
        """Fail the members that have diverged since the last row."""
        sound = torch.stack([one.isfinite().flatten(1).all(1) for one in self.online.parameters()]).all(0)
        for m, finite in enumerate(sound.tolist()):
            if not finite and m not in self.failed:
                self._give_up(m, "diverged: its weights are not finite")

    def _give_up(self, m: int, reason: str) -> None:
        self.failed.add(m)
        self._fail(m, self.progress.env_steps, reason)

    def _set_learning_rate(self) -> None:
        factor = self.lr_schedule(self.progress)
        group = self.optimizer.param_groups[0]
        if isinstance(group["lr"], Tensor):
            group["lr"].copy_(torch.from_numpy(self._base_lr * factor))
        else:
            group["lr"] = float(self._base_lr[0] * factor[0])

    def _due(self, what: str, every: int) -> bool:
        """Whether a multiple of `every` env_steps was reached since this was last true."""
        if self.progress.env_steps // every == self._since[what] // every:
            return False
        self._since[what] = self.progress.env_steps
        return True

    def _by_member(self, array: NDArray[Any]) -> NDArray[Any]:
        """`[M * E, ...]` as `[M, E, ...]`."""
        return array.reshape(len(self.members), self.num_envs, *array.shape[1:])

    @property
    def evaluated_at(self) -> int:
        """The env_steps of the newest evaluation."""
        return self._since["evaluation"]

    def close(self) -> None:
        """Close every environment."""
        self.environments.close()
        if hasattr(self, "evaluator"):
            self.evaluator.close()
