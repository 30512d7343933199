"""Exports the policy of a run: its files, a model card and a video, to a directory or to the Hugging Face Hub."""

from __future__ import annotations

import dataclasses
import json
import shutil
import tempfile
from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from gymnasium import spaces
from numpy.typing import NDArray
from omegaconf import DictConfig
from rich.console import Console
from rich.table import Table

from qohort.config.checks import build_config
from qohort.config.errors import ConfigError, RunsFailed
from qohort.config.members import evaluation_environment
from qohort.config.paths import HUB, check_writable
from qohort.config.schema import TrainConfig
from qohort.environments.checked import CheckedEnv, EnvironmentFailure
from qohort.environments.making import check_rendering, make_environment
from qohort.networks.packing import PackedSpace
from qohort.runs import hub
from qohort.runs.directory import RunDirectory
from qohort.runs.evaluating import FilmedEvaluator, load_member, read_member, stored_config
from qohort.runs.exported import CONFIG, description, is_exported, require
from qohort.runs.formats import FORMATS, Check, chosen, compare
from qohort.runs.model_card import CARD, model_card
from qohort.runs.policy import Policy, policy_of
from qohort.runs.video import has_ffmpeg

OBSERVATIONS = 1000
"""The number of observations on which exported networks are compared with the policy."""
VIDEO = "replay"
"""The name of a video, which the Hub shows beside the card."""
FILES = (CONFIG, CARD, *(one.file for one in FORMATS.values()), f"{VIDEO}.mp4", f"{VIDEO}.gif")
"""The names of all files that an export can have."""


@dataclass(frozen=True)
class ExportConfig:
    """The configuration of an export. `conf/export.yaml` says what each key is."""

    run: str
    format: Literal["all", "safetensors", "torch_export", "onnx"]
    to: str | None
    checkpoint: str | None
    video: bool
    license: str | None
    private: bool


def export(config: DictConfig) -> dict[str, Check]:
    """Export the policy of a run.

    All files are made and checked in a temporary directory. Then they are moved to their place together.

    Args:
        config: The composed configuration, `conf/export.yaml`.

    Returns:
        For each format, how the file compares with the policy.

    Raises:
        ConfigError: If the configuration or the run cannot be used, or a format fails its check; nothing was written.
        RunsFailed: If the environment fails, or the Hub; nothing was written.
    """
    settings, directory, trained = check_export(config)
    target = _target(settings, directory)
    if settings.video:
        check_rendering(trained.env, 0)
    if settings.to is not None and target is None:
        hub.check(settings.to.removeprefix(HUB))

    stored = read_member(directory, trained, settings.checkpoint)
    if isinstance(stored.space, PackedSpace):
        raise ConfigError(
            f"run={directory.path} has observations of several parts or action masks, which cannot be exported: use "
            "qohort.load"
        )
    policy = policy_of(stored, directory, trained)
    if not isinstance(policy.action_space, spaces.Discrete):
        raise ConfigError(
            f"run={directory.path} has actions of several numbers, {policy.action_space}, which cannot be exported: "
            "use qohort.load"
        )
    with tempfile.TemporaryDirectory(prefix="qohort-export-") as temporary:
        made = Path(temporary)
        (made / CONFIG).write_text(json.dumps(description(policy), indent=2, allow_nan=False) + "\n")
        checks = _write(policy, settings.format, made)
        video = (
            _record(directory, policy, made, settings.checkpoint)
            if settings.video
            else _copy_video(directory, policy, made)
        )
        repository = None if target is not None else str(settings.to).removeprefix(HUB)
        checkpoint = stored.checkpoint.name
        card = model_card(directory, policy, checkpoint, checks, video, settings.license, repository)
        (made / CARD).write_text(card)
        _print(checks, made, policy)
        if target is not None:
            _place(made, target)
            print(f"written: {target}")
        elif repository is not None:
            print(f"uploaded: {hub.upload(repository, made, FILES, settings.private)}")
    return checks


def check_export(config: DictConfig) -> tuple[ExportConfig, RunDirectory, TrainConfig]:
    """Check the configuration of an export, and return it, the run and the run's configuration.

    Raises:
        ConfigError: If the configuration, the run or the target cannot be used.
    """
    settings = build_config(ExportConfig, config)
    directory = RunDirectory(Path(settings.run).expanduser())
    trained = stored_config(directory)
    _check_packages(settings)
    _target(settings, directory)
    _check_finished(settings, directory)
    return settings, directory, trained


def _check_packages(settings: ExportConfig) -> None:
    for name in chosen(settings.format):
        for package in FORMATS[name].packages:
            require(package, f"format={name}")
    if settings.to is not None and settings.to.startswith(HUB):
        require("huggingface_hub", f"to={settings.to}")


def _check_finished(settings: ExportConfig, directory: RunDirectory) -> None:
    if settings.checkpoint is None and directory.result() is None:
        names = sorted(file.name for file in directory.final_checkpoint.parent.glob("*.ckpt"))
        there = f"checkpoint={names[-1]} exports the newest" if names else "it has no checkpoint yet"
        raise ConfigError(f"run={directory.path} is not finished: finish it with the command that started it; {there}")


