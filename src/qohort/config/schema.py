"""The schema of a run: every key of `conf/train.yaml` with its type and bounds. It depends on no component."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from qohort.config.annotations import Count, Node, PositiveInt, Range, Role


@dataclass(frozen=True)
class EnvironmentConfig:
    """The environment and the number of copies per member.

    Attributes:
        id: A Gymnasium id. `module:Name-v0` imports `module` first, so that it can register the environment.
        num_envs: Number of environments per member.
        kwargs: Keyword arguments of `gymnasium.make`.
        wrappers: Wrappers, innermost first: nodes whose `_target_` takes the environment as first argument.
        deterministic: Whether an episode must repeat from its seed and its actions. If not, this is not checked, and a
            resumed run starts new episodes.
        backend: `tensor` for environments as functions of tensors, which are compiled with the agent; `gymnasium` for
            Gymnasium's own; `auto` for a tensor environment where there is one. Their episodes have the same
            distribution, but are not the same.
        workers: Number of processes that step the environments of the cohort; 0 for the process of the agent.
        frame_stack: Number of the newest observations that are stacked, on a new first axis, outside all wrappers; 1
            for none.
        frame_padding: What stands for the observations before the first one of an episode: `reset` for the first
            one, `zero` for zeros.
        action_mask: Whether each observation has a mask of the actions that may be chosen, as `info["action_mask"]` or
            as the key `action_mask` of a Dict observation. Not for tensor environments.
    """

    id: str
    num_envs: PositiveInt
    kwargs: Mapping[str, Any]
    wrappers: Sequence[Annotated[Node, Role("gymnasium.Env", ("env",))]]
    deterministic: bool = True
    backend: Literal["auto", "tensor", "gymnasium"] = "auto"
    workers: Count = 0
    frame_stack: PositiveInt = 1
    frame_padding: Literal["reset", "zero"] = "reset"
    action_mask: bool = False

    @property
    def name(self) -> str:
        """The id without the module that registers it."""
        return self.id.rpartition(":")[2]


@dataclass(frozen=True)
class EvaluationConfig:
    """Evaluation during training.

    Attributes:
        every: env_steps between evaluations; None for a twentieth of the budget, which `evaluation_interval` returns.
        episodes: Number of episodes per evaluation.
        epsilon: Probability of a random action; 0 for the greedy policy.
        max_episode_steps: Maximum length of an episode in env_steps.
        still_steps: env_steps without a reward and without a change of the observation after which an episode ends;
            None for never. Not for tensor environments.
        env: Keys of `env` that have another value in evaluation. Those of `kwargs` are set one by one.
        video_at: env_steps; at the first evaluation at or after each of them, an episode is filmed.
    """

    every: PositiveInt | None
    episodes: PositiveInt
    epsilon: Annotated[float, Range(0, 1)]
    max_episode_steps: PositiveInt
    still_steps: PositiveInt | None = None
    env: Mapping[str, Any] = field(default_factory=dict)
    video_at: Sequence[PositiveInt] = ()


EVALUATIONS = 20
"""The number of evaluations of a run that does not set `evaluation.every`."""


def evaluation_interval(budget: int) -> int:
    """Return the default of `evaluation.every`: a twentieth of the budget, rounded up to whole env_steps.

    It is rounded up so that there are never more than `EVALUATIONS`, of which the last one is at the end. A budget of
    fewer env_steps than that has an evaluation at each of them.

    Args:
        budget: The env_steps of a run.
    """
    return -(-budget // EVALUATIONS)


@dataclass(frozen=True)
class CheckpointConfig:
    """When checkpoints are saved, and whether a run resumes exactly.

    Attributes:
        every: env_steps between checkpoints.
        minutes: Maximum time between checkpoints in minutes.
        replay: Whether the replay is saved. Without it, a resumed run fills its replay anew before it goes on learning.
    """

    every: PositiveInt
    minutes: Annotated[float, Range(0, above=True)]
    replay: bool = True


@dataclass(frozen=True)
class TrainerConfig:
    """Arguments of Lightning's Trainer, and two keys of Qohort: `threads` and `progress_bar`.

    Attributes:
        accelerator: `cpu`, `gpu`, or `auto`: a GPU if there is one.
        devices: Must be 1: a cohort is one program on one device.
        threads: CPU threads. With tensor environments they share out the members, which changes no bits; through
            Gymnasium they are PyTorch's.
        progress_bar: Whether to show progress.
        profiler: Lightning's profiler; None for none.
        detect_anomaly: Whether PyTorch checks the backward pass for NaN.
        deterministic: Whether PyTorch uses deterministic algorithms only; None keeps PyTorch's setting.
        benchmark: Whether cuDNN searches for the fastest algorithms; None keeps PyTorch's setting.
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
    "max_epochs": "a run is one epoch: set budget",
    "max_steps": "the budget decides: set budget",
    "max_time": "a run ends with its budget: set budget",
    "min_epochs": "a run is one epoch: set budget",
    "min_steps": "the budget decides: set budget",
    "logger": "loggers are chosen by logger=wandb,csv,tensorboard,mlflow,none",
    "callbacks": "callbacks are chosen by callbacks=NAME, a file in conf/callbacks",
    "gradient_clip_val": "each member's gradient is clipped to max_grad_norm",
    "gradient_clip_algorithm": "each member's gradient is clipped to max_grad_norm",
    "accumulate_grad_batches": "an update is one batch: set batch_size",
    "log_every_n_steps": "set log_every, in env_steps",
    "val_check_interval": "set evaluation.every, in env_steps",
    "check_val_every_n_epoch": "set evaluation.every, in env_steps",
    "limit_train_batches": "the budget decides: set budget",
    "fast_dev_run": "set a small budget",
    "overfit_batches": "the budget decides: set budget",
    "strategy": "a cohort is one program on one device",
    "num_nodes": "a cohort is one program on one device; run a sweep to use several nodes",
    "sync_batchnorm": "a cohort is one program on one device",
    "precision": "members are trained in float32, which keeps them exact",
    "plugins": "Qohort's own plugin splits checkpoints between the members",
    "enable_checkpointing": "set checkpoint.every and checkpoint.minutes",
    "enable_progress_bar": "set trainer.progress_bar",
    "default_root_dir": "set output_dir",
    "use_distributed_sampler": "batches come from the replay",
    "reload_dataloaders_every_n_epochs": "a run is one epoch",
    "inference_mode": "evaluation does not use Lightning's validation loop",
    "num_sanity_val_steps": "evaluation does not use Lightning's validation loop",
    "limit_val_batches": "set evaluation.episodes",
    "limit_test_batches": "set evaluation.episodes",
    "limit_predict_batches": "set evaluation.episodes",
    "barebones": "it turns off metrics and checkpoints, which a run needs",
}
"""Arguments of Lightning's Trainer that cohorts do not support, with what to set instead."""


@dataclass(frozen=True)
class TrainConfig:
    """The configuration of one member. `conf/train.yaml` documents each key and its unit."""

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
    bits: Literal["portable", "native"]
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
    logger: Mapping[
        str,
        Annotated[
            Node, Role("qohort.runs.loggers.Sink", ("directory", "run"), "pytorch_lightning.loggers.logger.Logger")
        ],
    ]
    callbacks: Mapping[str, Annotated[Node, Role("pytorch_lightning.Callback")]]
    output_dir: str
    overwrite: bool
    retry_failed: bool
    other_code: Literal["refuse", "allow"]
    info_metrics: Sequence[str] = ()
