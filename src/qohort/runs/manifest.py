"""The manifest, `manifest.json`: what it takes to reproduce a run."""

from __future__ import annotations

import os
import platform
import shlex
import sys
from collections.abc import Sequence
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode

from qohort.config.identity import config_tree
from qohort.config.schema import TrainConfig
from qohort.runs.code import code_hash, repository

PACKAGES = (
    *("torch", "pytorch-lightning", "hydra-core", "omegaconf", "gymnasium", "numpy", "numba", "wandb"),
    *("box2d", "minatar", "ale-py"),  # environments
)


HISTORY = ("command", "run_id", "slurm_job", "resumed")
"""Keys of `manifest.json` about how a run was started, which do not affect its result."""


def manifest(config: TrainConfig, command: list[str], environments: str) -> dict[str, Any]:
    """Return the content of `manifest.json`, except the earlier sessions of a resumed run.

    Args:
        config: The run's configuration.
        command: The command line.
        environments: `tensor` or `gymnasium`.
    """
    import torch  # slow to import; lists of runs do without it

    commit, dirty = repository()
    return {
        "command": command,
        "slurm_job": os.environ.get("SLURM_JOB_ID"),
        "git_commit": commit,
        "git_dirty": dirty,
        "code": code_hash(config_tree(config)),
        "python": platform.python_version(),
        "packages": {name: _version(name) for name in ("qohort", *PACKAGES)},
        "platform": platform.platform(),
        "cpu": cpu_name(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "accelerator": config.trainer.accelerator,
        "threads": config.trainer.threads,
        "bits": config.bits,
        "compile": config.compile,
        "compile_fallbacks": {},
        "environments": environments,
        "deterministic": config.env.deterministic,
        "mkl_cbwr": os.environ.get("MKL_CBWR"),
    }


@cache  # a cohort has a manifest for each member
def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def cpu_name() -> str:
    """Return the model of this machine's CPU."""
    try:
        with open("/proc/cpuinfo") as file:
            return next(line.partition(":")[2].strip() for line in file if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def in_sweep() -> bool:
    """Return whether this process runs a job of a sweep."""
    return HydraConfig.initialized() and bool(HydraConfig.get().mode == RunMode.MULTIRUN)


def command_line() -> list[str]:
    """Return the command line that runs this job again: as typed, or for a job of a sweep with the job's overrides."""
    if in_sweep():
        return [f"{HydraConfig.get().job.name}.py", *HydraConfig.get().overrides.task]
    return [*Path(sys.argv[0]).name.split(" "), *sys.argv[1:]]  # the command `qohort train` is two words


def as_typed(words: Sequence[str]) -> str:
    """Return a command line of `command_line` as the command `qohort`, which is there in a clone and elsewhere."""
    return shlex.join(words if words[0] == "qohort" else ["qohort", words[0].removesuffix(".py"), *words[1:]])
