"""Training from a configuration: who is in the cohort, where it goes, and what it ends with."""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import sys
import warnings
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from hydra.utils import instantiate
from lightning_fabric.plugins.environments.lightning import LightningEnvironment
from omegaconf import DictConfig
from rich.console import Console
from rich.table import Table

from qohort.agent.learner import QLearning, is_of_output
from qohort.agent.optimizers import MemberOptimizer, mixes_members
from qohort.agent.q_values import network_maker
from qohort.cohort.compilation import usable_mode
from qohort.cohort.program import CohortNetwork
from qohort.config.errors import ConfigError, Interrupted, RunsFailed
from qohort.config.identity import config_tree
from qohort.config.members import check_config
from qohort.config.messages import nearest
from qohort.config.schema import TrainConfig
from qohort.environments.making import check_spaces, make_environment
from qohort.runs.checkpoints import FINAL, MemberCheckpointIO, step_name
from qohort.runs.directory import RunDirectory
from qohort.runs.interruption import STOP
from qohort.runs.learning_curve import draw_cohort, draw_run
from qohort.runs.loggers import WANDB_MODES, Run
from qohort.runs.manifest import command_line
from qohort.runs.metrics import CohortRecorder
from qohort.runs.progress_bar import CohortProgress
from qohort.statistics import in_words


@dataclass
class Member:
    """A member of a cohort: what it is and where it goes."""

    config: TrainConfig
    directory: RunDirectory


def train(config: DictConfig) -> list[dict[str, Any]]:
    """Train what a configuration describes, as far as it is not finished; each finished member's `result.json`.

    Finished members are reported, interrupted ones resumed from their newest checkpoint, those that stand at
    the same step together. A member that another process trains is left to it.

    Raises:
        ConfigError: If the configuration is wrong; nothing was written then.
        Interrupted: If a signal asked to stop; every member is saved.
        RunsFailed: If members have failed; the others are finished.
    """
    members = prepare(config)
    finish(members)
    finished = [member for member in members if member.directory.result() is not None]
    summarise(finished)
    failures = [(member, member.directory.failure()) for member in members]
    reasons = [f"{member.directory.path}: {failure['reason']}" for member, failure in failures if failure is not None]
    if reasons:
        raise RunsFailed(f"{len(reasons)} of {len(members)} runs failed (retry_failed=true): " + "; ".join(reasons))
    return [result for member in finished if (result := member.directory.result()) is not None]


def finish(members: Sequence[Member]) -> None:
    """Train members as far as they are not finished; those that fail, and those of another process, are passed over.

    Raises:
        Interrupted: If a signal asked to stop; every member is saved.
    """
    with STOP, contextlib.ExitStack() as locks:
        waiting: dict[int, list[Member]] = defaultdict(list)
        for member in members:
            if _is_open(member, locks):
                waiting[member.directory.resumable_step() or 0].append(member)
        for step in sorted(waiting, reverse=True):
            if STOP.signal is not None:
                raise Interrupted(f"interrupted by {STOP.signal}: the same command does what is left")
            train_cohort(waiting[step], step)


def _is_open(member: Member, locks: contextlib.ExitStack) -> bool:
    """Whether there is something to train of a member, which is then locked; says why, where there is not."""
    directory, name = member.directory, f"seed {member.config.seed}"
    # A job that SLURM has queued again goes on with what it has itself begun.
    overwrite = member.config.overwrite and not directory.is_of_requeued_job()
    if directory.result() is not None and not overwrite:
        print(f"{name} is finished already: {directory.path} (overwrite=true starts over)")
        return False
    if not directory.lock():
        print(f"{name} is being trained by {directory.holder()}: {directory.path}")
        return False
    locks.callback(directory.unlock)
    if overwrite:
        shutil.rmtree(directory.path, ignore_errors=True)
    if directory.result() is not None:  # finished while we asked
        return False
    if directory.failure() is not None:
        if not member.config.retry_failed:
            print(f"{name} has failed: {directory.path} (retry_failed=true starts it over)")
            return False
        shutil.rmtree(directory.path)
    return True


def prepare(config: DictConfig) -> list[Member]:
    """Check everything that can be checked before any work is done.

    Raises:
        ConfigError: At the first mistake.
    """
    configs = check_config(config)
    check_accelerator(configs[0])
    check_tracking(configs[0])
    check_environment(configs[0])
    return members_of(configs)


