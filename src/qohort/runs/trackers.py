"""Loggers of Lightning by their `_target_`: MLflow, Comet and others, one for each member, each row once."""

from __future__ import annotations

import inspect
import json
import os
import shutil
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from hydra.utils import instantiate

from qohort.config.checks import class_names
from qohort.config.errors import ConfigError
from qohort.config.identity import flat
from qohort.config.targets import locate
from qohort.runs.loggers import RunInfo, Sink

if TYPE_CHECKING:  # slow to import, and a report does without it
    from pytorch_lightning.loggers import Logger

CONTINUED_BY = ("run_id", "experiment_key", "run_hash", "id")
"""Arguments with which loggers continue an earlier run: MLflow's, Comet's, Aim's and others'."""
NAMED_BY = ("run_name", "name")
"""Arguments that name a run."""
PACKAGES = {"MLFlowLogger": ("mlflow", "mlflow-skinny"), "CometLogger": ("comet_ml", "comet-ml")}
"""The package that a logger of Lightning needs, as it is imported and as it is installed."""


def lightning_logger(node: Mapping[str, Any]) -> type[Logger] | None:
    """Return the class of a node of `logger` if it is one of Lightning's; None if it is a `Sink`."""
    target = locate(node["_target_"], "logger")
    fits = inspect.isclass(target) and "pytorch_lightning.loggers.logger.Logger" in class_names(target)
    return cast("type[Logger]", target) if fits else None


def check_lightning_loggers(loggers: Mapping[str, Mapping[str, Any]]) -> None:
    """Check that the chosen loggers of Lightning can log a cohort, and that their packages are installed.

    Raises:
        ConfigError: If one cannot or is not.
    """
    for key, node in loggers.items():
        kind = lightning_logger(node)
        if kind is None:
            continue
        if "pytorch_lightning.loggers.wandb.WandbLogger" in class_names(kind):
            raise ConfigError(
                f"logger.{key}._target_={node['_target_']} has one W&B run for a whole process, but each member needs "
                "its own: use logger=wandb"
            )
        module, package = next((PACKAGES[one.__name__] for one in kind.__mro__ if one.__name__ in PACKAGES), ("", ""))
        if module and find_spec(module) is None:
            raise ConfigError(f"logger.{key} needs the package {package}: pip install {package}")


def open_sink(key: str, node: Mapping[str, Any], directory: Path, run: RunInfo) -> Sink:
    """Make a member's logger.

    Args:
        key: Its key in the group `logger`.
        node: Its node.
        directory: The run directory.
        run: Information about the run.
    """
    if lightning_logger(node) is not None:
        return TrackerSink(directory, run, key, node)
    sink: Sink = instantiate(node, _partial_=True, _convert_="all")(directory=directory, run=run)
    return sink


class TrackerSink:
    """Logs to one of Lightning's loggers, with env_steps as the step, and the configuration as hyperparameters.

    The file `loggers/<key>.json` in the run directory has the logger's own id of the run and the number of rows that it
    got. A resumed run continues that run if the logger has an argument for it (`CONTINUED_BY`), and sends only the rows
    that it has not got. Any other logger starts a new run, with all rows. A logger that must have a `save_dir` writes
    to `loggers/<key>/`.

    Args:
        directory: The run directory.
        run: Information about the run.
        key: The logger's key in the group `logger`.
        node: Its node.
    """

    def __init__(self, directory: Path, run: RunInfo, key: str, node: Mapping[str, Any]) -> None:
        from pytorch_lightning.utilities import rank_zero_only

        # A single process, whatever SLURM_PROCID or RANK say; other ranks would write nothing.
        cast(Any, rank_zero_only).rank = 0
        parameters = inspect.signature(locate(node["_target_"], f"logger.{key}")).parameters
        place = directory / "loggers"
        place.mkdir(exist_ok=True)
        given: dict[str, Any] = {}
        for name in NAMED_BY:
            if name in parameters and node.get(name) is None:
                given[name] = f"{run.group}/{run.name}"
        if "save_dir" in parameters and not node.get("save_dir"):
            shutil.rmtree(place / key, ignore_errors=True)
            given["save_dir"] = str(place / key)
        self._note = place / f"{key}.json"
        id, self._known = self._earlier()
        continued = next((name for name in CONTINUED_BY if name in parameters), None)
        if continued is None or node.get(continued) is not None or id is None:
            id, self._known = None, 0
        else:
            given[continued] = id
        self._logger: Logger = instantiate(node, _convert_="all", **given)
        if id is None:
            self._logger.log_hyperparams(flat(run.config))
        self._next = 0
        self._file = os.open(self._note, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        self._write_note()

    def _earlier(self) -> tuple[str | None, int]:
        """Return the id and the number of rows of the session before."""
        try:
            note = json.loads(self._note.read_text())
            return note["id"], int(note["rows"])
        except (OSError, ValueError, KeyError):
            return None, 0

    def _write_note(self) -> None:
        """Note the number of rows, for a process that is killed too. It never becomes shorter."""
        note = {"id": None if self._logger.version is None else str(self._logger.version)}
        os.pwrite(self._file, json.dumps({**note, "rows": max(self._next, self._known)}).encode(), 0)

    def log(self, row: Mapping[str, Any]) -> None:
        """Log one row."""
        self._next += 1
        if self._next <= self._known:
            return
        numbers = {key: value for key, value in row.items() if value is not None}  # null: it was not finite
        self._logger.log_metrics(numbers, step=row["env_steps"])
        self._write_note()

    def finish(self, failed: bool) -> None:
        """Write the remaining rows and close the logger."""
        os.close(self._file)
        self._logger.finalize("failed" if failed else "success")
