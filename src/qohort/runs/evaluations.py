"""Evaluates trained runs: one, several or the members of a cohort. Writes a file for each evaluation."""

from __future__ import annotations

import dataclasses
import glob
import hashlib
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from omegaconf import DictConfig
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from qohort.agent.evaluation import EpisodeScores
from qohort.config.checks import build_config
from qohort.config.errors import ConfigError, RunsFailed
from qohort.config.schema import TrainConfig
from qohort.environments.making import check_rendering
from qohort.runs.directory import RunDirectory
from qohort.runs.evaluating import (
    EvaluateConfig,
    TrainedMember,
    evaluation_device,
    load_config,
    load_member,
    play,
    summary,
)
from qohort.runs.files import write_atomically
from qohort.runs.video import tile_videos
from qohort.statistics import format_returns


def evaluate(config: DictConfig) -> list[dict[str, Any]]:
    """Evaluate trained runs, print the results and write them to files.

    Each run gets `evaluations/<name>.json`, whose name says which evaluation it is, and the same as `evaluation.json`,
    which is that of the newest one.

    Args:
        config: The composed configuration, `conf/evaluate.yaml`.

    Returns:
        The content of the file of each run.

    Raises:
        ConfigError: If the configuration or a run directory is invalid; nothing was written.
        RunsFailed: If the environment of a run fails; the others are evaluated.
    """
    settings, device, trained_configs = check_evaluation(config)
    torch.set_num_threads(settings.threads)
    directories, configs = list(trained_configs), list(trained_configs.values())
    if settings.video:
        for env in {repr(trained.env): trained.env for trained in configs}.values():
            check_rendering(env, settings.seed)
    members = [load_member(one, trained, device) for one, trained in zip(directories, configs, strict=True)]
    outcomes: dict[Path, dict[str, Any]] = {}
    failures = []
    for directory, member in zip(directories, members, strict=True):
        try:
            outcomes[directory.path] = _evaluate_one(settings, directory, member, device)
        except RunsFailed as failure:
            failures.append(str(failure))
    _report(settings, outcomes, dict(zip([one.path for one in directories], configs, strict=True)))
    if failures:
        some = f"{len(failures)} of {len(directories)} runs failed: " if len(directories) > 1 else ""
        raise RunsFailed(some + "; ".join(failures))
    return list(outcomes.values())


def check_evaluation(
    config: DictConfig,
) -> tuple[EvaluateConfig, torch.device, dict[RunDirectory, TrainConfig]]:
    """Check the configuration of an evaluation, and return it, its device, and the runs with their configurations.

    Raises:
        ConfigError: If the configuration or a run directory is invalid.
    """
    settings = build_config(EvaluateConfig, config)
    names = settings.info_metrics or ()
    if len(set(names)) < len(names):
        raise ConfigError(f"info_metrics=[{','.join(names)}] has a name twice: give different names")
    device = evaluation_device(settings.accelerator)
    directories = [RunDirectory(path) for path in chosen(settings.run)]
    return settings, device, {directory: load_config(directory) for directory in directories}


def chosen(named: str | Sequence[str]) -> list[Path]:
    """Return the run directories that the key `run` names, each once, in its order.

    Args:
        named: A run directory, an experiment's directory, which stands for all of its runs, a pattern with `*`, `?` or
            `[]`, or a list of these.

    Raises:
        ConfigError: If there is no such directory, or it has no runs.
    """
    found: dict[Path, None] = {}
    for text in [named] if isinstance(named, str) else named:
        path = Path(text).expanduser()
        paths = [path] if path.exists() or not glob.has_magic(text) else _matches(text, path)
        for one in paths:
            inside = sorted(one.glob("seed-*/config.yaml"), key=lambda file: _seed(file.parent))
            whole = not (one / "config.yaml").is_file() and inside
            found |= dict.fromkeys([file.parent for file in inside] if whole else [one])
    if not found:
        raise ConfigError("run=[] names no run: give a run directory, or a list of them")
    return list(found)


def _matches(text: str, path: Path) -> list[Path]:
    paths = sorted(
        (Path(one) for one in glob.glob(str(path)) if Path(one).is_dir()), key=lambda one: (one.parent, _seed(one))
    )
    if not paths:
        raise ConfigError(f"run={text} matches no directory")
    return paths


