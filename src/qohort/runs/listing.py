"""Lists runs: the state of each, its scores, and the keys in which it differs from its agent's preset."""

from __future__ import annotations

import difflib
import fcntl
import functools
import glob
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import hydra
import yaml
from hydra.errors import HydraException

from qohort.config.checks import build_config
from qohort.config.composition import Sources, parser_of, project_directory
from qohort.config.errors import ConfigError
from qohort.config.identity import config_difference, experiment_tree, flat
from qohort.config.members import check_config
from qohort.config.messages import format_value
from qohort.config.schema import TrainConfig
from qohort.runs.checkpoints import newest_step
from qohort.runs.directory import RunDirectory

STATES = ("finished", "running", "interrupted", "failed", "damaged")
DEPTHS = ("", "*/", "*/*/", "*/*/*/")


@dataclass(frozen=True)
class Run:
    """One run.

    Attributes:
        directory: The run directory.
        env: The environment's part of the path.
        experiment: The experiment's part of the path, `<agent>-<hash8>`.
        seed: The seed.
        state: One of `STATES`.
        detail: Who runs it, where it was interrupted or why it failed; empty for a finished run.
        score: The final return of a finished run.
        modified: When its files last changed, in seconds since 1970.
        size: The size of its files, in bytes.
        code: The code that made it, as `manifest.json` has it.
        config: Its configuration; None if this version cannot read it.
        problem: Why not.
    """

    directory: Path
    env: str
    experiment: str
    seed: int
    state: str
    detail: str
    score: float | None
    modified: float
    size: int
    code: str | None
    config: TrainConfig | None
    problem: str = ""


def runs_in(path: Path, named: bool = False) -> list[Run]:
    """Return the runs in a directory: an output directory, or any one below it.

    Args:
        path: The directory.
        named: Whether it must be that of a run or of an experiment, for the message.

    Raises:
        ConfigError: If the directory does not exist.
    """
    if not path.is_dir():
        wanted = "a run's or an experiment's directory" if named else "an output directory, as outputs, or one below it"
        raise ConfigError(f"{path} is not a directory: {_near(path) if named else ''}give {wanted}")
    # Not Path.glob, which raises an error where a directory vanishes or cannot be read.
    found = {
        (path / file).parent for depth in DEPTHS for file in glob.glob(f"{depth}seed-*/config.yaml", root_dir=path)
    }
    if (path / "config.yaml").is_file():
        found.add(path)
    return [_run(directory) for directory in sorted(found, key=_order)]


def _near(path: Path) -> str:
    """Return a part of a message about a directory that is not there: those beside it of nearest name; maybe empty."""
    existing = next(one for one in path.absolute().parents if one.is_dir())
    missing = path.absolute().relative_to(existing).parts[0]
    beside = [one.name for one in existing.iterdir() if one.is_dir()] if os.access(existing, os.R_OK) else []
    close = difflib.get_close_matches(missing, sorted(beside), n=3)
    if not close:
        close = sorted(one for one in beside if one.startswith(missing.rpartition("-")[0] or missing))[:3]
    shown = [os.path.relpath(existing / one) if not path.is_absolute() else str(existing / one) for one in close]
    return f"did you mean {' or '.join(shown)}? " if shown else ""


def _order(directory: Path) -> tuple[str, int]:
    return str(directory.parent), _seed(directory)


def _seed(directory: Path) -> int:
    number = directory.name.partition("-")[2]
    return int(number) if number.isdecimal() else -1


def _run(directory: Path) -> Run:
    place = directory.absolute()
    own = RunDirectory(directory)
    files = [file.stat() for file in directory.rglob("*") if file.is_file() and not file.is_symlink()]
    state, detail, score = state_of(own)
    problem = ""
    try:
        config = build_config(TrainConfig, own.config())
    except (ValueError, TypeError, AttributeError, OSError, yaml.YAMLError) as error:
        config, problem = None, " ".join(str(error).split())
    return Run(
        directory,
        place.parent.parent.name,
        place.parent.name,
        _seed(directory),
        state,
        detail,
        score,
        max((file.st_mtime for file in files), default=0.0),
        sum(file.st_size for file in files),
        own.code(),
        config,
        problem,
    )


