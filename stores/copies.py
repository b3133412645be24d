"""Copies of what is kept: the error of one that was not made."""

from __future__ import annotations


class CopyError(Exception):
    """No copy was made, or not a whole one: one line about why, and what to do."""
