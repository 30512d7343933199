"""Training from a configuration: who is in the cohort, where it goes, and what it ends with."""

from __future__ import annotations

import logging
import shutil
import statistics
import sys
import warnings
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import pytorch_lightning as pl
import torch
from hydra.utils import instantiate
from omegaconf import DictConfig
from rich.console import Console
from rich.table import Table

from qohort.checkpoint import FINAL, MemberCheckpointIO, step_name
from qohort.compilation import usable_mode
from qohort.config import TrainConfig, check_config, config_tree
from qohort.environments import check_spaces, make_environment
from qohort.errors import ConfigError
from qohort.learning_curve import draw_cohort, draw_run
from qohort.module import QLearning
from qohort.optimizer import MemberAdam, mixes_members
from qohort.progress import CohortProgress
from qohort.run_directory import RunDirectory, command_line
from qohort.statistics import iqm, iqm_interval
from qohort.tracking import CohortRecorder, Run


@dataclass
class Member:
    """A member of a cohort: what it is and where it goes."""

    config: TrainConfig
    directory: RunDirectory


def train(config: DictConfig) -> list[dict[str, Any]]:
    """Train what a configuration describes, as far as it is not finished; each member's `result.json`.

    Finished members are reported, interrupted ones resumed from their newest checkpoint, those that stand at
    the same step together.

    Raises:
        ConfigError: If the configuration is wrong; nothing was written then.
    """
    members = prepare(config)
    waiting: dict[int, list[Member]] = defaultdict(list)
    for member in members:
        if member.directory.result() is not None:
            where = member.directory.path
            print(f"seed {member.config.seed} is finished already: {where} (overwrite=true starts over)")
        else:
            waiting[member.directory.resumable_step() or 0].append(member)
    for step in sorted(waiting, reverse=True):
        train_cohort(waiting[step], step)
    results = [member.directory.result() for member in members]
    finished = [result for result in results if result is not None]
    summarise(members, finished)
    return finished


def prepare(config: DictConfig) -> list[Member]:
    """Check everything that can be checked before any work is done.

    Raises:
        ConfigError: At the first mistake.
    """
    configs = check_config(config)
    check_environment(configs[0])
    check_accelerator(configs[0])
    mode = usable_mode(configs[0].compile)
    members = []
    for one in configs:
        one = replace(one, compile=mode)  # type: ignore[arg-type]
        members.append(Member(one, RunDirectory.of(one)))
    if configs[0].overwrite:
        for member in members:
            shutil.rmtree(member.directory.path, ignore_errors=True)
    return members


def check_environment(config: TrainConfig) -> None:
    """Make one environment and one network, to see that they fit together.

    Raises:
        ConfigError: If the environment cannot be made or played, or the network or the optimiser refuses.
    """
    env = make_environment(config.env)
    try:
        check_spaces(config.env, env)
        head = instantiate(config.head)
        build = instantiate(config.network, _partial_=True, _convert_="all")
        actions = int(env.action_space.n)  # type: ignore[attr-defined]
        with torch.random.fork_rng(devices=[]):
            build(observation_space=env.observation_space, outputs=head.outputs(actions))
    except (ValueError, TypeError) as error:
        if isinstance(error, ConfigError):
            raise
        raise ConfigError(f"network: {' '.join(str(error).split())}") from error
    finally:
        env.close()
    check_optimizer(config)


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
        mixes = build.func is not MemberAdam and mixes_members(build)
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
        member.directory.prepare(member.config, command)
    recorder = CohortRecorder([member.directory.metrics for member in members])
    failed = True
    module = None
    try:
        module = QLearning([member.config for member in members], recorder)
        trainer = make_trainer(members)
        resume = LoggersOpen(members, recorder)
        trainer.callbacks.append(resume)  # type: ignore[attr-defined]
        trainer.fit(module, ckpt_path=step_name(step) if step else None)
        trainer.save_checkpoint(FINAL)
        failed = False
    finally:
        recorder.finish(failed)
        if module is not None:
            module.close()
    for member in members:
        draw_run(member.directory.path / "learning_curve.png", member.directory.rows(), _title(member.config))
        member.directory.write_result(member.config, module.progress.env_steps)


class LoggersOpen(pl.Callback):
    """Opens the loggers once the metrics are as the checkpoint left them, so that they get every row once.

    Args:
        members: The cohort.
        recorder: Its metrics.
    """

    def __init__(self, members: Sequence[Member], recorder: CohortRecorder) -> None:
        self._members, self._recorder = members, recorder

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Open them."""
        for member, log in zip(self._members, self._recorder.logs, strict=True):
            path, config = member.directory.path, member.config
            group = f"{path.parent.parent.name}/{path.parent.name}"
            run = Run(path.name, group, config.agent, config_tree(config))
            sinks = [
                instantiate(node, _partial_=True, _convert_="all")(directory=path, run=run)
                for node in config.logger.values()
            ]
            log.open_sinks(sinks)


def make_trainer(members: Sequence[Member]) -> pl.Trainer:
    """Lightning's Trainer for a cohort: one epoch, which is the budget."""
    config = members[0].config.trainer
    directories = [member.directory.path for member in members]
    logging.getLogger("pytorch_lightning").setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", message=".*`IterableDataset` has `__len__` defined.*")
    warnings.filterwarnings("ignore", message=".*does not have many workers.*")
    warnings.filterwarnings("ignore", message=".*LeafSpec.*")
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
        plugins=[MemberCheckpointIO(directories)],
        default_root_dir=directories[0],
    )


def _title(config: TrainConfig) -> str:
    return f"{config.agent} on {config.env.id}, seed {config.seed}"


def summarise(members: Sequence[Member], results: Sequence[dict[str, Any]]) -> None:
    """Print a row a seed, the IQM with its interval, and where everything is; draw the cohort's curve."""
    console = Console(file=sys.stdout, width=None if sys.stdout.isatty() else 100)
    table = Table(title=f"{members[0].config.agent} on {members[0].config.env.id}", title_justify="left")
    for heading in ("seed", "final return", "best return", "area under curve", "env_steps", "seconds"):
        table.add_column(heading, justify="right")
    for result in results:
        scores = (f"{result[key]:.1f}" for key in ("final_return", "best_return", "auc"))
        table.add_row(str(result["seed"]), *scores, f"{result['env_steps']:,}", f"{result['wall_s']:.1f}")
    console.print(table)
    finals = [result["final_return"] for result in results]
    if len(finals) > 1:
        low, high = iqm_interval(finals)
        print(
            f"final return: IQM {iqm(finals):.1f}, 95% interval [{low:.1f}, {high:.1f}], "
            f"mean {statistics.mean(finals):.1f} ± {statistics.stdev(finals):.1f}, over {len(finals)} seeds"
        )
    parent = members[0].directory.path.parent
    if len(members) > 1:
        rows = [member.directory.rows() for member in members]
        title = f"{members[0].config.agent} on {members[0].config.env.id}"
        draw_cohort(parent / "learning_curve.png", rows, title)
        print(f"learning curve of the cohort: {parent / 'learning_curve.png'}")
    for member in members:
        print(f"seed {member.config.seed}: {member.directory.path}")
