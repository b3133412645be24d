"""The version of the router, as pyproject.toml has it."""

VERSION = "0.1.0"
