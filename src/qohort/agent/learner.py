"""`QLearning`: DQN for a cohort as a LightningModule, from the environment step to the optimiser step.

Lightning's Trainer iterates over `ReplayDataset`, which repeats three calls until the budget is spent:

1. `between_steps` copies the target network, evaluates and calls the callbacks when this is due.
2. `collect` takes one step in every environment and stores the transitions in the replay.
3. `batches` samples the batches that are due. Lightning passes each of them to `training_step`, which updates every
   member once.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from hydra.utils import instantiate
from numpy.typing import NDArray
from torch import Tensor

from qohort.agent.acting import Actor
from qohort.agent.bootstrap import Bootstrap
from qohort.agent.branches import BranchedTDLoss
from qohort.agent.callbacks import CohortCallback, has_hook
from qohort.agent.dataset import ReplayDataset
from qohort.agent.evaluation import EpisodeScores, EvaluationStopped, Evaluator
from qohort.agent.heads import Head
from qohort.agent.optimizers import MemberOptimizer
from qohort.agent.q_values import QValues, network_maker
from qohort.agent.results import UpdateResult
from qohort.agent.rounds import Block, Rounds, Steps, Updates, is_current, stepwise
from qohort.agent.rows import Fail, Recorder, Rows
from qohort.agent.target_networks import TargetNetwork, unit_of
from qohort.agent.td_loss import TDLoss
from qohort.agent.tensor_evaluation import TensorEvaluator
from qohort.agent.update import Update
from qohort.agent.update_plan import UpdatePlan
from qohort.cohort.held import across_members, per_member
from qohort.cohort.kept_programs import KeptPrograms
from qohort.cohort.noise import Noise
from qohort.cohort.program import Compiler
from qohort.cohort.schedules import ConstantSchedule, Intervals, Progress, follows_episodes
from qohort.cohort.stacking import CohortNetwork, is_of_output
from qohort.cohort.state import Stateful, load_state, state_of
from qohort.config.errors import ConfigError
from qohort.config.folding import foldable_keys
from qohort.config.members import evaluation_environment
from qohort.config.schema import TrainConfig
from qohort.environments.frames import stored_frames
from qohort.environments.tensor.registry import tensor_environment
from qohort.environments.tensor.vector import TensorVectorEnv
from qohort.networks.packing import masks_of
from qohort.replay.base import Replay, ReplaySpec
from qohort.replay.ring import StoredSteps, UniformReplay
from qohort.replay.transition import Batch

STATE_FORMAT = 4
"""The format version of the entry `qohort` of a checkpoint."""
PER_UPDATE = ("training_step", "on_train_batch_start", "on_train_batch_end", "on_before_optimizer_step")
"""The hooks that Lightning calls once per update."""
BEHAVIOUR_EPSILON = "bootstrap.epsilon"
"""The key of the exploration's ε in `QLearning.held`, present if the bootstrap uses it."""


def held_numbers(members: Sequence[TrainConfig], bootstrap: Bootstrap, device: torch.device) -> dict[str, Tensor]:
    """Return the hyperparameters of the update that may differ between members, by configuration key.

    Args:
        members: The members' configurations.
        bootstrap: The bootstrap policy.
        device: The device of the returned tensors.

    Returns:
        One tensor `[M]` per key.
    """
    first = members[0]
    held = {}
    if first.max_grad_norm is not None:
        held["max_grad_norm"] = per_member([member.max_grad_norm or 0.0 for member in members], device)
    for key in foldable_keys(vars(first)):
        group, _, name = key.partition(".")
        if group in ("target_network", "bootstrap"):
            held[key] = per_member([getattr(member, group)[name] for member in members], device)
    if bootstrap.follows_exploration:
        held[BEHAVIOUR_EPSILON] = per_member([0.0] * len(members), device)
    return held


