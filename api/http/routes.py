"""Which endpoint answers a request: from a dict where the path is fixed, by FastAPI where it or the query has
parameters.

routes = Routes(prefix="/v1/responses", tags=["responses"])       a front door, in its own file
RouteTable(doors).find(scope)                                     asked by the dispatch
"""

from __future__ import annotations

import difflib
import inspect
import re
from collections.abc import Awaitable, Callable, Iterable, Sequence
from functools import wraps
from typing import Any

from fastapi import APIRouter
from fastapi.middleware.asyncexitstack import AsyncExitStackMiddleware
from fastapi.routing import APIRoute
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Match, Route, WebSocketRoute
from starlette.types import Receive, Scope, Send
from starlette.websockets import WebSocket

from api.http.bodies import DEPLOYMENT
from api.http.errors import Envelope, openai_envelope
from api.http.keys import require_admin
from api.http.origins import is_preflight
from core.errors import MethodNotAllowed, NotFound, UpgradeRefused
from core.json import Json

Endpoint = Callable[[Request], Awaitable[Response]]
SocketEndpoint = Callable[[WebSocket], Awaitable[None]]

REPLY = "nomyo.reply"
# What no database can count beyond is no number of anything.
MOST_NUMBER = 2**63 - 1
_SLASHES = re.compile("/{2,}")
# Of an unknown path: how much of its end may be a path of ours, and how long one may be that resembles ours.
_LAST_PARTS = 4
_LONGEST_LIKE_OURS = 100


class ParameterRoute(APIRoute):
    """A route whose reply is given to the dispatch. FastAPI reads its parameters and describes it, and would send it
    too."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._with_parameters = AsyncExitStackMiddleware(self.app)

    def get_route_handler(self) -> Callable[[Request], Any]:
        """FastAPI's handler, but that its reply is handed over in the scope and not sent."""
        handler = super().get_route_handler()

        async def hand_over(request: Request) -> Response:
            request.scope[REPLY] = await handler(request)
            return _Nothing()

        return hand_over

    async def respond(self, request: Request) -> Response:
        """The reply of the endpoint. Raises FastAPI's `RequestValidationError` for parameters that cannot be read."""
        await self._with_parameters(request.scope, request.receive, request._send)
        reply: Response = request.scope.pop(REPLY)
        return reply


class _Nothing(Response):
    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        pass


class Routes(APIRouter):
    """The routes of a front door, and the envelope of their errors. `for_admins`: a key needs the right to all of
    them."""

    def __init__(
        self,
        *,
        prefix: str = "",
        tags: Sequence[str],
        envelope: Envelope = openai_envelope,
        for_admins: bool = False,
    ) -> None:
        super().__init__(prefix=prefix, tags=list(tags), route_class=ParameterRoute)
        self.envelope = envelope
        self.for_admins = for_admins


def takes(schema: Json, *, required: bool = True) -> dict[str, Any]:
    """What a route is described with that reads a body of this schema itself."""
    body = {"required": required, "content": {"application/json": {"schema": schema}}}
    return {"openapi_extra": {"requestBody": body}}


