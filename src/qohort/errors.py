"""The errors that a user can mend, told in one line."""


class ConfigError(ValueError):
    """A mistake in the configuration: names the key, the value and what would be right."""
