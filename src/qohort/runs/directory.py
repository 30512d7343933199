"""A run directory: its path, its files, its lock, and whether the run is finished."""

from __future__ import annotations

import fcntl
import hashlib
import itertools
import json
import os
import platform
import secrets
import shutil
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import yaml

from qohort.config.errors import ConfigError
from qohort.config.identity import config_hash, config_tree
from qohort.config.schema import TrainConfig
from qohort.runs.checkpoints import FINAL, drop_unused_blocks, load, newest_step, step_name
from qohort.runs.code import code_hash, uncommitted_changes
from qohort.runs.files import TEMPORARY, write_atomically
from qohort.runs.manifest import manifest

if TYPE_CHECKING:  # slow to import, and lists of runs do without it
    from torch import Tensor

WALL_TIMES = ("wall_s", "env_steps_per_s")
"""The columns of a metric row that depend on the clock and are left out of the fingerprint."""
RESULT_NUMBERS = ("env_steps", "final_return", "best_return", "auc", "wall_s")
"""What every `result.json` has, besides the fingerprint."""


class RunDirectory:
    """The directory of one member's run, `<output_dir>/<env>/<agent>-<hash8>/seed-<n>/`.

    Args:
        path: The directory; it need not exist.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock: int | None = None

    @classmethod
    def of(cls, config: TrainConfig) -> RunDirectory:
        """Return the run directory of a configuration. Runs of one experiment share its parent directory."""
        env = config.env.name.replace("/", "-")
        return cls(Path(config.output_dir) / env / f"{config.agent}-{config_hash(config)}" / f"seed-{config.seed}")

    @property
    def metrics(self) -> Path:
        """Path of `metrics.jsonl`."""
        return self.path / "metrics.jsonl"

    @property
    def final_checkpoint(self) -> Path:
        """Path of the checkpoint of a finished run."""
        return self.path / "checkpoints" / FINAL

    def result(self) -> dict[str, Any] | None:
        """Return the content of `result.json`; None if the run is not finished.

        Raises:
            ConfigError: If it is damaged.
        """
        result = self._read_json("result.json")
        if result is None:
            return None
        whole = all(isinstance(result.get(key), int | float) for key in RESULT_NUMBERS)
        if not whole or not isinstance(result.get("fingerprint"), str):
            raise self._damage("result.json")
        return result

    def failure(self) -> dict[str, Any] | None:
        """Return the content of `failed.json`, which has `env_steps` and `reason`; None if the run has not failed."""
        return self._read_json("failed.json")

    def write_failure(self, env_steps: int, reason: str, details: Mapping[str, Any]) -> None:
        """Mark the run as failed, so that it is not resumed and starts over only with `retry_failed=true`.

        Args:
            env_steps: The env_steps at which it failed.
            reason: Why it failed.
            details: What else is known, as `episode`: the seed and the actions that repeat an environment's failure.
        """
        self._write_json("failed.json", {"env_steps": env_steps, "reason": reason, **details})

    def set_aside(self) -> None:
        """Put the run aside, to be started over. It is not deleted before the new run has started."""
        place = self.path.resolve()  # the directory may be a link to another disk, which stays one
        if place.exists():
            place.rename(self._aside)
            place.mkdir()

    def restore(self) -> None:
        """Bring back what was put aside, because the new run could not start."""
        if self._aside.exists():
            self.clear()
            self.path.resolve().rmdir()
            self._aside.rename(self.path.resolve())

    def discard_aside(self) -> None:
        """Delete what was put aside."""
        if self._aside.exists():
            shutil.rmtree(self._aside)

    def clear(self) -> None:
        """Empty the directory, and make it if it does not exist."""
        place = self.path.resolve()
        if place.exists():
            shutil.rmtree(place)
        place.mkdir(parents=True)

    def tidy(self) -> None:
        """Delete the files that were being written when a process was killed."""
        for left_over in self.path.rglob(".*.*"):
            if TEMPORARY.fullmatch(left_over.name):
                left_over.unlink()

    @property
    def _aside(self) -> Path:
        place = self.path.resolve()
        return place.with_name(f".{place.name}.before")

    def lock(self) -> bool:
        """Lock the run for this process; return False if another process holds the lock.

        The operating system releases the lock when the process ends, however it ends, so a lock is never stale.

        Raises:
            ConfigError: If the directory cannot be created.
        """
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            handle = os.open(self.lock_file, os.O_RDWR | os.O_CREAT, 0o666)
        except OSError as error:
            raise ConfigError(f"{self.path} cannot be made: {error.strerror}") from error
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(handle)
            return False
        os.ftruncate(handle, 0)
        os.write(handle, f"process {os.getpid()} on {platform.node()}".encode())
        self._lock = handle
        _LOCKED.add(handle)
        if self._aside.exists() and self.metrics.exists() and self.metrics.stat().st_size:
            self.discard_aside()
        else:  # a process was killed while it started over
            self.restore()
        return True

    def unlock(self) -> None:
        """Release the lock."""
        if self._lock is not None:
            _LOCKED.discard(self._lock)
            os.close(self._lock)
            self._lock = None

    def holder(self) -> str:
        """Return which process on which machine holds the lock."""
        return self.lock_file.read_text() or "another process"

    @property
    def lock_file(self) -> Path:
        """Path of the file that the process which trains the run has locked."""
        return self.path.parent / f".{self.path.name}.lock"

    def resumable_step(self) -> int | None:
        """Return the env_steps from which the run can be resumed; None if it has no checkpoint."""
        return newest_step(self.path)

    def is_of_requeued_job(self) -> bool:
        """Return whether this process is a requeued SLURM job that started this run itself before."""
        if not int(os.environ.get("SLURM_RESTART_COUNT", 0)):
            return False
        return self.manifest().get("slurm_job") == os.environ.get("SLURM_JOB_ID")

    def config(self) -> dict[str, Any]:
        """Return the content of `config.yaml`."""
        tree: dict[str, Any] = yaml.safe_load((self.path / "config.yaml").read_text())
        return tree

    def prepare(self, config: TrainConfig, command: list[str], step: int, environments: str) -> None:
        """Create the directory and write `config.yaml` and `manifest.json`.

        The manifest of a resumed run contains the manifests of its earlier sessions.

        Args:
            config: The run's configuration.
            command: The command line.
            step: The env_steps of the checkpoint to resume from; 0 empties the directory.
            environments: `tensor` or `gymnasium`.
        """
        run_id = self._run_id(config, step)
        if step == 0:
            self.clear()
        for checkpoint in (self.path / "checkpoints").glob("step-*.ckpt"):
            if checkpoint.name > step_name(step):  # damaged, since the run does not resume from it
                checkpoint.unlink()
        drop_unused_blocks(self.path / "checkpoints")  # a damaged one would be taken for one of the same content
        self.tidy()
        text = yaml.safe_dump(config_tree(config), sort_keys=False, allow_unicode=True)
        write_atomically(self.path / "config.yaml", text.encode())
        made = {"run_id": run_id, **manifest(config, command, environments)}
        self._write_json("manifest.json", {**made, "resumed": self._resumed(step)})
        if patch := uncommitted_changes():
            write_atomically(self.path / "code.patch", patch.encode())

    @property
    def run_id(self) -> str:
        """The id that trackers know the run by; it moves with the directory. Empty for runs of earlier versions."""
        return str((self._earlier_manifest() or {}).get("run_id", ""))

    def _run_id(self, config: TrainConfig, step: int) -> str:
        """Return the run's id, a new one for a run that starts over or starts again with other code.

        A run that was killed before its first checkpoint keeps it, since it repeats the rows that it had.
        """
        same = step > 0 or self.code() == code_hash(config_tree(config))
        return (same and self.run_id) or f"{config_hash(config)}-{config.seed}-{secrets.token_hex(4)}"

    def _resumed(self, step: int) -> list[dict[str, Any]]:
        """Return one entry per resume: its env_steps, and the manifest before it."""
        before = self._earlier_manifest() if step else None
        return [] if before is None else [*before.pop("resumed", []), {"env_steps": step, "before": before}]

    def _earlier_manifest(self) -> dict[str, Any] | None:
        """Return the content of `manifest.json`; None if it is missing or damaged, which does not prevent a resume."""
        try:
            return self._read_json("manifest.json")
        except ConfigError:
            return None

    def manifest(self) -> dict[str, Any]:
        """Return the content of `manifest.json`; nothing if it is missing or damaged."""
        return self._earlier_manifest() or {}

    def code(self) -> str | None:
        """Return the hash of the code that made the run; None if the manifest has none."""
        code: str | None = self.manifest().get("code")
        return code

    def note_fallbacks(self, fallbacks: Mapping[str, str]) -> None:
        """Add to the manifest which programs ran in another compile mode than the configured one.

        Args:
            fallbacks: The mode that was used instead, by name of the program.
        """
        if fallbacks:
            self._write_json("manifest.json", {**self.manifest(), "compile_fallbacks": dict(fallbacks)})

    def rows(self) -> list[dict[str, Any]]:
        """Return the rows of `metrics.jsonl`."""
        with self.metrics.open() as file:
            return [json.loads(line) for line in file]

    def write_result(self, config: TrainConfig) -> dict[str, Any]:
        """Write `result.json`, which marks the run as finished, and delete all but the final checkpoint.

        Args:
            config: The run's configuration.

        Returns:
            The content of `result.json`.
        """
        rows = self.rows()
        curve = [(row["env_steps"], row["eval/return"]) for row in rows if "eval/return" in row]
        last = rows[-1]
        checkpoint = load(self.final_checkpoint)
        result = {
            "seed": config.seed,
            "budget": config.budget,
            "env_steps": checkpoint["qohort"]["progress"]["env_steps"],
            "gradient_steps": last["gradient_steps"],
            "episodes": last["episodes"],
            "final_return": curve[-1][1],
            "best_return": max(score for _, score in curve),
            "auc": area_under_curve(curve),
            "wall_s": last["wall_s"],
            "fingerprint": fingerprint(checkpoint["state_dict"], rows),
        }
        self._write_json("result.json", result)
        for old in (self.path / "checkpoints").glob("step-*.ckpt"):
            old.unlink()
        drop_unused_blocks(self.path / "checkpoints")
        return result

    def _read_json(self, name: str) -> dict[str, Any] | None:
        file = self.path / name
        if not file.exists():
            return None
        try:
            tree = json.loads(file.read_text())
        except (OSError, ValueError) as error:
            raise self._damage(name) from error
        if not isinstance(tree, dict):
            raise self._damage(name)
        return tree

    def _damage(self, name: str) -> ConfigError:
        return ConfigError(f"{self.path / name} is damaged: delete {self.path} to train the run again")

    def _write_json(self, name: str, tree: Mapping[str, Any]) -> None:
        write_atomically(self.path / name, (json.dumps(tree, indent=2) + "\n").encode())


_LOCKED: set[int] = set()
"""The open lock files of this process."""


def _close_locks() -> None:
    """Close the lock files in a forked process, which would hold the locks for as long as it lives."""
    for handle in _LOCKED:
        os.close(handle)
    _LOCKED.clear()


os.register_at_fork(after_in_child=_close_locks)


def fingerprint(weights: Mapping[str, Tensor], rows: Iterable[Mapping[str, Any]]) -> str:
    """Return the SHA-256 of a member's final weights and of its metric rows without wall times.

    Args:
        weights: The tensors `[1, ...]` of `online` and `target` by name.
        rows: The metric rows.
    """
    digest = hashlib.sha256()
    for name in sorted(weights):
        tensor = weights[name][0].contiguous()
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.numpy().tobytes())
    for row in rows:
        kept = {key: value for key, value in row.items() if key not in WALL_TIMES}
        digest.update(json.dumps(kept, sort_keys=True).encode() + b"\n")
    return digest.hexdigest()


def area_under_curve(curve: list[tuple[int, float]]) -> float:
    """Return the area under a learning curve divided by its length: the mean return by linear interpolation.

    Args:
        curve: Points (env_steps, return). The result for a single point is its return.
    """
    if len(curve) == 1:
        return curve[0][1]
    area = sum((x1 - x0) * (y0 + y1) / 2 for (x0, y0), (x1, y1) in itertools.pairwise(curve))
    return area / (curve[-1][0] - curve[0][0])


def evaluation_scores(env_steps: Sequence[int], values: Sequence[float], last: int) -> dict[str, float]:
    """Return the scores of a run by name: `final`, `last`, `auc` and `best`.

    Args:
        env_steps: The env_steps of its evaluations, `[evaluations]`.
        values: A metric of its evaluations, `[evaluations]`.
        last: Number of evaluations in the mean of the last ones.
    """
    return {
        "final": values[-1],
        "last": float(np.mean(values[-last:])),
        "auc": area_under_curve(list(zip(env_steps, values, strict=True))),
        "best": max(values),
    }
