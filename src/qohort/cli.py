"""Hydra entry points that tell a mistake in one line on stderr, with exit code 2 and no traceback."""

from __future__ import annotations

import functools
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import hydra
from hydra._internal.utils import get_args_parser
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from qohort.config import nearest
from qohort.errors import ConfigError

BAD_INPUT = 2
CONFIG_DIRECTORY = Path(__file__).parents[2] / "conf"


def entry_point(config_name: str) -> Callable[[Callable[[DictConfig], Any]], Callable[[], None]]:
    """Make a script's main function from a task that takes the composed configuration.

    Args:
        config_name: The primary configuration, a file in `conf/`.
    """

    def decorate(task: Callable[[DictConfig], Any]) -> Callable[[], None]:
        @functools.wraps(task)
        def main() -> None:
            os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra raises, and what it raises is told here
            mistakes: list[ConfigError] = []

            @functools.wraps(task)
            def run(config: DictConfig) -> Any:
                # Hydra would announce an error of its job in a line of its own: take it past Hydra.
                try:
                    return task(config)
                except ConfigError as error:
                    mistakes.append(error)
                    return None

            try:
                _check_options()
                hydra.main(version_base="1.3", config_path=str(CONFIG_DIRECTORY), config_name=config_name)(run)()
                if mistakes:
                    raise mistakes[0]
            except ConfigError as error:
                fail(str(error))
            except (HydraException, OmegaConfBaseException) as error:
                cause = _cause(error)
                fail(str(cause) if isinstance(cause, ConfigError) else explain(cause, config_name))

        return main

    return decorate


def fail(message: str) -> NoReturn:
    """End the program with one line."""
    print(f"qohort: {' '.join(message.split())}", file=sys.stderr)
    sys.exit(BAD_INPUT)


def _check_options() -> None:
    """Let Hydra's own parser look at the command line first, and tell what it refuses in one line."""
    parser = get_args_parser()

    def error(message: str) -> NoReturn:
        raise ConfigError(f"{message}; settings are given as key=value, and --help lists the options")

    parser.error = error  # type: ignore[method-assign]
    arguments = parser.parse_args()
    for override in arguments.overrides:
        if "=" not in override and not override.startswith("~"):
            raise ConfigError(f"{override!r} is not a setting: write key=value")


def _cause(error: BaseException) -> BaseException:
    """The first error of a chain that says what was wrong."""
    seen = error
    while True:
        following = seen.__cause__
        if following is None or not isinstance(following, HydraException | OmegaConfBaseException | ConfigError):
            return seen
        seen = following


def explain(error: BaseException, config_name: str) -> str:
    """Hydra's message in one line, with the nearest right keys where one is unknown."""
    text = " ".join(str(error).split())
    key = getattr(error, "full_key", None)
    if "is not in struct" in text and key:
        return f"unknown key {key}: {nearest_key(key, config_name)}"
    return text.replace(" To append to your config use +", " ").split(" Set the environment variable")[0]


def nearest_key(key: str, config_name: str) -> str:
    """The nearest known keys, with the group's path before them."""
    from hydra import compose, initialize_config_dir
    from hydra.core.global_hydra import GlobalHydra

    GlobalHydra.instance().clear()
    with initialize_config_dir(str(CONFIG_DIRECTORY), version_base="1.3"):
        node: Any = compose(config_name)
    parent, _, leaf = key.rpartition(".")
    group: Any = OmegaConf.select(node, parent) if parent else node
    if not isinstance(group, DictConfig):
        return f"{parent} has no keys of its own"
    prefix = f"{parent}." if parent else ""
    known = [f"{prefix}{name}" for name in group if not str(name).startswith("_") and name != "hydra"]
    return nearest(f"{prefix}{leaf}", known) if known else f"{parent} has no keys"
