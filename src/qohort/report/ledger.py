"""The ledger: for each published result the command, the configuration, the code, the machine and the fingerprints.

A file, `results/ledger/NAME.yaml`, belongs to a table or a study. It has a row for each arm in each environment, and in
it a line for each seed. Every IQM and every interval of a table is computed from these lines.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from qohort.config.checks import build_config
from qohort.config.errors import ConfigError
from qohort.config.identity import flat
from qohort.config.messages import format_value, nearest
from qohort.statistics import Array

HEAD = "# Written by `qohort ledger`: do not edit. `qohort reproduce {name}` trains its runs again and compares.\n"
NO_REASON = ("commit", "uncommitted_changes", "packages.qohort", "packages.wandb")
"""What is recorded and changes no bit. Another commit or version of Qohort with the same code has the same bits."""


@dataclass(frozen=True)
class LedgerRun:
    """A run.

    Attributes:
        seed: The seed.
        final: The last evaluation.
        best: The best evaluation, with hindsight.
        auc: Mean height of the curve of evaluations.
        fingerprint: SHA-256 of the final weights and of the metric rows without wall times.
        made: How it was made, if not as its row says.
    """

    seed: int
    final: float
    best: float
    auc: float
    fingerprint: str
    made: str | None = None


@dataclass(frozen=True)
class LedgerRow:
    """An arm in an environment.

    Attributes:
        arm: The arm's label.
        title: Its name in tables.
        environment: The environment, as the study names it.
        env: The environment, as Gymnasium names it.
        against: The label of the arm it is compared with; its own for none.
        hash8: The configuration's hash.
        budget: env_steps of a run.
        date: The day on which the last run ended, in UTC.
        made: How the runs were made: a key of the ledger's `made`.
        overrides: What `qohort train` gets, without the seed.
        runs: The runs, by seed.
    """

    arm: str
    title: str
    environment: str
    env: str
    against: str
    hash8: str
    budget: int
    date: str
    made: str
    overrides: Sequence[str]
    runs: Sequence[LedgerRun]

    @property
    def seeds(self) -> list[int]:
        """The seeds."""
        return [run.seed for run in self.runs]

    @property
    def name(self) -> str:
        """The arm and its environment, in words."""
        return f"{self.arm} on {self.environment}"

    def scores(self, column: str) -> Array:
        """Return a score of every run, `[n]`.

        Args:
            column: `final`, `best` or `auc`.
        """
        return np.array([getattr(run, column) for run in self.runs], dtype=np.float64)


@dataclass(frozen=True)
class LedgerFailures:
    """Runs of a study of sensitivity that failed. They count as the lowest score of their environment.

    Attributes:
        arm: The arm's label.
        environment: The environment, as the study names it.
        overrides: What `qohort train` gets, without the seed.
        seeds: The seeds.
    """

    arm: str
    environment: str
    overrides: Sequence[str]
    seeds: Sequence[int]


@dataclass(frozen=True)
class Ledger:
    """A file of the ledger.

    Attributes:
        title: What it is about.
        command: The command that trains all of it.
        made: How runs were made, by a letter: commit, code, versions, machine.
        rows: The rows.
        study: The keys of a study of sensitivity, `conf/sensitivity.yaml`; None for other runs.
        failed: The runs of a study of sensitivity that failed, which are in no row; None for none.
    """

    title: str
    command: str
    made: Mapping[str, Mapping[str, Any]]
    rows: Sequence[LedgerRow]
    study: Mapping[str, Any] | None = None
    failed: Sequence[LedgerFailures] | None = None


def made_of(manifest: Mapping[str, Any], patched: bool) -> dict[str, Any]:
    """Return what the ledger keeps of `manifest.json`: what can change the bits of a run, and the commit.

    Args:
        manifest: The content of `manifest.json`.
        patched: Whether the code had uncommitted changes.
    """
    packages = {name: version for name, version in manifest.get("packages", {}).items() if version is not None}
    named = ("cpu", "gpu", "accelerator", "threads", "bits", "compile")
    return {
        "commit": manifest.get("git_commit"),
        "uncommitted_changes": patched,
        "code": manifest.get("code"),
        "python": manifest.get("python"),
        "platform": _without_kernel(manifest.get("platform")),
        **{key: manifest.get(key) for key in named},
        "compile_fallbacks": dict(manifest.get("compile_fallbacks") or {}),
        "environments": manifest.get("environments"),
        "mkl_cbwr": manifest.get("mkl_cbwr"),
        "packages": packages,
    }


def _without_kernel(platform: str | None) -> str | None:
    """Return a platform without the release of its kernel, which changes no bit: `Linux-x86_64-with-glibc2.36`."""
    return None if platform is None else re.sub(r"^([A-Za-z]+)-.*?-(x86_64|aarch64|arm64|AMD64)", r"\1-\2", platform)


def made_differences(then: Mapping[str, Any], now: Mapping[str, Any]) -> tuple[str, ...]:
    """Return in words what differs in how two runs were made, except what changes no bit.

    Args:
        then: From `made_of`.
        now: From `made_of`.
    """
    one, other = flat(then), flat(now)
    # Of tensor environments, threads share members out, which changes no bit. Elsewhere they are PyTorch's.
    shared = {"threads"} if {one.get("environments"), other.get("environments")} == {"tensor"} else set()
    return tuple(
        f"{key.removeprefix('packages.')} {format_value(one.get(key))} then, {format_value(other.get(key))} now"
        for key in dict.fromkeys((*one, *other))
        if key not in {*NO_REASON, *shared} and (one.get(key) or None) != (other.get(key) or None)
    )


def ledger_text(name: str, ledger: Ledger) -> str:
    """Return the content of a ledger's file: YAML with a line for each run."""
    tree = dataclasses.asdict(ledger)
    tree = {key: tree[key] for key in ("title", "command", "study", "failed", "made", "rows") if tree[key] is not None}
    for row in tree["rows"]:
        row["runs"] = [{key: value for key, value in run.items() if value is not None} for run in row["runs"]]
    text: str = yaml.safe_dump(tree, sort_keys=False, allow_unicode=True, width=10**6, default_flow_style=None)
    return HEAD.format(name=name) + text


def read_ledger(directory: Path, name: str) -> Ledger:
    """Read a ledger.

    Args:
        directory: Where the ledgers are.
        name: The ledger's name, a file of the directory without `.yaml`.

    Raises:
        ConfigError: If it does not exist or is damaged.
    """
    file = directory / f"{name}.yaml"
    if not file.is_file():
        known = sorted(one.relative_to(directory).with_suffix("").as_posix() for one in directory.rglob("*.yaml"))
        if not known:
            raise ConfigError(f"ledger_dir={directory} has no ledgers: write one with qohort ledger")
        raise ConfigError(f"name={name} is not in the ledger: {nearest(name, known)}")
    try:
        tree = yaml.load(file.read_text(), Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))
        ledger: Ledger = build_config(Ledger, tree if isinstance(tree, Mapping) else {})
    except (yaml.YAMLError, ConfigError) as error:
        raise ConfigError(f"{file} is damaged: {' '.join(str(error).split())}") from error
    for row in ledger.rows:
        for key in (row.made, *(run.made for run in row.runs)):
            if key is not None and key not in ledger.made:
                raise ConfigError(f"{file} is damaged: {row.name} was made as in {key}, which is not in made")
    return ledger
