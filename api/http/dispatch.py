"""The way of every request: who asks, what answers, how an error reads.

Application ──▶ middlewares, if somebody has added some ──▶ dispatch
                                                              key ─▶ principal         keys.py
                                                              no key ─▶ no foreign page  origins.py
                                                              method, path ─▶ endpoint   routes.py
                                                              endpoint ─▶ reply
                                                              any error ─▶ reply         errors.py
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable, Iterable
from contextlib import AbstractAsyncContextManager
from functools import cached_property
from typing import Any

from fastapi import FastAPI
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from starlette.websockets import WebSocket

from api.http.connection import EXTENSION
from api.http.errors import error_reply, reply_to_error
from api.http.headers import HEAD_ONLY, HEADERS
from api.http.keys import NOBODY, check_key
from api.http.origins import share
from api.http.protocol import give_wire
from api.http.routes import Endpoint, ParameterRoute, Routes, RouteTable
from cluster.protocol import FROM_PEER
from core import hops
from core.errors import APIError, Interrupted, StartError, without_frames
from core.request_context import HEADER as REQUEST_ID
from core.request_context import RequestContext, begin_request
from core.state import AppState
from core.turn_record import door_of


class Application(FastAPI):
    """FastAPI where it describes the API and reads parameters. Requests come in here: its own layers cost a third of a
    plain one."""

    state: AppState

    def __init__(
        self,
        state: AppState,
        doors: Iterable[Routes],
        lifespan: Callable[[Any], AbstractAsyncContextManager[dict[str, Any]]],
    ) -> None:
        super().__init__(title="nomyo-router", lifespan=lifespan, docs_url=None, redoc_url=None)
        self.state = state
        self._doors = list(doors)
        for routes in self._doors:  # For its page of the API.
            self.include_router(routes)
        self.router.route_class = ParameterRoute

    @cached_property
    def table(self) -> RouteTable:
        """The routes of the front doors, and what has been added to this application before the first request."""
        return RouteTable(self._doors, self.routes)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers one request, or serves one WebSocket."""
        if self.user_middleware and scope.get("app") is not self:
            await super().__call__(scope, receive, send)  # By the middlewares, and back.
            return
        scope["app"] = self
        if scope["type"] != "http":
            serve = self._serve_socket if scope["type"] == "websocket" else self._live
            await serve(scope, receive, send)
            return
        headers = scope[HEADERS] = dict(scope["headers"])
        context = begin_request(headers, scope["path"])
        state = self.state
        if state.tracer is not None:
            state.tracer.begin(context)
        endpoint = self.table.endpoints.get((scope["method"], scope["path"]))
        if endpoint is None:
            if scope["method"] == "HEAD":
                send, scope[HEAD_ONLY] = _head_only(send), True
            scope, endpoint = self.table.find(scope)
            context.path = scope["path"]
        if not give_wire(scope, receive, send, context.id):
            send = _with_id(send, context.id)
        try:
            reply = await self._reply(endpoint, scope, receive, send)
            if b"origin" in headers:
                share(reply, scope, state.config)
            if context.ending != "completed" and FROM_PEER not in scope:  # Those are counted with their turns.
                self._note_reply(context, scope, reply.status_code)
            await reply(scope, receive, send)
        finally:
            scope.pop(EXTENSION, None)  # The wire refers to the request, and the request to its wire.

    async def _live(self, scope: Scope, receive: Receive, send: Send) -> None:
        """The lifespan. Of what stops the start the server logs a line, where one is enough."""

        async def send_line(message: Message) -> None:
            if message["type"] == "lifespan.startup.failed" and isinstance(error := sys.exc_info()[1], StartError):
                message = {**message, "message": f"nomyo-router cannot start: {error}"}
            await send(message)

        await super().__call__(scope, receive, send_line)

    def build_middleware_stack(self) -> ASGIApp:
        """What somebody has added stands before the dispatch and sees every request. Nothing of FastAPI's own does."""
        app: ASGIApp = self._behind_middleware
        for middleware, args, kwargs in reversed(self.user_middleware):
            app = middleware(app, *args, **kwargs)
        return app

    async def _behind_middleware(self, scope: Scope, receive: Receive, send: Send) -> None:
        await (self.router if scope["type"] == "lifespan" else self)(scope, receive, send)

    async def _reply(self, endpoint: Endpoint, scope: Scope, receive: Receive, send: Send) -> Response:
        """The reply of an endpoint. Its errors end here, whichever it is."""
        try:
            # Before the key: a router that asks itself must learn that, and not that it has no key.
            if hops.HEADER in scope[HEADERS]:
                hops.arrive(scope[HEADERS][hops.HEADER], self.state.pool.endpoints.router_id)
            check_key(self.state, scope)
            return await endpoint(Request(scope, receive, send))
        except asyncio.CancelledError:
            if not self.state.stopping.interrupts():
                raise
            return reply_to_error(Interrupted(), scope, self.table.envelope(scope["path"]))
        except Exception as error:
            reply = reply_to_error(error, scope, self.table.envelope(scope["path"]))
            without_frames(error)
            return reply

    def _note_reply(self, context: RequestContext, scope: Scope, status: int) -> None:
        """Counts a reply, and logs one that was no turn's."""
        state = self.state
        state.telemetry.replies[context.door or door_of(context.path), status] += 1
        if state.request_log is not None and not context.ending:
            principal = scope.get("principal", NOBODY)
            owner = "" if principal is NOBODY else principal.owner
            state.request_log.request(context, scope.get("method", "GET"), status, owner)

    async def _serve_socket(self, scope: Scope, receive: Receive, send: Send) -> None:
        """An endpoint takes its socket by accepting it. An error before that is a refused handshake, with the reply of
        that error."""
        headers = scope[HEADERS] = dict(scope["headers"])
        context = begin_request(headers, scope["path"])
        context.door = "websocket"
        try:
            check_key(self.state, scope)
            await self.table.find_socket(scope)(WebSocket(scope, receive, send))
            self._note_reply(context, scope, 101)
        except APIError as error:
            without_frames(error)
            self._note_reply(context, scope, error.status)
            if "websocket.http.response" in scope.get("extensions", {}):
                await error_reply(error)(scope, receive, send)
            else:  # The server under us can refuse, but give no reason.
                await send({"type": "websocket.close"})


def _with_id(send: Send, request_id: bytes) -> Send:
    """`send`, whose answer has the id of its request."""

    async def send_with_id(message: Message) -> None:
        if message["type"] == "http.response.start":
            message = {**message, "headers": [(REQUEST_ID, request_id), *message.get("headers", ())]}
        await send(message)

    return send_with_id


def _head_only(send: Send) -> Send:
    """Of an answer, its head. It is whole then: what else the endpoint sends goes nowhere."""

    async def send_head(message: Message) -> None:
        if message["type"] == "http.response.start":
            await send(message)
            await send({"type": "http.response.body", "body": b"", "more_body": False})

    return send_head
