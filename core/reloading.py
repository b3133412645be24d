"""Settings that change while the router runs: its file is read again when it changes, or on SIGHUP.

Endpoints come, change and go without a lost request. What only a start can change is named in the log. A broken file
changes nothing: the log and /api/endpoints name what is wrong with it.
"""

from __future__ import annotations

import asyncio
import logging
import signal
import threading
from pathlib import Path

from core.config_file import load_config
from core.errors import ConfigError
from core.state import AppState

log = logging.getLogger("nomyo.settings")

LOOK_EVERY_S = 1.0
# Opened at the start, and kept open.
NEEDS_RESTART = (
    "workers",
    "database",
    "cluster",
    "cache",
    "background",
    "images",
    "files",
    "secret_key",
    "max_answer_mb",
    "log",
    "traces",
)


async def keep_config(state: AppState) -> None:
    """Takes what changes in the file of the settings, for ever."""
    file = state.config_file
    assert file is not None
    asked = asyncio.Event()
    if threading.current_thread() is threading.main_thread() and hasattr(signal, "SIGHUP"):
        asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, asked.set)
    seen = _stamp(file)
    while True:
        try:
            async with asyncio.timeout(LOOK_EVERY_S):
                await asked.wait()
        except TimeoutError:
            if (stamp := _stamp(file)) == seen:
                continue
            seen = stamp
        asked.clear()
        try:
            await reload(state)
        except Exception:
            log.exception("the settings stay as they were")


async def keep_keys(state: AppState) -> None:
    """Takes what changes of the keys of the database, for ever."""
    failure = ""
    while True:
        await asyncio.sleep(LOOK_EVERY_S)
        try:
            await state.keys.take_changes(state.db)
        except Exception as error:
            # Those that are known stay.
            if (why := repr(error)) != failure:
                log.warning("the keys of the database cannot be read: %s", why)
                failure = why
        else:
            failure = ""


async def reload(state: AppState) -> None:
    """Reads the file again, and takes its settings. One that is invalid changes nothing: `state.config_error` names
    what is wrong."""
    try:
        config = load_config(state.config_file, kinds=state.pool.kinds)
        state.keys.check_names(config)
    except ConfigError as error:
        state.config_error = str(error)
        log.error("the settings stay as they were: %s", error)
        return
    state.config_error = None
    old = state.config
    if config == old:
        return
    for key in NEEDS_RESTART:
        if getattr(config, key) != getattr(old, key):
            log.warning("'%s' has changed: that takes a restart", key)
    state.config = config
    state.keys.take_settings(config)
    state.mcp.take_settings(config.mcp)
    state.searches.take_settings(config.web_search)
    pages = config.web_search
    state.pages.take_limits(timeout_s=pages.timeout_s, allow_private=pages.allow_private)
    await state.pool.reconfigure(config)
    log.info("new settings, from %s", state.config_file)


def _stamp(file: Path) -> tuple[int, int] | None:
    """What changes when a file does. None while there is none: editors write anew."""
    try:
        status = file.stat()
    except OSError:
        return None
    return status.st_mtime_ns, status.st_ino
