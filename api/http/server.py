"""The insides of uvicorn that our server protocol is built on. Where another uvicorn has others, requests go by plain
ASGI, through its own protocol: slower, and with fewer limits."""

from __future__ import annotations

import asyncio
import logging
from typing import Any

import uvicorn

log = logging.getLogger("nomyo.http")

BUILT_ON = "0.54"
is_built_on = uvicorn.__version__.rpartition(".")[0] == BUILT_ON
try:
    from uvicorn.protocols.http.flow_control import HIGH_WATER_LIMIT as HIGH_WATER_LIMIT
    from uvicorn.protocols.http.flow_control import service_unavailable as service_unavailable
    from uvicorn.protocols.http.httptools_impl import STATUS_LINE as STATUS_LINE
    from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol as HttpToolsProtocol
    from uvicorn.protocols.http.httptools_impl import RequestResponseCycle as RequestResponseCycle
    from uvicorn.protocols.utils import get_client_addr as get_client_addr
    from uvicorn.protocols.utils import get_path_with_query_string as get_path_with_query_string
except ImportError:
    is_built_on = False

    # Nobody comes here: without the insides our protocol is not used.
    class HttpToolsProtocol(asyncio.Protocol):  # type: ignore[no-redef]
        """In place of the one that is not there."""

    class RequestResponseCycle:  # type: ignore[no-redef]
        """In place of the one that is not there."""

    STATUS_LINE, HIGH_WATER_LIMIT = {}, 0
    service_unavailable: Any = None  # type: ignore[no-redef]
    get_client_addr: Any = None  # type: ignore[no-redef]
    get_path_with_query_string: Any = None  # type: ignore[no-redef]

if not is_built_on:
    log.warning(
        "uvicorn %s is not %s.x, which this router is built on: requests go by plain ASGI",
        *(uvicorn.__version__, BUILT_ON),
    )