def _seed(directory: Path) -> int:
    number = directory.name.partition("-")[2]
    return int(number) if number.isdecimal() else -1


def evaluation_name(settings: EvaluateConfig, env_steps: int) -> str:
    """Return the name of an evaluation's files. The same command on the same checkpoint has the same name.

    It is `env_steps-<of the checkpoint>-seed-<of the episodes>-<eight digits of a hash of the other settings>`.

    Args:
        settings: The settings of the evaluation.
        env_steps: The env_steps at which the checkpoint was saved.
    """
    names = ["episodes", "epsilon", "max_episode_steps", "accelerator", "threads"]
    names += [] if settings.info_metrics is None else ["info_metrics"]
    digest = hashlib.sha256(json.dumps([getattr(settings, name) for name in names]).encode()).hexdigest()[:8]
    return f"env_steps-{env_steps:012d}-seed-{settings.seed}-{digest}"


def _evaluate_one(
    settings: EvaluateConfig, directory: RunDirectory, member: TrainedMember, device: torch.device
) -> dict[str, Any]:
    """Evaluate a run, write its files and return their content.

    Raises:
        RunsFailed: If its environment fails.
    """
    name = evaluation_name(settings, member.env_steps)
    scores, video = play(settings, member, directory.path / "videos", name, device)
    if failure := scores.failures.get(0):
        file = directory.path / "evaluation_failed.json"
        episode = {"seed": failure.seed, "actions": failure.actions}
        content = {"reason": failure.reason, "episode": episode, "traceback": failure.trace}
        write_atomically(file, (json.dumps(content, indent=2) + "\n").encode())
        raise RunsFailed(
            f"env.id={member.config.env.id}: {failure.reason}, at step {len(failure.actions)} of an episode; its seed "
            f"and its actions are in {file}"
        )
    _report_missing(scores, member.config.env.id)
    outcome = {
        "settings": {**dataclasses.asdict(settings), "run": str(directory.path)},
        "env": member.config.env.id,
        "agent": member.config.agent,
        "trained_seed": member.config.seed,
        "checkpoint": str(member.checkpoint.relative_to(directory.path)),
        "env_steps": member.env_steps,
        **summary(scores.returns[0]),
        "returns": scores.returns[0].tolist(),
        "lengths": scores.lengths[0].tolist(),
        "info_metrics": {name: _numbers(values[0]) for name, values in scores.metrics.items()},
        "video": None if video is None else str(video.relative_to(directory.path)),
    }
    text = (json.dumps(outcome, indent=2) + "\n").encode()
    (directory.path / "evaluations").mkdir(exist_ok=True)
    write_atomically(directory.path / "evaluations" / f"{name}.json", text)
    write_atomically(directory.path / "evaluation.json", text)
    return outcome


def _numbers(values: NDArray[np.float64]) -> dict[str, Any]:
    """Return the mean of a number in info over the episodes that have it, and its value in each, `[episodes]`.

    None stands for what an episode does not have.
    """
    present = values[~np.isnan(values)]
    mean = float(present.mean()) if len(present) else None
    return {"mean": mean, "values": [None if np.isnan(value) else float(value) for value in values]}


def _report_missing(scores: EpisodeScores, env_id: str) -> None:
    """Report the names in `info_metrics` that no episode has, with those that there are."""
    for name, values in scores.metrics.items():
        if np.isnan(values).all():
            print(
                f"qohort: info_metrics: the info of env.id={env_id} had no number {name!r} at the end of any episode; "
                f"its numbers are {', '.join(scores.numbers) or 'none'}",
                file=sys.stderr,
            )


