"""Trains the members of a configuration: checks them, resumes interrupted ones and writes their results."""

from __future__ import annotations

import contextlib
import logging
import shutil
import sys
import warnings
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import pytorch_lightning as pl
import torch
from hydra.utils import instantiate
from lightning_fabric.plugins.environments.lightning import LightningEnvironment
from omegaconf import DictConfig

from qohort.agent.learner import QLearning
from qohort.config.errors import Interrupted, RunsFailed
from qohort.config.identity import config_tree
from qohort.config.members import check_config
from qohort.runs.checking import check_accelerator, check_environment, check_tracking
from qohort.runs.checkpointing import Checkpointing
from qohort.runs.checkpoints import FINAL, MemberCheckpointIO, step_name
from qohort.runs.interruption import STOP
from qohort.runs.learning_curve import draw_run
from qohort.runs.loggers import RunInfo
from qohort.runs.manifest import command_line
from qohort.runs.members import Member, check_code, members_of, other_code
from qohort.runs.metrics import CohortRecorder
from qohort.runs.progress_bar import CohortProgress
from qohort.runs.summary import run_title, summarise


def train(config: DictConfig) -> list[dict[str, Any]]:
    """Train the members of a configuration that are not finished, and print a summary.

    Interrupted members are resumed from their newest checkpoint; those at the same step are trained together. Members
    that another process is training are skipped.

    Args:
        config: The composed configuration, `conf/train.yaml`.

    Returns:
        The content of `result.json` of each finished member.

    Raises:
        ConfigError: If the configuration is invalid; nothing was written.
        Interrupted: If a signal asked to stop; every member has a checkpoint.
        RunsFailed: If members have failed; the others are finished.
    """
    members = prepare(config)
    finish(members)
    finished = [member for member in members if member.directory.result() is not None]
    summarise([(member.config, member.directory) for member in finished])
    failures = [(member, member.directory.failure()) for member in members]
    reasons = [f"{member.directory.path}: {failure['reason']}" for member, failure in failures if failure is not None]
    if reasons:
        raise RunsFailed(
            f"{len(reasons)} of {len(members)} runs failed (retry_failed=true starts them over): " + "; ".join(reasons)
        )
    return [result for member in finished if (result := member.directory.result()) is not None]


def finish(members: Sequence[Member]) -> None:
    """Train the members that are not finished.

    Training continues without members that fail. Members that another process is training are skipped.

    Raises:
        Interrupted: If a signal asked to stop; every member has a checkpoint.
    """
    with STOP, contextlib.ExitStack() as locks:
        waiting: dict[int, list[Member]] = defaultdict(list)
        for member in members:
            if _lock_unfinished(member, locks):
                waiting[member.directory.resumable_step() or 0].append(member)
        for step in sorted(waiting, reverse=True):
            if STOP.signal is not None:
                raise Interrupted(f"interrupted by {STOP.signal}: run the same command to continue")
            train_cohort(waiting[step], step)


def _lock_unfinished(member: Member, locks: contextlib.ExitStack) -> bool:
    """Lock a member that has to be trained and return True; otherwise print the reason and return False.

    Args:
        member: The member.
        locks: Releases the lock.
    """
    directory, name = member.directory, f"seed {member.config.seed}"
    # A requeued SLURM job resumes its own runs even with overwrite=true.
    overwrite = member.config.overwrite and not directory.is_of_requeued_job()
    if directory.result() is not None and not overwrite:
        made = other_code(member)
        how = "finished already" if made is None else f"finished already, but made with other code ({made})"
        print(f"{name} is {how}: {directory.path} (overwrite=true starts over)")
        return False
    if not directory.lock():
        print(f"{name} is being trained by {directory.holder()}: {directory.path}")
        return False
    locks.callback(directory.unlock)
    if overwrite:
        shutil.rmtree(directory.path, ignore_errors=True)
    if directory.result() is not None:  # another process finished it before the lock was taken
        return False
    if directory.failure() is not None:
        if not member.config.retry_failed:
            print(f"{name} has failed: {directory.path} (retry_failed=true starts it over)")
            return False
        shutil.rmtree(directory.path)
    return True


def prepare(config: DictConfig) -> list[Member]:
    """Check a configuration and its environment, and return its members. Nothing is written.

    Args:
        config: The composed configuration.

    Raises:
        ConfigError: On the first mistake.
    """
    configs = check_config(config)
    check_accelerator(configs[0])
    check_tracking(configs[0])
    members = members_of(configs)
    check_code(members)
    check_environment(configs[0])
    return members


