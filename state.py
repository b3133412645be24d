"""What the application has: everything with a lifetime, made and closed by `router.lifespan`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from starlette.datastructures import State

from backends.images import ImageFetcher
from backends.pool import Pool
from cache import Cache
from config import Config
from db import Store
from seals import Sealer
from tasks import TaskRunner
from workers import Board


class AppState(State):
    """`app.state`. `config_file` is where the settings came from, `config_error` why its last change was not taken, `board` what
    several workers share."""

    config: Config
    config_file: Path | None
    config_error: str | None
    db: Store
    cache: Cache | None
    board: Board | None
    pool: Pool
    # Only while the application runs:
    sealer: Sealer
    images: ImageFetcher
    tasks: TaskRunner[Any]

    def __init__(self) -> None:
        # Starlette looks each name up in a dict of its own, by a function that is called when all else has failed: a twentieth of
        # a plain request. With this one it is an attribute like any other.
        super().__init__(vars(self))
