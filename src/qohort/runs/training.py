"""Trains the members of a configuration: checks them, resumes interrupted ones and writes their results."""

from __future__ import annotations

import contextlib
import logging
import sys
import traceback
import warnings
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import pytorch_lightning as pl
import torch
from hydra.utils import instantiate
from lightning_fabric.plugins.environments.lightning import LightningEnvironment
from omegaconf import DictConfig

from qohort.agent.learner import QLearning
from qohort.cohort.memory import keep_freed_memory
from qohort.config.errors import ConfigError, Interrupted, RunsFailed
from qohort.config.identity import config_tree
from qohort.environments.checked import in_words
from qohort.environments.tensor.registry import tensor_environment
from qohort.runs.checkpointing import Checkpointing, MemberCheckpointIO
from qohort.runs.checkpoints import FINAL, is_whole, load, step_name
from qohort.runs.directory import RunDirectory
from qohort.runs.evaluation_videos import EvaluationVideos
from qohort.runs.interruption import STOP
from qohort.runs.learning_curve import RunFigure
from qohort.runs.listing import in_words as numbers_in_words
from qohort.runs.loggers import RunInfo
from qohort.runs.manifest import command_line, in_sweep
from qohort.runs.members import Member, other_code
from qohort.runs.metrics import CohortRecorder
from qohort.runs.preparing import prepare
from qohort.runs.programs import kept_programs
from qohort.runs.progress_bar import CohortProgress
from qohort.runs.summary import run_title, summarise
from qohort.runs.trackers import open_sink
from qohort.runs.wandb_agent import agent_follows


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
    with agent_follows(members):
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
        waiting: dict[tuple[int, str], list[Member]] = defaultdict(list)
        for member in members:
            if not _lock_unfinished(member, locks):
                continue
            if is_whole(member.directory.final_checkpoint):
                finish_trained(member)
            else:
                waiting[_place(member.directory)].append(member)
        for place in sorted(waiting, reverse=True):
            if STOP.signal is not None:
                raise Interrupted(f"interrupted by {STOP.signal}: run the same command to continue")
            if place[0]:
                seeds = numbers_in_words([member.config.seed for member in waiting[place]])
                print(f"seed{'s' * (len(waiting[place]) > 1)} {seeds}: resumed at {place[0]:,} env_steps", flush=True)
            train_cohort(waiting[place], place[0])


def _place(directory: RunDirectory) -> tuple[int, str]:
    """Return the env_steps to resume from, and what the members of one cohort have in common there."""
    step = directory.resumable_step()
    if not step:
        return 0, ""
    state = load(directory.path / "checkpoints" / step_name(step))["qohort"]
    # Without a replay, the updates after an earlier resume were skipped.
    return step, repr((state.get("plan"), state["progress"]["gradient_steps"], "replay" in state))


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
        directory.set_aside()
    if directory.result() is not None:  # another process finished it before the lock was taken
        return False
    if directory.failure() is not None:
        if not member.config.retry_failed:
            print(f"{name} has failed: {directory.path} (retry_failed=true starts it over)")
            return False
        directory.set_aside()
    return True


def train_cohort(members: Sequence[Member], step: int) -> None:
    """Train members that are at the same step until their budget is spent, and write their results.

    Args:
        members: The members. Their directories are prepared here.
        step: The env_steps of the checkpoint to resume from; 0 starts from the beginning.
    """
    config = members[0].config
    environments = "gymnasium" if tensor_environment(config.env) is None else "tensor"
    # The threads of a cohort of tensor environments share its members out; PyTorch's own would change the bits.
    threads = config.trainer.threads if environments == "gymnasium" else 1
    torch.set_num_threads(threads)
    keep_freed_memory()
    command = command_line()
    for member in members:
        member.directory.prepare(member.config, command, step, environments)
    recorder = CohortRecorder([member.directory.metrics for member in members])
    checkpoints = MemberCheckpointIO([member.directory.path for member in members])
    failed_members = checkpoints.failed_members

    def fail(m: int, env_steps: int, reason: str, details: Mapping[str, Any]) -> None:
        members[m].directory.write_failure(env_steps, reason, details)
        failed_members.add(m)
        more = f"; its seed and its actions are in {members[m].directory.path / 'failed.json'}" if details else ""
        print(f"seed {members[m].config.seed} failed at {env_steps:,} env_steps, {reason}{more}", file=sys.stderr)
        if len(failed_members) == len(members):
            raise AllFailed

    failed = True
    module = None
    opened = OpenLoggers(members, recorder)
    with contextlib.ExitStack() as at_the_end:
        try:
            configs = [member.config for member in members]
            module = QLearning(configs, recorder, fail, lambda: STOP.signal, kept_programs(config))
            at_the_end.callback(module.close)  # after the results: closing an environment may take for ever
            torch.set_num_threads(threads)  # an environment may have set another number
            trainer = make_trainer(members, checkpoints)
            videos = [EvaluationVideos(members, recorder)] if config.evaluation.video_at else []
            trainer.callbacks.extend([opened, *videos])  # type: ignore[attr-defined]
            trainer.fit(module, ckpt_path=step_name(step) if step else None)
            if module.evaluated_at != module.progress.env_steps:
                raise RuntimeError("training ended without its final evaluation")
            trainer.save_checkpoint(FINAL)
            failed = False
        except AllFailed:
            pass
        except (ConfigError, Interrupted):
            raise
        except Exception as error:
            raise _stopped(members, module, error) from error
        finally:
            recorder.finish({m for m in range(len(members)) if failed or m in failed_members})
            for member in members:
                if module is not None:
                    member.directory.note_fallbacks(module.compiler.fallbacks)
                if not opened.started:
                    member.directory.restore()
        _write_results([member for m, member in enumerate(members) if m not in failed_members])


