"""The errors that are reported to the user without a traceback."""


class ConfigError(ValueError):
    """The configuration is invalid. The message names the key, the value and the fix."""


class Interrupted(Exception):
    """Training was asked to stop and has saved a checkpoint. The same command resumes it."""


class RunsFailed(Exception):
    """Some members of a cohort failed; the others are finished."""


class SweepFailed(Exception):
    """Some jobs of a sweep failed; the others are finished."""
