"""The errors that are told to the user in a line or a table."""


class ConfigError(ValueError):
    """A mistake in the configuration: names the key, the value and what would be right."""


class Interrupted(Exception):
    """Training was asked to stop, and has saved itself: the same command goes on from there."""


class RunsFailed(Exception):
    """Some members of a cohort did not finish; the others did."""


class SweepFailed(Exception):
    """Some jobs of a sweep did not finish; the others did."""
