"""TODO config.schema."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Literal

if TYPE_CHECKING:
    pass

from qohort.config.annotations import Count, Node, PositiveInt, Range, Role


@dataclass(frozen=True)
class EnvironmentConfig:
    """Which environment, and how many of it.

    Attributes:
        id: A Gymnasium id; `module:Name-v0` imports `module` first, so that it can register its own.
        num_envs: Environments a member.
        kwargs: Arguments for `gymnasium.make`.
        wrappers: Wrappers, innermost first: nodes whose `_target_` takes the environment as first argument.
    """

    id: str
    num_envs: PositiveInt
    kwargs: Mapping[str, Any]
    wrappers: Sequence[Annotated[Node, Role("gymnasium.Env", ("env",))]]

    @property
    def name(self) -> str:
        """The id without the module that registers it."""
        return self.id.rpartition(":")[2]


@dataclass(frozen=True)
class EvaluationConfig:
    """Greedy evaluation while training.

    Attributes:
        every: env_steps between evaluations.
        episodes: Episodes an evaluation.
        epsilon: The probability of a random action.
        max_episode_steps: Where an episode without an end is cut, in env_steps.
    """

    every: PositiveInt
    episodes: PositiveInt
    epsilon: Annotated[float, Range(0, 1)]
    max_episode_steps: PositiveInt


@dataclass(frozen=True)
class CheckpointConfig:
    """When the whole state is saved.

    Attributes:
        every: env_steps between checkpoints.
        minutes: Minutes after which there is one in any case.
    """

    every: PositiveInt
    minutes: Annotated[float, Range(0, above=True)]


@dataclass(frozen=True)
class TrainerConfig:
    """Where and how Lightning runs.

    Attributes:
        accelerator: `cpu`, `gpu`, or `auto`: a GPU where there is one.
        devices: Must be 1: a cohort is one program on one device.
        threads: CPU threads of torch.
        progress_bar: Whether progress is shown.
    """

    accelerator: Literal["cpu", "gpu", "auto"]
    devices: int
    threads: PositiveInt
    progress_bar: bool


@dataclass(frozen=True)
class TrainConfig:
    """The configuration of one member. `conf/train.yaml` says what each key is, and its unit."""

    seed: Annotated[int, Range(0, 2**63 - 1)]
    agent: str
    budget: PositiveInt
    gamma: Annotated[float, Range(0, 1)]
    batch_size: PositiveInt
    train_every: PositiveInt
    gradient_steps: PositiveInt
    learning_starts: Count
    max_grad_norm: Annotated[float, Range(0, above=True)] | None
    normalize_observations: bool
    normalize_rewards: bool
    reward_scale: Annotated[float, Range(0, above=True)]
    reward_clip: Annotated[float, Range(0, above=True)] | None
    reset_every: PositiveInt | None
    log_every: PositiveInt
    compile: Literal["inductor", "aot_eager", "none"]
    env: EnvironmentConfig
    network: Annotated[Node, Role("torch.nn.Module", ("observation_space", "actions", "atoms"))]
    bootstrap: Annotated[Node, Role("qohort.agent.bootstrap.Bootstrap")]
    head: Annotated[Node, Role("qohort.agent.heads.Head")]
    target_network: Annotated[Node, Role("qohort.agent.target_networks.TargetNetwork")]
    replay: Annotated[Node, Role("qohort.replay.base.Replay", ("spec",))]
    exploration: Annotated[Node, Role("qohort.agent.exploration.Exploration")]
    optimizer: Annotated[Node, Role("torch.optim.Optimizer", ("params",))]
    lr_schedule: Annotated[Node, Role("qohort.cohort.schedules.Schedule")]
    evaluation: EvaluationConfig
    checkpoint: CheckpointConfig
    trainer: TrainerConfig
    logger: Mapping[str, Annotated[Node, Role("qohort.runs.loggers.Sink", ("directory", "run"))]]
    output_dir: str
    overwrite: bool
    retry_failed: bool