class RouteTable:
    """The endpoints of some front doors. `pages` are routes of FastAPI's own, such as its page of the API."""

    def __init__(self, doors: Iterable[Routes], pages: Iterable[BaseRoute] = ()) -> None:
        self._doors = list(doors)
        routes = [*pages, *(route for door in self._doors for route in door.routes)]
        self._routes = [route for route in routes if isinstance(route, Route)]
        self._with_parameters = [
            route for route in self._routes if isinstance(route, ParameterRoute) and not _needs_nothing(route)
        ]
        self._for_admins = {
            route.path for door in self._doors if door.for_admins for route in door.routes if isinstance(route, Route)
        }
        # The requests that must cost next to nothing: these endpoints need nothing of the framework but a request.
        self.endpoints: dict[tuple[str, str], Endpoint] = {
            (method, route.path): _checked(route.endpoint) if route.path in self._for_admins else route.endpoint
            for route in self._routes
            if _needs_nothing(route)
            for method in route.methods or ()
            if method != "HEAD"
        }
        self._sockets: dict[str, SocketEndpoint] = {
            route.path: route.endpoint for route in routes if isinstance(route, WebSocketRoute)
        }
        # What may stand without its /v1 in front.
        versioned = (route.path.split("/") for route in self._routes)
        self._below_v1 = {parts[2] for parts in versioned if parts[1] == "v1"}
        below = "|".join(map(re.escape, sorted(self._below_v1)))
        self._deployment = re.compile(rf"/openai/deployments/(?P<model>.+?)(?:/v1)?(?P<bare>/(?:{below})(?:/.*)?)")

    def find(self, scope: Scope) -> tuple[Scope, Endpoint]:
        """The endpoint of a request, and its scope as the endpoint wants it: HEAD as GET, and one spelling of the path.
        There is always one: it may have nothing to give but an error."""
        method = "GET" if scope["method"] == "HEAD" else scope["method"]
        given = _path_in(scope)
        scope = {**scope, "method": method, "path": self.spelled(given)}
        if method == "POST" and (deployed := self._deployment.fullmatch(_SLASHES.sub("/", given))):
            scope[DEPLOYMENT] = deployed["model"]
        if endpoint := self.endpoints.get((method, scope["path"])):
            return scope, endpoint
        for route in self._with_parameters:
            match, found = route.matches(scope)
            if match is Match.FULL:
                scope.update(found)
                return scope, _checked(route.respond) if route.path in self._for_admins else route.respond
        return scope, self._options if method == "OPTIONS" else self._refuse

    def spelled(self, path: str) -> str:
        """The path of ours that is meant: `/responses`, `//v1/responses/` and Azure's `/openai/v1/responses` and
        `/openai/deployments/NAME/responses` are `/v1/responses`."""
        path = _SLASHES.sub("/", path)
        if deployed := self._deployment.fullmatch(path):
            path = deployed["bare"]
        bare = path.removeprefix("/openai").removeprefix("/v1") if path.startswith("/openai/") else path
        parts = bare.split("/")
        if len(parts) > 1 and parts[1] in self._below_v1:
            path = "/v1" + bare
        return path.rstrip("/") or "/"

    def envelope(self, path: str) -> Envelope:
        """How an error of a path is put: as the front door does that answers there, else the one below whose prefix it
        is."""
        below: Envelope | None = None
        for door in self._doors:
            if any(route.path_regex.match(path) for route in door.routes if isinstance(route, Route)):
                return door.envelope
            if door.prefix and (path == door.prefix or path.startswith(f"{door.prefix}/")):
                below = below or door.envelope
        return below or openai_envelope

    def find_socket(self, scope: Scope) -> SocketEndpoint:
        """The endpoint of a WebSocket. Raises `NotFound` where there is none."""
        path = self.spelled(_path_in(scope))
        if endpoint := self._sockets.get(path):
            return endpoint
        raise NotFound(f"There is no WebSocket at {path}.", code="unknown_url")

    async def _options(self, request: Request) -> Response:
        """What may be asked of a path. A preflight asks for a page; the dispatch adds whether it may."""
        if is_preflight(request.scope):
            return Response(status_code=204)
        allowed = self._allowed(request.scope)
        if not allowed:
            raise self._unknown(request.scope)
        return Response(status_code=204, headers={"Allow": ", ".join(sorted({*allowed, "OPTIONS"}))})

    async def _refuse(self, request: Request) -> Response:
        scope = request.scope
        if not (allowed := self._allowed(scope)):
            raise self._unknown(scope)
        if scope["path"] in self._sockets and request.headers.get("upgrade", "").lower() == "websocket":
            # The server under us knows no WebSockets, and has handed on the upgrade as a plain GET.
            raise UpgradeRefused
        method, path = scope["method"], scope["path"]
        advice = self._below_another_base(method, path) or f"It takes {' and '.join(sorted(allowed - {'HEAD'}))}."
        raise MethodNotAllowed(f"There is no {method} {path}. {advice}", sorted(allowed))

    def _allowed(self, scope: Scope) -> set[str]:
        matching = [route for route in self._routes if route.path_regex.match(scope["path"])]
        methods = set[str]().union(*(route.methods or () for route in matching))
        return methods | {"HEAD"} if "GET" in methods else methods

    def _unknown(self, scope: Scope) -> NotFound:
        method, path = scope["method"], scope["path"]
        message = f"There is no {method} {path}."
        advice = self._below_another_base(method, path) or self._alike(method, path) or "/docs lists what there is."
        return NotFound(f"{message} {advice}", code="unknown_url")

    def _below_another_base(self, method: str, path: str) -> str:
        """Where a path ends as one of ours does, what to do about the base URL; else nothing."""
        parts = path.split("/")
        for start in range(max(2, len(parts) - _LAST_PARTS), len(parts)):
            ours, before = self.spelled("/" + "/".join(parts[start:])), "/".join(parts[:start])
            if ours in ("/", path) or method not in self._allowed({"path": ours}):
                continue
            if before == "/v1":
                return f"Does the base URL end in /v1 twice? There is {ours}."
            return f"There is {ours}: does the base URL end in {before}? It is to end in /v1."
        return ""

    def _alike(self, method: str, path: str) -> str:
        known = [known for verb, known in self.endpoints if verb == method]
        near = difflib.get_close_matches(path[:_LONGEST_LIKE_OURS], known, n=1, cutoff=0.8)
        return f"Did you mean {near[0]}?" if near else ""


def _checked(endpoint: Endpoint) -> Endpoint:
    """The endpoint, for admins."""

    @wraps(endpoint)
    async def answer(request: Request) -> Response:
        require_admin(request)
        return await endpoint(request)

    return answer


def _path_in(scope: Scope) -> str:
    """The path below where this application stands: by ASGI, `path` begins with `root_path`."""
    path: str = scope["path"]
    root: str = scope.get("root_path", "").rstrip("/")
    return path[len(root) :] if root and path.startswith(f"{root}/") else path


def _needs_nothing(route: Route) -> bool:
    """Whether an endpoint is called with its request alone."""
    return not route.param_convertors and len(inspect.signature(route.endpoint).parameters) == 1
