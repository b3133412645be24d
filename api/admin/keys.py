"""/api/keys: the keys of clients, for admins. `./nomyo keys` does the same without a router."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import msgspec
from fastapi import Request
from starlette.responses import Response

from api.http.bodies import read_body
from api.http.replies import json_response
from api.http.routes import Routes, takes
from core.errors import Forbidden, InvalidRequest, NotFound
from core.json import Json
from core.key_changes import (
    CannotChange,
    Change,
    NewKey,
    NoSuchKey,
    change_keys,
    described,
    expiry_from,
    given_in,
    new_key,
    replaced,
    revoked,
    seconds_of,
)
from core.key_settings import KeyConfig, NamedKey, expiry, owner_in
from core.keys import StoredKey
from core.schemas import TEXT, object_of, schema_of
from core.state import AppState
from requests.bounded_json import decode_bounded
from requests.params import invalid_field

routes = Routes(prefix="/api/keys", tags=["keys"], for_admins=True)

C = TypeVar("C", bound=Change)
ROTATION = object_of(grace=TEXT, expires=TEXT)


@routes.get("")
async def list_keys(request: Request) -> Response:
    """All keys of the settings, and those of the database that are valid, each with what it may do; of a key itself the
    first characters. `?all=true`: those that have ended too."""
    state: AppState = request.app.state
    at = time.time()
    await state.keys.take_changes(state.db)
    shows_all = request.query_params.get("all") == "true"
    kept = [key for key in state.keys.stored() if shows_all or key.ends_at is None or key.ends_at > at]
    rows = [{**described(key, at), "place": "database"} for key in kept]
    rows += [
        {"name": key.name, "owner": owner_in(key), "ends_at": expiry(key.expires), **given_in(key), "place": "settings"}
        for key in state.config.keys
    ]
    return json_response({"keys": rows})


@routes.post("", **takes(schema_of(NamedKey)))
async def add_key(request: Request) -> Response:
    """Makes a key. Body: its `name`, and what else `keys[]` of the settings has but for the key itself; `expires` may
    be so much from now on (`90d`). Answers how it stands, and under `key` the key, this once. 400 for wrong settings,
    or a name that there is."""
    state: AppState = request.app.state
    if not state.keys.asks_for_keys:
        raise Forbidden(
            "This router asks for no key yet. The first one closes it for all others: ./nomyo keys add makes it.",
            code="no_keys",
        )
    body, at = await _object(request), time.time()
    try:
        wanted = msgspec.convert(body, NamedKey)
    except msgspec.ValidationError as error:
        raise invalid_field(error) from None
    if any(key.name == wanted.name for key in state.config.keys):
        raise InvalidRequest(f"'{wanted.name}' is a key of the settings.", param="name")
    settings = KeyConfig(**msgspec.structs.asdict(wanted) | {"expires": _when(wanted.expires, at)})
    return _shown_once(await _changed(state, lambda kept: new_key(kept, settings, at)), at)


@routes.post("/{name}/rotate", **takes(ROTATION, required=False))
async def rotate_key(request: Request, name: str) -> Response:
    """Makes a key in place of the one of that name. Body: `grace`, how long the earlier one stays valid (`7d`), and
    `expires`, if it is to end at another time than that. Answers as POST `/api/keys`. 404 without such a key in the
    database."""
    body, at = await _object(request), time.time()
    for setting in body:
        if setting not in ROTATION["properties"]:
            raise InvalidRequest(f"Unknown parameter: '{setting}'.", param=setting, code="unknown_parameter")
    grace, expires = _text(body, "grace"), _text(body, "expires")
    try:
        grace_s = seconds_of(grace or "0")
    except ValueError as error:
        raise InvalidRequest(f"{error}.", param="grace", code="invalid_value") from None
    until = None if expires is None else _when(expires, at)
    made = await _changed(request.app.state, lambda kept: replaced(kept, name, at, grace_s=grace_s, expires=until))
    return _shown_once(made, at)


@routes.delete("/{name}")
async def revoke_key(request: Request, name: str) -> Response:
    """Ends the key of that name. 404 without such a key in the database."""
    at = time.time()
    ended = await _changed(request.app.state, lambda kept: revoked(kept, name, at))
    return json_response({"revoked": [described(key, at) for key in ended.changed]})


async def _changed(state: AppState, change: Callable[[Sequence[StoredKey]], C]) -> C:
    try:
        made = await change_keys(state.db, change)
    except NoSuchKey as error:
        raise NotFound(f"{str(error).removeprefix('name: ')}.", param="name") from None
    except CannotChange as error:
        setting, _, why = str(error).partition(": ")
        raise InvalidRequest(f"Invalid value for '{setting}': {why}.", param=setting, code="invalid_value") from None
    await state.keys.take_changes(state.db)  # The others do within a second.
    return made


def _shown_once(made: NewKey, at: float) -> Response:
    return json_response({**described(made.stored, at), "key": made.secret})


async def _object(request: Request) -> Json:
    given = await read_body(request)
    body: Any = decode_bounded(given) if given else {}
    if not isinstance(body, dict):
        raise InvalidRequest("The body must be a JSON object.")
    return body


def _text(body: Json, name: str) -> str | None:
    value = body.get(name)
    if value is not None and not isinstance(value, str):
        raise InvalidRequest(f"Invalid value for '{name}': it is a text.", param=name, code="invalid_value")
    return value


def _when(text: str, at: float) -> str:
    try:
        return expiry_from(text, at) if text else ""
    except ValueError as error:
        raise InvalidRequest(f"Invalid value for 'expires': {error}.", param="expires", code="invalid_value") from None