def state_of(directory: RunDirectory) -> tuple[str, str, float | None]:
    """Return the state of a run, what there is to say about it, and its final return."""
    try:
        result, failure = directory.result(), directory.failure()
    except ConfigError as error:
        return "damaged", str(error), None
    if result is not None:
        return "finished", "", float(result["final_return"])
    if failure is not None:
        return "failed", f"at {failure.get('env_steps', 0):,}: {failure.get('reason', '')}", None
    if is_locked(directory):
        return "running", f"by {directory.holder()}", None
    step = newest_step(directory.path)
    return "interrupted", f"at {step:,}" if step else "before its first checkpoint", None


def is_locked(directory: RunDirectory) -> bool:
    """Return whether a process is training a run."""
    try:
        handle = os.open(directory.lock_file, os.O_RDONLY)
    except OSError:
        return False
    try:
        fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(handle)
    return False


def differences(config: TrainConfig) -> dict[str, tuple[Any, Any]]:
    """Return the keys in which a run differs from the preset of its agent, in its environment: (preset's, its own).

    Empty if its agent has no preset, as an arm of an ablation: then those from `agent=dqn` are returned.
    """
    preset = config.agent.partition("+")[0]
    base = _preset(preset) or _preset("dqn")
    found = {} if base is None else config_difference(base, config)
    own = flat(experiment_tree(config))
    return {key: value for key, value in found.items() if key in own and key != "env.id"}


def in_table(key: str, value: Any) -> tuple[str, str]:
    """Return a key and its value as tables show them: a component is its class, and ours have no module.

    Args:
        key: The key, with dots.
        value: Its value.
    """
    if key.endswith("._target_"):
        text = str(value)
        return key.removesuffix("._target_"), text.rpartition(".")[2] if text.startswith("qohort.") else text
    return key, format_value(value)


@functools.cache
def _preset(agent: str) -> TrainConfig | None:
    """Return the configuration of a preset; None if there is none."""
    sources = Sources("train", project=project_directory())
    try:
        with parser_of(sources):
            composed = hydra.compose("train", [f"agent={agent}"])
        return check_config(composed)[0]
    except (HydraException, ConfigError):
        return None


def groups(runs: Sequence[Run]) -> Iterator[list[Run]]:
    """Yield the runs of each experiment, in the order of their seeds."""
    by_parent: dict[Path, list[Run]] = {}
    for run in runs:
        by_parent.setdefault(run.directory.parent, []).append(run)
    yield from by_parent.values()


def in_words(seeds: Sequence[int]) -> str:
    """Return seeds as ranges, as `0-4, 7`."""
    parts: list[list[int]] = []
    for seed in sorted(seeds):
        if parts and seed == parts[-1][-1] + 1:
            parts[-1].append(seed)
        else:
            parts.append([seed])
    return ", ".join(str(part[0]) if len(part) == 1 else f"{part[0]}-{part[-1]}" for part in parts)


def age(seconds: float) -> str:
    """Return a time in the past as in `5 min`."""
    passed = max(time.time() - seconds, 0)
    for unit, length in (("d", 86_400), ("h", 3_600), ("min", 60)):
        if passed >= length:
            return f"{passed // length:.0f} {unit}"
    return f"{passed:.0f} s"


def size(count: int) -> str:
    """Return bytes as in `3.4 MB`."""
    amount = float(count)
    for unit in ("B", "kB", "MB"):
        if amount < 1000:
            return f"{amount:.0f} {unit}" if unit == "B" else f"{amount:.1f} {unit}"
        amount /= 1000
    return f"{amount:.1f} GB"


def as_json(run: Run) -> Mapping[str, Any]:
    """Return what is known of a run for `--json`."""
    own = {} if run.config is None else {key: ours for key, (_, ours) in differences(run.config).items()}
    return {
        "directory": str(run.directory),
        "env": run.env,
        "experiment": run.experiment,
        "agent": None if run.config is None else run.config.agent,
        "seed": run.seed,
        "state": run.state,
        "detail": run.detail,
        "final_return": run.score,
        "modified": run.modified,
        "bytes": run.size,
        "code": run.code,
        "differs": own,
    }
