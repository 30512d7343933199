"""W&B's runs: how one is started, and continued by a resumed run without a row twice."""

from __future__ import annotations

import atexit
import contextlib
import functools
import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unittest import mock

import yaml

if TYPE_CHECKING:
    import wandb

WANDB_MODES = ("online", "offline", "disabled", "shared", "dryrun", "run")
"""Valid values of `WANDB_MODE`; `dryrun` and `run` are old names of `offline` and `online`."""
WANDB_ONLINE = ("online", "shared", "run")
"""Those of them that need a server."""
NOTE = "rows.json"
"""The file in a run's folder in `wandb/` that holds its id and how many rows it has together with earlier ones."""


def wandb_mode() -> str:
    """Return W&B's mode: offline unless `WANDB_MODE` is set."""
    return os.environ.get("WANDB_MODE", "offline")


VARIABLES = ("WANDB_SWEEP_ID", "WANDB_RUN_ID", "WANDB_SWEEP_PARAM_PATH", "WANDB_RESUME")
"""What `wandb agent` sets for the one run that it started. The members' runs are runs of their own."""
PLACE = {"project": "WANDB_PROJECT", "entity": "WANDB_ENTITY"}
"""What it sets for all of them."""


@dataclass(frozen=True)
class Agent:
    """What `wandb agent` says of the run that it started.

    Attributes:
        sweep: The sweep's id.
        run: The id of the agent's run.
        parameters: The parameters that the sweep has chosen.
        place: The project and the entity of the sweep, as far as the agent says.
    """

    sweep: str
    run: str
    parameters: Mapping[str, Any]
    place: Mapping[str, str]


@functools.cache
def wandb_agent() -> Agent | None:
    """Return the agent that started this process, if one did.

    Its variables are taken out of the environment at the first call: W&B would make every run of this process the
    agent's.
    """
    if not os.environ.get("WANDB_SWEEP_ID") or not os.environ.get("WANDB_RUN_ID"):
        return None
    sweep, run, path, _ = (os.environ.pop(name, "") for name in VARIABLES)
    tree = yaml.safe_load(Path(path).read_text()) if path else {}
    parameters = {
        key: node["value"] for key, node in tree.items() if isinstance(node, dict) and not key.startswith("wandb_")
    }
    place = {key: os.environ[name] for key, name in PLACE.items() if os.environ.get(name)}
    return Agent(sweep, run, parameters, place)


def start_wandb(
    directory: Path, id: str | None, settings: wandb.Settings | None = None, **options: Any
) -> tuple[wandb.Run, int]:
    """Start a W&B run, or continue the one that has this id.

    Online, W&B's server says how many rows it has. Offline, a folder in `wandb/` that `wandb sync` has uploaded is
    kept, and the new one goes on after its rows. A folder that was not uploaded is deleted, since the new one has its
    rows. If it is not known how many rows were uploaded, because the run was killed, the run gets a new id: W&B would
    append all rows to the old ones.

    Args:
        directory: W&B writes to `wandb/` in it.
        id: The id; None for a random one.
        settings: Further settings.
        options: Arguments of `wandb.init`.

    Returns:
        The run, and the number of rows that it has already.
    """
    import wandb

    if (agent := wandb_agent()) is not None:
        options |= agent.place
    atexit.unregister(_end_wandb)
    atexit.register(_end_wandb)
    online = wandb_mode() in WANDB_ONLINE
    known = 0
    if online or id is None:
        shutil.rmtree(directory / "wandb", ignore_errors=True)
    else:
        id, known = _after_uploaded(directory / "wandb", id)
    settings = settings or wandb.Settings()
    # The members of a cohort share a machine and a terminal, so its load and output belong to none of them.
    settings.update_from_dict({"silent": True, "console": "off", "x_disable_stats": True})
    with _packages_read_once():
        run = wandb.init(
            id=id,
            dir=directory,
            mode=wandb_mode(),  # type: ignore[arg-type]
            resume="allow" if online and id is not None else None,
            reinit="create_new",
            settings=settings,
            **options,
        )
    run.define_metric("env_steps")
    run.define_metric("*", step_metric="env_steps")
    return run, run.starting_step if online else known


@contextlib.contextmanager
def _packages_read_once() -> Iterator[None]:
    """Within this context, W&B does not read its list of installed packages anew, which takes 0.1 s for each run."""
    import wandb.util

    if not hasattr(wandb.util, "working_set"):  # another version of W&B
        yield
        return
    with mock.patch("wandb.util.working_set", return_value=_packages()):
        yield


@functools.cache
def _packages() -> Sequence[Any]:
    """Return W&B's list of the installed packages."""
    from wandb.util import working_set

    return list(working_set())


def note_rows(run: wandb.Run, rows: int) -> None:
    """Note beside a W&B run how many rows it has, for the run that continues it.

    Args:
        run: The run, before it is finished.
        rows: The number of rows, those of earlier sessions included.
    """
    folder = Path(run.settings.sync_dir)
    if folder.is_dir():  # there is none with WANDB_MODE=disabled
        (folder / NOTE).write_text(json.dumps({"id": run.id, "rows": rows}))


def _after_uploaded(place: Path, id: str) -> tuple[str, int]:
    """Delete what was not uploaded, and return the id to continue with and the number of rows that were uploaded.

    Args:
        place: The folder `wandb/`.
        id: The run's id.
    """
    folders = sorted(
        (folder for folder in place.glob("*run-*-*") if folder.is_dir() and not folder.is_symlink()),
        key=lambda folder: folder.name.removeprefix("offline-"),
    )
    kept = [one for one in folders if one.name.startswith("run-") or list(one.glob("*.synced"))]
    for folder in folders:
        if folder not in kept:
            shutil.rmtree(folder)
    if not kept:
        return id, 0
    try:
        note = json.loads((kept[-1] / NOTE).read_text())
        return str(note["id"]), int(note["rows"])
    except (OSError, ValueError, KeyError):
        return f"{id}-{len(kept)}", 0


def _end_wandb() -> None:
    """End W&B's service before W&B does at the end of the process, where a service that has died would be an error."""
    import wandb

    with contextlib.suppress(Exception):
        wandb.teardown()
