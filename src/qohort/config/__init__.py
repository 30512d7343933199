"""Configuration: the schema of a run, its checks and their messages, and composition with Hydra.

Files, in reading order:
    schema: Every key of a run, with its type and bounds.
    annotations: What a type annotation can say about a key: bounds, length, the role of a component.
    checks: Checks a configuration against these annotations and against the signatures of components.
    members: Checks a composed configuration and returns the configuration of each member.
    folding: The numbers, besides the seed, in which the members of a cohort may differ.
    labels: The name of a run in directories, tables and figures.
    identity: `hash8`, which decides which runs are the same experiment.
    composition: Finds and composes configuration files, also many at once for a sweep.
    overrides: Parses overrides and checks that the chosen options exist.
    mistakes: Turns Hydra's errors into a message of one line.
    messages: Formats values and suggests similar names in messages.
    paths: Checks that output directories can be written.
    errors: The exceptions that are reported to the user without a traceback.
"""

from qohort.config.errors import ConfigError, Interrupted, RunsFailed, SweepFailed
from qohort.config.schema import EnvironmentConfig, EvaluationConfig, TrainConfig

__all__ = [
    "ConfigError",
    "EnvironmentConfig",
    "EvaluationConfig",
    "Interrupted",
    "RunsFailed",
    "SweepFailed",
    "TrainConfig",
]
