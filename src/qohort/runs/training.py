"""Training from a configuration: who is in the cohort, where it goes, and what it ends with."""

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
    summarise([(member.config, member.directory) for member in finished])
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
    members = members_of(configs)
    check_code(members)
    check_environment(configs[0])
    return members


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
            for member in members:
                member.directory.note_fallbacks(module.compiler.fallbacks)
            module.close()
    for m, member in enumerate(members):
        if m in checkpoints.left_out:
            continue
        draw_run(member.directory.path / "learning_curve.png", member.directory.rows(), run_title(member.config))
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
            run = RunInfo(path.name, group, config.agent, config_tree(config))
            for node in config.logger.values():
                log.open_sink(instantiate(node, _partial_=True, _convert_="all")(directory=path, run=run))


def make_trainer(members: Sequence[Member], checkpoints: MemberCheckpointIO) -> pl.Trainer:
    """Lightning's Trainer for a cohort: one epoch, which is the budget."""
    first = members[0].config
    callbacks: list[pl.Callback] = [instantiate(node, _convert_="all") for node in first.callbacks.values()]
    callbacks += [Checkpointing(first), *([CohortProgress()] if first.trainer.progress_bar else [])]
    logging.getLogger("pytorch_lightning").setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", message=".*`IterableDataset` has `__len__` defined.*")
    warnings.filterwarnings("ignore", message=".*does not have many workers.*")
    warnings.filterwarnings("ignore", message=".*LeafSpec.*")
    warnings.filterwarnings("ignore", message=".*`srun` command is available.*")
    # The loop behind the dataset is restored exactly; Lightning looks for that in the loader.
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
        # One process, whoever started it: Lightning must neither count SLURM's tasks nor queue its jobs again.
        plugins=[checkpoints, LightningEnvironment()],
        default_root_dir=members[0].directory.path,
    )