def members_of(configs: Sequence[TrainConfig]) -> list[Member]:
    """The members with these configurations, and where they go."""
    mode: Any = usable_mode(configs[0].compile)
    ready = [replace(config, compile=mode) for config in configs]
    return [Member(config, RunDirectory.of(config)) for config in ready]


def check_environment(config: TrainConfig) -> None:
    """Make one environment and one network, to see that they fit together.

    Raises:
        ConfigError: If the environment cannot be made or played, or the network or the optimiser refuses.
    """
    check_optimizer(config)
    env = make_environment(config.env)
    try:
        check_spaces(config.env, env)
        if config.normalize_observations and getattr(env.observation_space.dtype, "kind", "") != "f":
            space = env.observation_space
            raise ConfigError(
                f"normalize_observations=true needs observations of floats: env.id={config.env.id} has {space}"
            )
        actions = int(env.action_space.n)  # type: ignore[attr-defined]
        make = network_maker(config.network, env.observation_space, actions, instantiate(config.head))
        names = CohortNetwork(make, [0]).parameters_by_name()
        if config.reset_every is not None and not any(map(is_of_output, names)):
            raise ConfigError(
                f"reset_every={config.reset_every} starts a submodule `output` anew, which "
                f"network={config.network['_target_']} has not: set it to null"
            )
    except (ValueError, TypeError) as error:
        if isinstance(error, ConfigError):
            raise
        reason = " ".join(str(error).split())
        raise ConfigError(reason if reason.startswith("network=") else f"network: {reason}") from error
    finally:
        env.close()


def check_optimizer(config: TrainConfig) -> None:
    """Try the optimiser on a few numbers.

    Raises:
        ConfigError: If it refuses its arguments, or a member's step would depend on the other members.
    """
    build = instantiate(config.optimizer, _partial_=True, _convert_="all")
    name = config.optimizer["_target_"]
    if "lr" not in config.optimizer:
        raise ConfigError(f"optimizer.lr has no value: {name} needs one")
    try:
        ours = isinstance(build.func, type) and issubclass(build.func, MemberOptimizer)
        mixes = mixes_members(build) if not ours else False
    except (ValueError, TypeError, RuntimeError, AssertionError) as error:
        raise ConfigError(f"optimizer={name}: {' '.join(str(error).split())}") from error
    if mixes:
        raise ConfigError(f"optimizer={name} looks at whole tensors, so members would not be independent: use another")


def check_accelerator(config: TrainConfig) -> None:
    """Refuse a GPU that is not there.

    Raises:
        ConfigError: If `trainer.accelerator=gpu` and torch sees none.
    """
    if config.trainer.accelerator == "gpu" and not torch.cuda.is_available():
        raise ConfigError("trainer.accelerator=gpu, but torch sees no GPU here: use cpu, or auto")


def check_tracking(config: TrainConfig) -> None:
    """Refuse a `WANDB_MODE` that W&B would refuse once training has begun.

    Raises:
        ConfigError: If there is no such mode.
    """
    mode = os.environ.get("WANDB_MODE", "offline")
    if "wandb" in config.logger and mode not in WANDB_MODES:
        raise ConfigError(f"WANDB_MODE={mode} is not one of W&B's modes: {nearest(mode, WANDB_MODES)}")


def train_cohort(members: Sequence[Member], step: int) -> None:
    """Train members that stand at the same step, from there to the end.

    Args:
        members: The members; each directory is made ready here.
        step: Where they stand, 0 for the beginning.
    """
    config = members[0].config
    torch.set_num_threads(config.trainer.threads)
    command = command_line()
    for member in members:
        member.directory.prepare(member.config, command, step)
    recorder = CohortRecorder([member.directory.metrics for member in members])
    checkpoints = MemberCheckpointIO([member.directory.path for member in members])

    def fail(m: int, env_steps: int, reason: str) -> None:
        members[m].directory.write_failure(env_steps, reason)
        checkpoints.left_out.add(m)
        print(f"seed {members[m].config.seed} failed at {env_steps:,} env_steps, {reason}", file=sys.stderr)
        if len(checkpoints.left_out) == len(members):
            raise AllFailed

    failed, env_steps = True, 0
    module = None
    try:
        module = QLearning([member.config for member in members], recorder, fail)
        trainer = make_trainer(members, checkpoints)
        resume = LoggersOpen(members, recorder)
        trainer.callbacks.append(resume)  # type: ignore[attr-defined]
        trainer.fit(module, ckpt_path=step_name(step) if step else None)
        trainer.save_checkpoint(FINAL)
        env_steps = module.progress.env_steps
        failed = False
    except AllFailed:
        pass
    finally:
        recorder.finish({m for m in range(len(members)) if failed or m in checkpoints.left_out})
        if module is not None:
            module.close()
    for m, member in enumerate(members):
        if m in checkpoints.left_out:
            continue
        draw_run(member.directory.path / "learning_curve.png", member.directory.rows(), _title(member.config))
        member.directory.write_result(member.config, env_steps)