def train_cohort(members: Sequence[Member], step: int) -> None:
    """Train members that are at the same step until their budget is spent, and write their results.

    Args:
        members: The members. Their directories are prepared here.
        step: The env_steps of the checkpoint to resume from; 0 starts from the beginning.
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
        checkpoints.failed_members.add(m)
        print(f"seed {members[m].config.seed} failed at {env_steps:,} env_steps, {reason}", file=sys.stderr)
        if len(checkpoints.failed_members) == len(members):
            raise AllFailed

    failed, env_steps = True, 0
    module = None
    try:
        module = QLearning([member.config for member in members], recorder, fail)
        trainer = make_trainer(members, checkpoints)
        resume = OpenLoggers(members, recorder)
        trainer.callbacks.append(resume)  # type: ignore[attr-defined]
        trainer.fit(module, ckpt_path=step_name(step) if step else None)
        trainer.save_checkpoint(FINAL)
        env_steps = module.progress.env_steps
        failed = False
    except AllFailed:
        pass
    finally:
        recorder.finish({m for m in range(len(members)) if failed or m in checkpoints.failed_members})
        if module is not None:
            for member in members:
                member.directory.note_fallbacks(module.compiler.fallbacks)
            module.close()
    for m, member in enumerate(members):
        if m in checkpoints.failed_members:
            continue
        draw_run(member.directory.path / "learning_curve.png", member.directory.rows(), run_title(member.config))
        member.directory.write_result(member.config, env_steps)


class AllFailed(Exception):
    """All members of the cohort have failed."""


class OpenLoggers(pl.Callback):
    """Opens the loggers after the metrics are restored from the checkpoint, so that they get every row once.

    Args:
        members: The members of the cohort.
        recorder: Their metrics.
    """

    def __init__(self, members: Sequence[Member], recorder: CohortRecorder) -> None:
        self._members, self._recorder = members, recorder

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Open the loggers, and restore the signal handlers that Lightning has replaced."""
        STOP.listen()
        for member, log in zip(self._members, self._recorder.logs, strict=True):
            path, config = member.directory.path, member.config
            group = f"{path.parent.parent.name}/{path.parent.name}"
            run = RunInfo(path.name, group, config.agent, config_tree(config))
            for node in config.logger.values():
                log.open_sink(instantiate(node, _partial_=True, _convert_="all")(directory=path, run=run))


def make_trainer(members: Sequence[Member], checkpoints: MemberCheckpointIO) -> pl.Trainer:
    """Make Lightning's Trainer for a cohort. It trains one epoch, which is the budget.

    Args:
        members: The members of the cohort.
        checkpoints: Saves and loads their checkpoints.
    """
    first = members[0].config
    callbacks: list[pl.Callback] = [instantiate(node, _convert_="all") for node in first.callbacks.values()]
    callbacks += [Checkpointing(first), *([CohortProgress()] if first.trainer.progress_bar else [])]
    logging.getLogger("pytorch_lightning").setLevel(logging.WARNING)
    logging.getLogger("pytorch_lightning.profilers").setLevel(logging.INFO)  # a profiler's report
    warnings.filterwarnings("ignore", message=".*`IterableDataset` has `__len__` defined.*")
    warnings.filterwarnings("ignore", message=".*does not have many workers.*")
    warnings.filterwarnings("ignore", message=".*LeafSpec.*")
    warnings.filterwarnings("ignore", message=".*`srun` command is available.*")
    # The loop behind the dataset is restored exactly, but Lightning expects this state in the dataloader.
    warnings.filterwarnings("ignore", message=".*your dataloader is not resumable.*")
    return pl.Trainer(
        accelerator=first.trainer.accelerator,
        devices=1,
        max_epochs=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=first.trainer.enable_model_summary,
        profiler=first.trainer.profiler,
        detect_anomaly=first.trainer.detect_anomaly,
        deterministic=first.trainer.deterministic,
        benchmark=first.trainer.benchmark,
        callbacks=callbacks,
        # Always a single process: Lightning must not count SLURM's tasks or requeue its jobs.
        plugins=[checkpoints, LightningEnvironment()],
        default_root_dir=members[0].directory.path,
    )