def _target(settings: ExportConfig, directory: RunDirectory) -> Path | None:
    """Return the directory to write; None for a repository of the Hub.

    Raises:
        ConfigError: If it cannot be written, or has files that are not of an export, which it would replace.
    """
    if settings.to is not None and settings.to.startswith(HUB):
        return None
    path = directory.path / "export" if settings.to is None else Path(settings.to).expanduser()
    check_writable("to", str(path))
    if path.is_dir() and any(path.iterdir()):
        foreign = sorted({file.name for file in path.iterdir()} - {*FILES})
        if foreign or not is_exported(path):
            what = f"has {foreign[0]}, which is not of an export" if foreign else "is not an export"
            raise ConfigError(f"to={path} {what}: name a new directory, or one that qohort export wrote")
    return path


def _write(policy: Policy, name: str, made: Path) -> dict[str, Check]:
    """Write the files of the formats and compare each with the policy."""
    observations = observations_of(policy, OBSERVATIONS)
    checks = {}
    for one in chosen(name):
        file = made / FORMATS[one].file
        FORMATS[one].write(policy, file)
        checks[one] = compare(policy, FORMATS[one].read(file), observations, one)
    return checks


def observations_of(policy: Policy, count: int) -> NDArray[Any]:
    """Return observations of episodes, in which half of the actions are greedy and the others random.

    Args:
        policy: The policy.
        count: The number of observations, N.

    Returns:
        The observations, `[N, ...]`.

    Raises:
        RunsFailed: If the environment fails.
    """
    config, generator = policy.config, np.random.default_rng(0)
    space = policy.action_space
    assert isinstance(space, spaces.Discrete)
    first, actions = int(space.start), int(space.n)
    found: list[NDArray[Any]] = []
    episode = 0
    with closing(make_environment(evaluation_environment(config))) as made:
        env = CheckedEnv(made)
        try:
            while len(found) < count:
                observation, ended = env.reset(episode), False
                episode += 1
                while len(found) < count and not ended:
                    found.append(np.array(observation, policy.observation_space.dtype))
                    greedy = generator.random() < 0.5
                    action = policy.act(observation) if greedy else first + int(generator.integers(actions))
                    observation, _, terminated, truncated = env.step(np.int64(action))
                    ended = terminated or truncated
        except EnvironmentFailure as failure:
            raise RunsFailed(f"env.id={config.env.id}: {failure.reason}: nothing was written") from failure
    return np.stack(found)


def _record(directory: RunDirectory, policy: Policy, made: Path, checkpoint: str | None) -> Path:
    """Record an episode of the greedy policy."""
    config = policy.config
    member = load_member(directory, config, torch.device("cpu"), checkpoint)
    evaluation = dataclasses.replace(config.evaluation, episodes=1, epsilon=0.0)
    path = made / f"{VIDEO}{'.mp4' if has_ffmpeg() else '.gif'}"
    arguments = (evaluation_environment(config), evaluation, [0], torch.device("cpu"))
    with closing(FilmedEvaluator(*arguments, [path])) as evaluator:
        scores = evaluator(member.values, round=0)
    if failure := scores.failures.get(0):
        raise RunsFailed(f"env.id={config.env.id}: {failure.reason}: nothing was written")
    return path


def _copy_video(directory: RunDirectory, policy: Policy, made: Path) -> Path | None:
    """Copy the newest video that the run has of this policy; None if it has none."""
    pattern = f"env_steps-{policy.env_steps:012d}-*"
    found = [file for file in (directory.path / "videos").glob(pattern) if file.suffix in (".mp4", ".gif")]
    if not found:
        return None
    newest = max(found, key=lambda file: file.stat().st_mtime)
    return Path(shutil.copy(newest, made / f"{VIDEO}{newest.suffix}"))


def _place(made: Path, target: Path) -> None:
    """Move a directory to its place, whole or not at all. An earlier export there is replaced.

    Raises:
        RunsFailed: If that is not possible, as on a full disk.
    """
    target = target.resolve()  # a link stays one
    created = [one for one in (target, *target.parents) if not one.exists()]
    partial: Path | None = None
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        # On the same filesystem, where renaming is atomic.
        partial = Path(tempfile.mkdtemp(dir=target.parent, prefix=f".{target.name}-partial-"))
        shutil.copytree(made, partial / "new")
        _open_to_others(partial / "new")
        if target.exists():
            target.rename(partial / "old")
        (partial / "new").rename(target)
    except OSError as error:
        if partial is not None and (partial / "old").exists():
            (partial / "old").rename(target)
        if created[1:]:
            shutil.rmtree(created[-1], ignore_errors=True)
        raise RunsFailed(f"to={target} cannot be written: {error.strerror}; nothing was written") from error
    finally:
        if partial is not None:
            shutil.rmtree(partial, ignore_errors=True)


def _open_to_others(directory: Path) -> None:
    """Give a directory and its files the permissions of new ones. Some writers make private files."""
    readable = (directory / CONFIG).stat().st_mode & 0o444
    for file in directory.iterdir():
        file.chmod(file.stat().st_mode | readable)
    directory.chmod(0o700 | readable | readable >> 2)


def _print(checks: Mapping[str, Check], made: Path, policy: Policy) -> None:
    config = policy.config
    title = f"{config.agent} on {config.env.name}, seed {config.seed}, at {policy.env_steps:,} env_steps"
    table = Table(title=title, title_justify="left")
    for heading in ("format", "file", "kB", "observations", "same action", "largest difference of a value"):
        table.add_column(heading, justify="left" if heading in ("format", "file") else "right")
    for name, check in checks.items():
        file = FORMATS[name].file
        size = (made / file).stat().st_size / 1000
        row = (f"{size:,.0f}", f"{check.observations:,}", f"{check.same_actions:,}", f"{check.difference:.2g}")
        table.add_row(name, file, *row)
    Console(width=None if Console().is_terminal else 100).print(table)
