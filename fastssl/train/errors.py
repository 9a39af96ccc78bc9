"""The error that a user of the trainers can put right."""


class UsageError(ValueError):
    """Something the caller can put right: an argument, a folder, a data file."""
