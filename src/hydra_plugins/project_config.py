"""Adds a project's own `./conf` to Hydra's search path, before Qohort's.

Hydra imports this file at every start, so that slow imports are inside the method.
"""

from __future__ import annotations

from hydra.core.config_search_path import ConfigSearchPath
from hydra.plugins.search_path_plugin import SearchPathPlugin


class ProjectConfig(SearchPathPlugin):
    """Adds `./conf` if it is a configuration of Qohort's; see `qohort.config.composition.project_directory`."""

    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        """Put the project's directory first."""
        from qohort.config.composition import project_directory

        directory = project_directory()
        if directory is not None:
            search_path.prepend("project", f"file://{directory}")
