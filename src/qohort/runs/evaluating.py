"""A trained member: loads it from its run directory, plays episodes and records a video."""

from __future__ import annotations

import dataclasses
import os
import sys
from collections.abc import Callable, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path
from pickle import UnpicklingError
from typing import Annotated, Any, Literal, NamedTuple
from zipfile import BadZipFile

import numpy as np
import torch
import yaml
from gymnasium import spaces
from hydra.utils import instantiate
from numpy.typing import NDArray
from torch import Tensor, nn

from qohort.agent.evaluation import EpisodeScores, Evaluator
from qohort.agent.heads import Head
from qohort.agent.q_values import QValues, network_maker
from qohort.cohort.program import Compiler
from qohort.cohort.stacking import CohortNetwork
from qohort.config.annotations import PositiveInt, Range
from qohort.config.checks import build_config
from qohort.config.errors import ConfigError
from qohort.config.members import evaluation_environment
from qohort.config.schema import EnvironmentConfig, EvaluationConfig, TrainConfig
from qohort.environments.actions import actions_of
from qohort.environments.making import check_spaces, make_environment
from qohort.environments.preprocessing import Preprocessing
from qohort.networks.packing import masks_of
from qohort.replay.transition import Values
from qohort.runs.checkpoints import load_whole
from qohort.runs.directory import RunDirectory
from qohort.runs.video import FrameRecorder, has_ffmpeg, open_writer
from qohort.statistics import MIN_RUNS, estimate, mean

UNREADABLE = (RuntimeError, OSError, EOFError, UnpicklingError, BadZipFile)
"""What loading a damaged checkpoint raises."""


@dataclass(frozen=True)
class EvaluateConfig:
    """The configuration of an evaluation. `conf/evaluate.yaml` documents each key and its unit."""

    run: str | Sequence[str]
    episodes: PositiveInt
    epsilon: Annotated[float, Range(0, 1)]
    seed: Annotated[int, Range(0, 2**63 - 1)]
    max_episode_steps: PositiveInt | None
    video: bool | Literal["grid"]
    info_metrics: Sequence[str] | None
    accelerator: Literal["cpu", "gpu", "auto"]
    threads: PositiveInt


class TrainedMember(NamedTuple):
    """A member loaded from a checkpoint."""

    config: TrainConfig
    checkpoint: Path
    env_steps: int
    """The env_steps at which the checkpoint was saved."""
    values: Values
    """Its action values: maps observations `[1, B, ...]` to `[1, B, A]`."""


def load_config(directory: RunDirectory) -> TrainConfig:
    """Load the configuration that a member was trained with.

    Args:
        directory: The member's run directory.

    Raises:
        ConfigError: If it is not a run directory, or its `config.yaml` is not valid for this version.
    """
    config = stored_config(directory)
    if not os.access(directory.path, os.W_OK):
        raise ConfigError(
            f"run={directory.path} is not writable, but evaluation.json is written there: copy it elsewhere"
        )
    return config


def stored_config(directory: RunDirectory) -> TrainConfig:
    """Load the configuration of a member whose directory is only read; see `load_config`."""
    path = directory.path
    if not path.is_dir():
        raise ConfigError(
            f"run={path} is not a directory: give a run directory, <output_dir>/<env>/<agent>-<hash8>/seed-<n>"
        )
    if not (path / "config.yaml").is_file():
        runs = [run.parent for depth in ("", "*/", "*/*/") for run in sorted(path.glob(f"{depth}seed-*/config.yaml"))]
        hint = f"did you mean run={runs[0]}?" if runs else "give one that qohort train wrote"
        raise ConfigError(f"run={path} is not a run directory, it has no config.yaml: {hint}")
    try:
        tree: object = directory.config()
        if not isinstance(tree, dict):
            raise ConfigError("it has no keys")
        return build_config(TrainConfig, tree)
    except (ValueError, yaml.YAMLError) as error:
        cause = None if isinstance(error, ConfigError) else error  # its message has all that the other one said
        raise ConfigError(f"run={path} has a config.yaml that cannot be used: {error}") from cause