def _report(
    settings: EvaluateConfig, outcomes: Mapping[Path, Mapping[str, Any]], configs: Mapping[Path, TrainConfig]
) -> None:
    """Print the results and the files, with a statistic over the runs of each experiment, and make the grids."""
    if not outcomes:
        return
    single = len(configs) == 1
    _print_table(outcomes, configs)
    if any(outcome["interval"] is not None for outcome in outcomes.values()):
        print("95% interval of the mean: bootstrap over episodes")
    for parent in dict.fromkeys(path.parent for path in outcomes):
        own = {path: outcome for path, outcome in outcomes.items() if path.parent == parent}
        if not single:
            _say(f"mean return of {parent}: {format_returns([outcome['mean'] for outcome in own.values()])}")
        if settings.video == "grid":
            print(f"video of episode 1 of each run: {_grid(settings, parent, own)}")
    for path, outcome in outcomes.items():
        name = evaluation_name(settings, outcome["env_steps"])
        _say(f"written to {path}: evaluation.json, evaluations/{name}.json")
        if outcome["video"] is not None:
            print(f"video of episode 1: {path / outcome['video']}")


def _say(line: str) -> None:
    """Print a line, broken between words if the terminal is narrower."""
    live = sys.stdout.isatty()
    Console(file=sys.stdout, highlight=False).print(Text(line), soft_wrap=not live)


def _print_table(outcomes: Mapping[Path, Mapping[str, Any]], configs: Mapping[Path, TrainConfig]) -> None:
    """Print a table with a row for each run."""
    firsts = [configs[path] for path in outcomes]
    names = {(config.agent, config.env.name) for config in firsts}
    title = "{} on {}".format(*names.pop()) if len(names) == 1 else "evaluation"
    if len(outcomes) == 1:
        (outcome,) = outcomes.values()
        title += f", seed {firsts[0].seed}, at {outcome['env_steps']:,} of {firsts[0].budget:,} env_steps"
    named = len(outcomes) > 1
    console = Console(file=sys.stdout, width=None if sys.stdout.isatty() else 100 + 20 * named)
    narrow = console.width < 100
    table = Table(title=title, title_justify="left", box=None if narrow else box.HEAVY_HEAD, pad_edge=not narrow)
    for heading in (*(("run", "env_steps") if named else ()), "episodes", "mean return", "95% interval", "min", "max"):
        whole = heading in ("env_steps", "episodes", "95% interval")
        table.add_column(heading, justify="left" if heading == "run" else "right", overflow="fold", no_wrap=whole)
    metrics = dict.fromkeys(metric for outcome in outcomes.values() for metric in outcome["info_metrics"])
    for heading in ("mean length", *(f"mean {metric}" for metric in metrics)):
        table.add_column(heading, justify="right")
    for (path, outcome), config in zip(outcomes.items(), firsts, strict=True):
        interval = outcome["interval"]
        name = (
            f"seed {config.seed}" if len({one.parent for one in outcomes}) == 1 else f"{path.parent.name}/{path.name}"
        )
        table.add_row(
            *((name, f"{outcome['env_steps']:,}") if named else ()),
            f"{len(outcome['returns']):,}",
            f"{outcome['mean']:.2f}",
            "-" if interval is None else f"{interval[0]:.2f} to {interval[1]:.2f}",
            f"{outcome['min']:.2f}",
            f"{outcome['max']:.2f}",
            f"{np.mean(outcome['lengths']):.1f}",
            *(_mean_text(outcome["info_metrics"].get(metric)) for metric in metrics),
        )
    console.print(table)


def _mean_text(numbers: Mapping[str, Any] | None) -> str:
    """Return the mean of a number in info as text, with a dash where there is none."""
    return "-" if numbers is None or numbers["mean"] is None else f"{numbers['mean']:.4g}"


def _grid(settings: EvaluateConfig, parent: Path, outcomes: Mapping[Path, Mapping[str, Any]]) -> Path:
    """Put the videos of an experiment's runs side by side, and return the path of the new video."""
    videos = [path / outcome["video"] for path, outcome in outcomes.items()]
    digest = hashlib.sha256("\n".join(f"{video.parent.parent.name}/{video.name}" for video in videos).encode())
    name = f"grid-of-{len(videos)}-seed-{settings.seed}-{digest.hexdigest()[:8]}{videos[0].suffix}"
    (parent / "videos").mkdir(exist_ok=True)
    partial = parent / "videos" / f".partial-{name}"
    try:
        tile_videos(videos, partial)
        return partial.replace(parent / "videos" / name)
    finally:
        partial.unlink(missing_ok=True)