def _stopped(members: Sequence[Member], module: QLearning | None, error: Exception) -> RunsFailed:
    """Return, in one line, that an error has stopped the training of a cohort; its traceback goes to a file."""
    env_steps = 0 if module is None else module.progress.env_steps
    seeds = ", ".join(str(member.config.seed) for member in members)
    file = members[0].directory.path / "traceback.txt"
    try:
        file.write_text("".join(traceback.format_exception(error)))
        where = f"the traceback is in {file}"
    except OSError as reason:
        where = f"its traceback could not be written ({reason.strerror})"
    saved = members[0].directory.resumable_step()
    safe = "nothing was saved yet" if saved is None else f"the checkpoint of {saved:,} env_steps is safe"
    again = "starts over" if saved is None else "goes on from there"
    return RunsFailed(
        f"training of seed {seeds} stopped at {env_steps:,} env_steps by {in_words(error)}; {safe}; correct "
        f"the cause, then the same command {again}; {where}"
    )


def finish_trained(member: Member) -> None:
    """Write the result of a member that was trained to its end, but whose result was not written."""
    member.directory.tidy()
    checkpoint = load(member.directory.final_checkpoint)
    recorder = CohortRecorder([member.directory.metrics])
    recorder.load_state_dict(checkpoint["qohort"]["recorder"])
    open_loggers([member], recorder)
    recorder.finish(())
    _write_results([member])


def _write_results(members: Sequence[Member]) -> None:
    """Write the results of members that are trained, each whatever happens to the others.

    Raises:
        RunsFailed: If the result of a member could not be written.
    """
    problems, figure = [], None
    for member in members:
        path, config = member.directory.path, member.config
        try:
            try:
                figure = figure or RunFigure()  # here, since it may fail, too
                figure.draw(path / "learning_curve.png", member.directory.rows(), run_title(config))
            except Exception as error:
                print(f"qohort: {path / 'learning_curve.png'} could not be drawn: {in_words(error)}", file=sys.stderr)
            member.directory.write_result(config)
        except Exception as error:
            problems.append(f"seed {config.seed}: {in_words(error)}")
    if problems:
        raise RunsFailed(
            f"trained, but the result could not be written of {'; '.join(problems)}. The same command writes it"
        )


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
        self.started = False
        """Whether training has started, so that the runs it replaces are not needed any more."""

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Open the loggers, and restore the signal handlers that Lightning has replaced."""
        STOP.listen()
        open_loggers(self._members, self._recorder)
        self.started = True
        for member in self._members:
            member.directory.discard_aside()


def open_loggers(members: Sequence[Member], recorder: CohortRecorder) -> None:
    """Open the loggers of each member. They get all rows that were written so far."""
    for member, log in zip(members, recorder.logs, strict=True):
        path, config = member.directory.path, member.config
        group = f"{path.parent.parent.name}/{path.parent.name}"
        alone = len(members) == 1 and not in_sweep()
        run = RunInfo(path.name, group, config.agent, config_tree(config), alone, member.directory.run_id)
        for key, node in config.logger.items():
            log.open_sink(open_sink(key, node, path, run))
        for sink in member.sinks:
            log.open_sink(sink)


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