def load_member(
    directory: RunDirectory, config: TrainConfig, device: torch.device, name: str | None = None
) -> TrainedMember:
    """Load a member from its final checkpoint, or else from its newest undamaged one.

    Args:
        directory: The member's run directory.
        config: Its configuration.
        device: The device for its network.
        name: The name of another checkpoint; None for that choice.

    Raises:
        ConfigError: If there is no undamaged checkpoint, the environment cannot be made, or the network does not fit
            the checkpoint.
    """
    stored = read_member(directory, config, name)
    try:
        network = CohortNetwork(stored.make, [config.seed])
        network.load_state_dict(stored.weights)
    except (ValueError, TypeError, RuntimeError) as error:
        raise stored.misfit(directory, error) from error
    network.to(device)
    # Compiling would take longer than it saves.
    masks = masks_of(stored.space)
    values = QValues(network, stored.head, Compiler("none"), None if masks is None else masks.allowed)
    return TrainedMember(config, stored.checkpoint, stored.env_steps, stored.preprocessing.before(values))


class StoredMember(NamedTuple):
    """What a run directory keeps of a member's network, and what builds it."""

    checkpoint: Path
    env_steps: int
    """The env_steps at which the checkpoint was saved."""
    space: spaces.Space[Any]
    """The observation space."""
    actions: spaces.Space[Any]
    """The action space."""
    head: Head
    make: Callable[[], nn.Module]
    """Builds the network."""
    weights: dict[str, Tensor]
    """The parameters of a `CohortNetwork` of one member."""
    preprocessing: Preprocessing

    def misfit(self, directory: RunDirectory, error: Exception) -> ConfigError:
        """Return the error of weights that do not fit the network."""
        return ConfigError(f"run={directory.path}: the network does not fit {self.checkpoint.name}: {error}")


def read_member(directory: RunDirectory, config: TrainConfig, name: str | None = None) -> StoredMember:
    """Read the network of a member from a checkpoint.

    Args:
        directory: The member's run directory.
        config: Its configuration.
        name: The checkpoint, a file in `checkpoints/`; None for the final one, or else the newest undamaged one.

    Raises:
        ConfigError: If there is no undamaged checkpoint, or the environment cannot be made.
    """
    path, checkpoint = _newest_checkpoint(directory) if name is None else _named_checkpoint(directory, name)
    env = make_environment(config.env)
    try:
        check_spaces(config.env, env)
        space, actions = env.observation_space, env.action_space
    finally:
        env.close()
    head = instantiate(config.head)
    make = network_maker(config.network, space, actions_of(actions), head)
    prefix = "online."
    weights = {
        name.removeprefix(prefix): value for name, value in checkpoint["state_dict"].items() if name.startswith(prefix)
    }
    preprocessing = Preprocessing([config], space)
    state = checkpoint["qohort"]
    preprocessing.load_state_dict(state["actor"]["preprocessing"])
    return StoredMember(path, state["progress"]["env_steps"], space, actions, head, make, weights, preprocessing)


def _newest_checkpoint(directory: RunDirectory) -> tuple[Path, dict[str, Any]]:
    final = directory.final_checkpoint
    paths = [final] if final.is_file() else []
    paths += sorted(final.parent.glob("step-*.ckpt"), reverse=True)
    broken = []
    for path in paths:
        try:
            checkpoint = load_whole(path)
        except UNREADABLE as error:
            broken.append(f"{path.name} cannot be read ({type(error).__name__})")
            continue
        if broken:
            print(f"{', '.join(broken)}: using {path.name}", file=sys.stderr)
        return path, checkpoint
    reason = ", ".join(broken) if broken else "one is saved every checkpoint.every env_steps and at the end"
    raise ConfigError(f"run={directory.path} has no {'whole checkpoint' if broken else 'checkpoint yet'}: {reason}")