class AllFailed(Exception):
    """No member is left to train."""


class LoggersOpen(pl.Callback):
    """Opens the loggers once the metrics are as the checkpoint left them, so that they get every row once.

    Args:
        members: The cohort.
        recorder: Its metrics.
    """

    def __init__(self, members: Sequence[Member], recorder: CohortRecorder) -> None:
        self._members, self._recorder = members, recorder

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Open them, and take the signals back from Lightning."""
        STOP.listen()
        for member, log in zip(self._members, self._recorder.logs, strict=True):
            path, config = member.directory.path, member.config
            group = f"{path.parent.parent.name}/{path.parent.name}"
            run = Run(path.name, group, config.agent, config_tree(config))
            for node in config.logger.values():
                log.open_sink(instantiate(node, _partial_=True, _convert_="all")(directory=path, run=run))


def make_trainer(members: Sequence[Member], checkpoints: MemberCheckpointIO) -> pl.Trainer:
    """Lightning's Trainer for a cohort: one epoch, which is the budget."""
    config = members[0].config.trainer
    logging.getLogger("pytorch_lightning").setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", message=".*`IterableDataset` has `__len__` defined.*")
    warnings.filterwarnings("ignore", message=".*does not have many workers.*")
    warnings.filterwarnings("ignore", message=".*LeafSpec.*")
    warnings.filterwarnings("ignore", message=".*`srun` command is available.*")
    # The loop behind the dataset is restored exactly; Lightning looks for that in the loader.
    warnings.filterwarnings("ignore", message=".*your dataloader is not resumable.*")
    return pl.Trainer(
        accelerator=config.accelerator,
        devices=1,
        max_epochs=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[CohortProgress()] if config.progress_bar else [],
        # One process, whoever started it: Lightning must neither count SLURM's tasks nor queue its jobs again.
        plugins=[checkpoints, LightningEnvironment()],
        default_root_dir=members[0].directory.path,
    )


def _title(config: TrainConfig) -> str:
    return f"{config.agent} on {config.env.name}, seed {config.seed}"


def summarise(finished: Sequence[Member]) -> None:
    """Print a table for each set of runs that differ only in their seed, and draw its curve."""
    alike: dict[Path, list[Member]] = defaultdict(list)
    for member in finished:
        alike[member.directory.path.parent].append(member)
    for parent, members in alike.items():
        _summarise_alike(parent, members)


def _summarise_alike(parent: Path, members: Sequence[Member]) -> None:
    """A row a seed, the IQM with its interval, and where everything is."""
    results = [result for member in members if (result := member.directory.result()) is not None]
    title = f"{members[0].config.agent} on {members[0].config.env.name}"
    console = Console(file=sys.stdout, width=None if sys.stdout.isatty() else 100)
    table = Table(title=title, title_justify="left")
    for heading in ("seed", "final return", "best return", "area under curve", "env_steps", "seconds"):
        table.add_column(heading, justify="right")
    for result in results:
        scores = (f"{result[key]:.1f}" for key in ("final_return", "best_return", "auc"))
        table.add_row(str(result["seed"]), *scores, f"{result['env_steps']:,}", f"{result['wall_s']:.1f}")
    console.print(table)
    finals = [result["final_return"] for result in results]
    if len(finals) > 1:
        print(f"final return: {in_words(finals)}, over {len(finals)} seeds")
        rows = [member.directory.rows() for member in members]
        draw_cohort(parent / "learning_curve.png", rows, title)
        print(f"learning curve of the cohort: {parent / 'learning_curve.png'}")
    for member in members:
        print(f"seed {member.config.seed}: {member.directory.path}")