class QLearning(pl.LightningModule):
    """A cohort of DQN agents.

    Args:
        members: The members' configurations. They differ in `seed`, and may differ in the keys that
            `qohort.config.folding.foldable_keys` returns.
        recorder: Writes the metrics.
        fail: Called when a member fails.
        stop: Returns the name of the signal that asks to stop, if there was one.
        kept: The programs on the disk that need not be traced again; None for none.
    """

    def __init__(
        self,
        members: Sequence[TrainConfig],
        recorder: Recorder,
        fail: Fail,
        stop: Callable[[], str | None] = lambda: None,
        kept: KeptPrograms | None = None,
    ) -> None:
        super().__init__()
        self.automatic_optimization = False
        self._stop = stop
        self.members, self.recorder = members, recorder
        self.config = config = members[0]
        self.seeds = [member.seed for member in members]
        self.num_envs = config.env.num_envs

        threads = 1 if tensor_environment(config.env) is None else config.trainer.threads  # else they are PyTorch's
        self.compiler = Compiler(config.compile, stop, threads, kept)
        self.actor = Actor(members, self.compiler)
        self.head: Head = instantiate(config.head)
        self.bootstrap: Bootstrap = instantiate(config.bootstrap)
        self._make_network = network_maker(config.network, self.actor.space, self.actor.actions, self.head)
        self.online = CohortNetwork(self._make_network, self.seeds)
        self.target_network: TargetNetwork = instantiate(config.target_network)
        self.target = self.online.frozen_copy() if self.target_network.separate else self.online
        self.lr_schedule = across_members([instantiate(member.lr_schedule) for member in members])

        self.progress = Progress(config.budget, np.zeros(len(members), dtype=np.int64))
        self.intervals = Intervals(self.progress)
        self.rows = Rows(config.env.id, self.actor.space, recorder, self.progress, self.compiler, fail)
        self.failed = self.rows.failed
        self.last_evaluation = np.full(len(members), np.nan)
        """The mean return of each member's last evaluation, `[M]`; NaN before the first evaluation."""
        self._callbacks: list[CohortCallback] = []
        self._rounds: Rounds | None = None
        self._block: Block | None = None
        self._cached_device = torch.device("cpu")  # Lightning computes `device` at each access

    # Lightning's hooks, in the order in which Lightning calls them.

    def setup(self, stage: str) -> None:
        """Build the replay, the noise and the evaluator, which need the device that the Trainer selected."""
        device, config = self.trainer.strategy.root_device, self.config
        gamma = per_member([member.gamma for member in self.members])
        sizes = (self.num_envs, config.batch_size, config.train_every)
        frames = stored_frames(config, self.actor.space, isinstance(self.actor.environments, TensorVectorEnv))
        numbers = (*sizes, gamma, self.seeds, config.budget)
        spec = ReplaySpec(self.actor.space, *numbers, device, self.compiler, frames, self.actor.branches)
        self.replay: Replay = instantiate(config.replay, _partial_=True)(spec=spec)
        first = max(config.learning_starts, self.replay.min_env_steps(config))
        self.plan = UpdatePlan(config.train_every, config.gradient_steps, first)
        uses = ["online", "target"]
        if self.bootstrap.uses_online or self.bootstrap.adds_to_reward or self.head.fractions is not None:
            uses.append("policy")
        rows = self.replay.batch_size(config)
        self.noise = Noise(self.seeds, self.online.normals, self.head.fractions, uses, rows, self.num_envs, device)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Build one optimiser for the stacked parameters of all members."""
        self._base_lr = np.array([member.optimizer["lr"] for member in self.members])
        build = instantiate(self.config.optimizer, _partial_=True, _convert_="all")
        optimizer: torch.optim.Optimizer = build(list(self.online.parameters()))
        if isinstance(optimizer, MemberOptimizer):
            optimizer.param_groups[0]["lr"].copy_(torch.from_numpy(self._base_lr))
        return optimizer

    def train_dataloader(self) -> ReplayDataset:
        """Return the dataset that steps the environments and yields batches.

        It is not wrapped in a `DataLoader`: there is nothing to collate or distribute, and the overhead of a
        `DataLoader` would be larger than the cost of sampling a batch.
        """
        return ReplayDataset(self)

    def transfer_batch_to_device(self, batch: Batch, device: torch.device, dataloader_idx: int) -> Batch:
        """Return the batch unchanged, because the replay creates batches on the device."""
        return batch

    def on_train_start(self) -> None:
        """Build the compiled programs. At this point, any checkpoint has been restored."""
        device = self._cached_device = self.device
        lightning_optimizer: Any = self.optimizers()
        self.optimizer = lightning_optimizer  # Lightning's wrapper, whose step increments `global_step`
        optimizer: torch.optim.Optimizer = lightning_optimizer.optimizer
        for group in optimizer.param_groups:
            group.update({key: value.to(device) for key, value in group.items() if isinstance(value, Tensor)})
        self.held = held_numbers(self.members, self.bootstrap, device)
        masks, branches = masks_of(self.actor.space), self.actor.branches
        allowed = None if masks is None else masks.allowed
        parts = (self.online.member_forward, self.bootstrap, self.head, allowed)
        td_loss = TDLoss(*parts) if branches is None else BranchedTDLoss(*parts, branches=branches)
        networks = (self.online, self.target, self.target_network)
        self.update = Update(td_loss, *networks, optimizer, self.held, self.compiler)
        self.values = QValues(self.online, self.head, self.compiler, allowed)
        self.evaluator = self._make_evaluator()
        self.evaluator.prepare(self.actor.preprocessing.before(self.values))
        self._set_learning_rate()
        callbacks: list[pl.Callback] = self.trainer.callbacks  # type: ignore[attr-defined]
        self._callbacks = [callback for callback in callbacks if isinstance(callback, CohortCallback)]
        self._give_up_environments()
        self._rounds = self._make_rounds()

    def training_step(self, batch: Batch | Block, batch_idx: int) -> None:
        """Update every member once, or play a block of rounds."""
        if isinstance(batch, Block):
            self.optimizer.step(closure=partial(self._play, batch))
            return
        if not isinstance(self.lr_schedule, ConstantSchedule):
            self._set_learning_rate()
        if BEHAVIOUR_EPSILON in self.held:
            self.held[BEHAVIOUR_EPSILON].copy_(torch.from_numpy(self.actor.exploration.parameter(self.progress)))
        batch = {**batch, **self.noise.for_update()}
        result: UpdateResult = self.optimizer.step(closure=partial(self.update, batch))
        self.update.follow()
        self.replay.update_priorities(result.td_error)
        self.progress.gradient_steps += 1
        if self.intervals.due("log", self.config.log_every):
            self.rows.update(result, self.actor.exploration)

    # Lightning inspects the signature at every batch. Setting it here avoids the cost of the inspection.
    training_step.__signature__ = inspect.signature(training_step)  # type: ignore[attr-defined]

    def on_train_end(self) -> None:
        """Spend the env_steps that remain after the last update, and run the final evaluation.

        Raises:
            ConfigError: If a callback stopped training before the last update.
        """
        if self.progress.gradient_steps < self.updates():
            raise ConfigError(
                f"callbacks: one of them stopped training after {self.progress.gradient_steps:,} of {self.updates():,} "
                "updates, but a run ends with its budget: lower budget, or remove the callback"
            )
        while self.budget_left():
            self.between_steps()
            self.collect()
        self.between_steps()
        if self.evaluated_at != self.progress.env_steps:
            try:
                self.evaluate()
            except EvaluationStopped:
                self.between_steps()
                raise
        self.rows.flush()
        self.rows.give_up_diverged(self.online.parameters_by_name())

    # The environment loop, driven by `ReplayDataset`.

    def collect(self) -> int:
        """Step every environment once, store the transitions, and return the number of updates that are due.

        With rounds, plan a block of them instead, and return 1, or play it at once if it has no updates.
        """
        if self._rounds is not None:
            self._block = self._rounds.plan(self.intervals.last.get("log", 0))
            if self._block.updates:
                return 1
            self._play(self._block)
            return self.plan.due_by(self.progress.env_steps) - self.progress.gradient_steps
        numbers, progress = self.noise.for_acting(), self.progress
        transition, episodes = self.actor.step(
            lambda observation: self.values(observation.to(self._cached_device), numbers), progress
        )
        self.replay.add(transition)
        progress.env_steps += self.num_envs
        if self.actor.environments.failures:
            self._give_up_environments()
        if episodes:
            self.rows.report_beyond_bounds(self.actor.environments.beyond_bounds())
        for episode in episodes:
            self.rows.episode(episode)
        return self.plan.due_by(progress.env_steps) - progress.gradient_steps

    def batches(self, count: int) -> Iterator[Batch | Block]:
        """Yield the `count` batches of one round of updates, or the block that was planned."""
        if self._block is not None and self._block.updates:
            yield from [self._block] * count
            return
        if count:
            self.replay.refresh(self.values)
        for _ in range(count):
            yield self.replay.sample(self.progress)

    def _make_evaluator(self) -> Evaluator | TensorEvaluator:
        """Return what plays the evaluation episodes."""
        config, device, environments = self.config, self._cached_device, self.actor.environments
        # Normalised observations need the running statistics, which are not part of a program.
        env = evaluation_environment(config)
        tensor = tensor_environment(env) if isinstance(environments, TensorVectorEnv) else None
        if tensor is not None and not self.actor.preprocessing.normalizes:
            settings = (tensor, config.evaluation, self.seeds)
            networks = (self.values.of_member_without_noise, self.online.parameters_by_name())
            return TensorEvaluator(*settings, *networks, self.compiler, device)
        return Evaluator(env, config.evaluation, self.seeds, device, config.info_metrics)

    def _make_rounds(self) -> Rounds | None:
        """Return the programs that play many rounds at once, if the components of this run allow it."""
        reason = stepwise(self.actor, self.replay, self._callbacks)
        if reason is not None:
            if isinstance(self.actor.environments, TensorVectorEnv):
                print(f"qohort: {reason}, so the environments are stepped one round at a time", file=sys.stderr)
            return None
        assert isinstance(self.replay, StoredSteps)
        device, config = self._cached_device, self.config
        parameters = self.online.parameters_by_name()
        steps = Steps(self.actor, self.values.of_member, parameters, self.replay, self.compiler, device)
        optimizer = self.optimizer.optimizer
        updates = None
        # Others need Python between updates: priorities, other optimizers, the behaviour's ε, Lightning's hooks.
        callbacks: list[pl.Callback] = self.trainer.callbacks  # type: ignore[attr-defined]
        hooked = any(has_hook(callback, *PER_UPDATE[1:]) for callback in callbacks)
        plain = type(self.replay) is UniformReplay and BEHAVIOUR_EPSILON not in self.held and not hooked
        plain = plain and is_current(optimizer, "ahead", "advance")
        if isinstance(self.replay, UniformReplay) and plain and isinstance(optimizer, MemberOptimizer):
            updates = Updates(self.replay, self.update, optimizer, self.compiler, device)
        parts = (steps, updates, self.noise, self.replay, self.actor, self.progress, self.plan.due_by, self._rates)
        one_by_one = self.actor.follows_episodes or follows_episodes(self.lr_schedule)
        return Rounds(*parts, self._next_event, config.log_every, one_by_one)

    def _play(self, block: Block) -> None:
        """Play a block of rounds and write the rows of what happened in it."""
        assert self._rounds is not None
        self._rounds.play(block)
        self._rounds.tell(block, self.rows.episode, self._log_due)
        if not isinstance(self.lr_schedule, ConstantSchedule):
            self._set_learning_rate()

    def _log_due(self, result: UpdateResult) -> None:
        self.intervals.last["log"] = self.progress.env_steps
        self.rows.update(result, self.actor.exploration)

    def _rates(self, progress: Progress) -> NDArray[np.float32]:
        """Return the learning rate of each member, `[M]`."""
        rates: NDArray[np.float32] = (self._base_lr * self.lr_schedule(progress)).astype(np.float32)
        return rates

    def between_steps(self) -> None:
        """Copy the target network, evaluate, call the callbacks and reset the output layers, each when it is due."""
        if self.intervals.due("target", self.target_network.every, unit_of(self.target_network)):
            self.update.copy_target()
        before = self.evaluated_at
        if self.intervals.due("evaluation", self.config.evaluation.every):
            try:
                self.evaluate()
            except EvaluationStopped:  # a callback saves and ends the run, which evaluates when it is resumed
                self.intervals.last["evaluation"] = before
        for callback in self._callbacks:
            callback.on_env_step(self.trainer, self)
        # The reset comes last, so that evaluations and checkpoints at this step see the trained network. It is skipped
        # if no update would follow.
        if self.intervals.due("reset", self.config.reset_every) and self.progress.gradient_steps < self.updates():
            self._reset_outputs()

    def _next_event(self) -> int:
        """Return the env_steps at which `between_steps` next has something to do, at most the budget."""
        target, config, now = self.target_network, self.config, self.progress.env_steps
        every = [config.evaluation.every, config.checkpoint.every, config.reset_every]
        events = [config.budget]
        if target.every is not None and unit_of(target) == "gradient_steps":
            updates = (self.progress.gradient_steps // target.every + 1) * target.every
            events.append(max(self.plan.env_steps_of(updates), now + 1))
        else:
            every.append(target.every)
        return min([*events, *((now // one + 1) * one for one in every if one is not None)])

    def budget_left(self) -> bool:
        """Return whether another step of the environments fits in the budget."""
        return self.progress.env_steps + self.num_envs <= self.config.budget

    def updates(self) -> int:
        """Return the number of updates in the whole budget."""
        return self.plan.due_by(self.config.budget // self.num_envs * self.num_envs)

    def evaluate(self) -> None:
        """Play evaluation episodes with every member and log their mean return and length."""
        values = self.actor.preprocessing.before(self.values)
        scores: EpisodeScores = self.evaluator(values, self.progress.env_steps, self.failed, self._stop)
        self.intervals.last["evaluation"] = self.progress.env_steps
        for m, failure in scores.failures.items():
            self.rows.give_up_environment(m, failure, {"evaluation": True})
        self.rows.report_beyond_bounds(self.evaluator.beyond_bounds())
        self.last_evaluation = scores.returns.mean(1)
        for m in np.flatnonzero(~np.isfinite(self.last_evaluation)).tolist():
            if m not in self.failed:
                self.rows.give_up(m, f"evaluation return {self.last_evaluation[m]}")
        self.rows.evaluation(scores)
        for callback in self._callbacks:
            callback.on_evaluation_end(self.trainer, self, scores)

    @torch.no_grad()
    def _reset_outputs(self) -> None:
        """Re-initialise the output layers of the online and target networks (Nikishin et al., 2022).

        The optimiser state of these layers is set to zero.

        Deviations: 1. The step count of the optimiser is not reset.
        """
        count = self.progress.env_steps // (self.config.reset_every or 1)
        initial = dict(CohortNetwork(self._make_network, self.seeds, (count,)).network.named_parameters())
        for network in (self.online, self.target):
            for name, parameter in network.network.named_parameters():
                if not is_of_output(name):
                    continue
                parameter.copy_(initial[name])
                for value in self.optimizer.state.get(parameter, {}).values():
                    if isinstance(value, Tensor) and value.shape == parameter.shape:
                        value.zero_()

    # State: everything that changes during training and that Lightning does not save itself.

    @property
    def _parts(self) -> dict[str, Stateful]:
        parts: dict[str, Stateful] = {
            "progress": self.progress,
            "intervals": self.intervals,
            "actor": self.actor,
            "noise": self.noise,
            "recorder": self.recorder,
            "plan": self.plan,
        }
        saved = not self.finished and (self.config.checkpoint.replay or not self.replay.refillable)
        return {**parts, "replay": self.replay} if saved else parts

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add the state to the checkpoint. A finished run is saved without its replay."""
        checkpoint["qohort"] = {"format": STATE_FORMAT, **state_of(self._parts)}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Restore the state from the checkpoint.

        Raises:
            ConfigError: If the checkpoint has another format version.
        """
        state = checkpoint["qohort"]
        if state.get("format") != STATE_FORMAT:
            raise ConfigError(
                f"the checkpoint has format {state.get('format', 1)}, this version of Qohort reads {STATE_FORMAT}: "
                "continue with the version that wrote it, or start over with overwrite=true"
            )
        # After the last update the epoch is over. Lightning would skip training, and the rest of the budget with it.
        checkpoint["loops"]["fit_loop"]["epoch_progress"]["current"].update(processed=0, completed=0)
        load_state({"progress": self.progress}, state)  # which decides whether there is a replay
        parts = {name: part for name, part in self._parts.items() if name != "replay"}
        if "replay" in state:  # whatever checkpoint.replay is now
            parts["replay"] = self.replay
        load_state(parts, state)
        if "replay" not in state and not self.finished:
            self._fill_replay_anew()
        if not self.config.env.deterministic:
            self.replay.truncate()
        if self.finished:  # stopped in the final evaluation: Lightning must not take the epoch for done
            checkpoint["loops"]["fit_loop"]["epoch_loop.batch_progress"]["is_last_batch"] = False

    def _fill_replay_anew(self) -> None:
        """Continue from a checkpoint without a replay."""
        next_update = self.plan.wait_for_replay(self.progress)
        print(
            f"qohort: the checkpoint has no replay (checkpoint.replay=false), so there is no update before "
            f"{next_update:,} env_steps, and the result is not that of an uninterrupted run",
            file=sys.stderr,
        )

    @property
    def recent_returns(self) -> NDArray[np.float64]:
        """The moving average of each member's training returns, `[M]`; NaN before the first episode has ended."""
        return self.actor.statistics.recent

    @property
    def finished(self) -> bool:
        """Whether the budget is spent."""
        return not self.budget_left()

    @property
    def evaluated_at(self) -> int:
        """The env_steps at the last evaluation; 0 before the first evaluation."""
        return self.intervals.last.get("evaluation", 0)

    # Metrics.

    def log(self, name: str, value: Any, *_: Any, **__: Any) -> None:
        """Log a metric to the rows of every member. May be called in any hook of the module or of a callback.

        A metric that is logged at each update is written every `log_every` env_steps, with its latest value. Any other
        metric is written immediately.

        Args:
            name: The name of the metric, for example "train/feature_norm".
            value: One number for all members, or one per member as an array or tensor `[M]`.

        Raises:
            ValueError: If the name is one of `COUNTERS`.
        """
        self.rows.log(name, value, at_once=self._current_fx_name not in PER_UPDATE)

    def log_dict(self, dictionary: Mapping[str, Any], *_: Any, **__: Any) -> None:  # type: ignore[override]
        """Log several metrics; see `log`."""
        for name, value in dictionary.items():
            self.log(name, value)

    def _give_up_environments(self) -> None:
        """Mark the members whose environments have failed as failed."""
        failures = self.actor.environments.failures
        for m in sorted(failures.keys() - self.failed):
            environment, episode, failure = failures[m]
            self.rows.give_up_environment(m, failure, {"environment": environment, "episode": episode})
        failures.clear()

    def _set_learning_rate(self) -> None:
        factor = self.lr_schedule(self.progress)
        group = self.optimizer.param_groups[0]
        if isinstance(group["lr"], Tensor):
            group["lr"].copy_(torch.from_numpy(self._base_lr * factor))
        else:
            group["lr"] = float(self._base_lr[0] * factor[0])

    def __setattr__(self, name: str, value: Any) -> None:
        """Set an attribute. The name of the current hook, which Lightning sets 20 times per batch, has a fast path."""
        if name == "_current_fx_name":
            self.__dict__[name] = value  # skips the checks for parameters, buffers and submodules
        else:
            super().__setattr__(name, value)

    def close(self) -> None:
        """Close every environment."""
        self.actor.close()
        if hasattr(self, "evaluator"):
            self.evaluator.close()
