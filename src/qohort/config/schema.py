"""The schema of a run: every key of `conf/train.yaml`, its type and its bounds. It knows no component."""

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
    """Arguments of Lightning's Trainer, and the two keys that are ours: `threads` and `progress_bar`.

    Attributes:
        accelerator: `cpu`, `gpu`, or `auto`: a GPU where there is one.
        devices: Must be 1: a cohort is one program on one device.
        threads: CPU threads of torch.
        progress_bar: Whether progress is shown.
        profiler: Lightning's profiler; None for none.
        detect_anomaly: Whether PyTorch looks for NaN in its backward pass.
        deterministic: Whether PyTorch uses deterministic algorithms only; None leaves its setting.
        benchmark: Whether cuDNN looks for the fastest algorithm; None leaves its setting.
        enable_model_summary: Whether Lightning prints a summary of the networks.
    """

    accelerator: Literal["cpu", "gpu", "auto"]
    devices: int
    threads: PositiveInt
    progress_bar: bool
    profiler: Literal["simple", "advanced", "pytorch"] | None
    detect_anomaly: bool
    deterministic: bool | None
    benchmark: bool | None
    enable_model_summary: bool


NOT_FOR_COHORTS = {
    "max_epochs": "the budget is one epoch: set budget",
    "max_steps": "the budget decides: set budget",
    "max_time": "a run ends with its budget: set budget",
    "min_epochs": "the budget is one epoch: set budget",
    "min_steps": "the budget decides: set budget",
    "logger": "loggers are chosen by logger=wandb,csv,tensorboard,none",
    "callbacks": "callbacks are chosen by callbacks=NAME, a file in conf/callbacks",
    "gradient_clip_val": "each member's gradient is clipped to max_grad_norm",
    "gradient_clip_algorithm": "each member's gradient is clipped to max_grad_norm",
    "accumulate_grad_batches": "an update is one batch: set batch_size",
    "log_every_n_steps": "rows are written every log_every env_steps",
    "val_check_interval": "evaluations are every evaluation.every env_steps",
    "check_val_every_n_epoch": "evaluations are every evaluation.every env_steps",
    "limit_train_batches": "the budget decides: set budget",
    "fast_dev_run": "set a small budget",
    "overfit_batches": "the budget decides: set budget",
    "strategy": "a cohort is one program on one device",
    "num_nodes": "a cohort is one program on one device; a sweep uses several",
    "sync_batchnorm": "a cohort is one program on one device",
    "precision": "members are trained in float32, in which they are exact",
    "plugins": "checkpoints are split between the members",
    "enable_checkpointing": "checkpoints are set by checkpoint.every and checkpoint.minutes",
    "enable_progress_bar": "the bar is set by trainer.progress_bar",
    "default_root_dir": "run directories are below output_dir",
    "use_distributed_sampler": "batches come from the replay",
    "reload_dataloaders_every_n_epochs": "the budget is one epoch",
    "inference_mode": "evaluation is not Lightning's here",
    "num_sanity_val_steps": "evaluation is not Lightning's here",
    "limit_val_batches": "evaluations have evaluation.episodes episodes",
    "limit_test_batches": "evaluations have evaluation.episodes episodes",
    "limit_predict_batches": "evaluations have evaluation.episodes episodes",
    "barebones": "metrics and checkpoints are needed",
}
"""Arguments of Lightning's Trainer that a cohort does not admit, and what to do instead."""


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
    compile: Literal["inductor", "fx", "none"]
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
    callbacks: Mapping[str, Annotated[Node, Role("pytorch_lightning.Callback")]]
    output_dir: str
    overwrite: bool
    retry_failed: bool
    other_code: Literal["refuse", "allow"]