def _named_checkpoint(directory: RunDirectory, name: str) -> tuple[Path, dict[str, Any]]:
    folder = directory.final_checkpoint.parent
    names = sorted(file.name for file in folder.glob("*.ckpt"))
    if name not in names:
        there = f"it has {', '.join(names)}" if names else "it has none yet"
        raise ConfigError(f"checkpoint={name} is not a checkpoint of run={directory.path}: {there}")
    try:
        return folder / name, load_whole(folder / name)
    except UNREADABLE as error:
        raise ConfigError(f"checkpoint={name} cannot be read ({type(error).__name__}): take another one") from error


def evaluation_device(accelerator: str) -> torch.device:
    """Return the device that the key `accelerator` asks for.

    Raises:
        ConfigError: If it asks for a GPU and there is none.
    """
    available = torch.cuda.is_available()
    if accelerator == "gpu" and not available:
        raise ConfigError("accelerator=gpu, but torch finds no GPU here: use cpu or auto")
    return torch.device("cuda" if available and accelerator != "cpu" else "cpu")


def play(
    settings: EvaluateConfig, member: TrainedMember, videos: Path, name: str, device: torch.device
) -> tuple[EpisodeScores, Path | None]:
    """Play the episodes, and record the first one if `settings.video` is set.

    Args:
        settings: The number of episodes, ε and the seed.
        member: The trained member.
        videos: The directory for videos.
        name: The name of the video, without its suffix.
        device: The device of the member's network.

    Returns:
        Returns, lengths and numbers in info `[1, episodes]`, and the path of the video or None.
    """
    trained = member.config.evaluation
    evaluation = dataclasses.replace(
        trained,
        episodes=settings.episodes,
        epsilon=settings.epsilon,
        max_episode_steps=settings.max_episode_steps or trained.max_episode_steps,
    )
    # Training never evaluates in round 0, so these episodes are new to the run, whatever its seed.
    arguments = (evaluation_environment(member.config), evaluation, [settings.seed], device)
    names = member.config.info_metrics if settings.info_metrics is None else settings.info_metrics
    if not settings.video:
        with closing(Evaluator(*arguments, names)) as evaluator:
            return evaluator(member.values, round=0), None
    videos.mkdir(exist_ok=True)
    name += ".mp4" if has_ffmpeg() else ".gif"
    partial = videos / f".partial-{name}"
    try:
        with closing(FilmedEvaluator(*arguments, [partial], names)) as evaluator:
            scores = evaluator(member.values, round=0)
        partial.replace(videos / name)
    finally:
        partial.unlink(missing_ok=True)
    return scores, videos / name


class FilmedEvaluator(Evaluator):
    """An evaluator that records the first episode of each member.

    Args:
        env: The environment.
        evaluation: The number of episodes and ε.
        seeds: The members' seeds.
        device: The device of the networks.
        paths: The video file of each member, `.mp4` or `.gif`; None for a member that is not filmed.
        info_metrics: The names of numbers that the info of an episode's last step has.
    """

    def __init__(
        self,
        env: EnvironmentConfig,
        evaluation: EvaluationConfig,
        seeds: Sequence[int],
        device: torch.device,
        paths: Sequence[Path | None],
        info_metrics: Sequence[str] = (),
    ) -> None:
        super().__init__(env, evaluation, seeds, device, info_metrics)
        self._writers = ExitStack()
        for envs, path in zip(self._envs, paths, strict=True):
            if path is None:
                continue
            envs[0].close()
            filmed = make_environment(env, render_mode="rgb_array")
            writer = open_writer(path, float(filmed.metadata.get("render_fps") or 30))
            self._writers.callback(writer.close)
            envs[0] = FrameRecorder(filmed, writer)

    def close(self) -> None:
        """Close all environments and finish the videos."""
        super().close()
        self._writers.close()


def summary(returns: NDArray[np.float64]) -> dict[str, Any]:
    """Return mean, 95% interval of the mean, minimum and maximum of episode returns.

    The interval is the bootstrap interval of `qohort.statistics` over episodes, None for fewer than `MIN_RUNS` of them.

    Args:
        returns: The returns, `[episodes]`.
    """
    middle = estimate(mean, [returns])
    return {
        "mean": middle.value,
        "interval": [middle.low, middle.high] if len(returns) >= MIN_RUNS else None,
        "min": float(returns.min()),
        "max": float(returns.max()),
    }
