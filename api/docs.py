"""/docs: the API as a page, Swagger UI. All that the page loads comes from here, out of the package that the extra
`docs` installs: a browser asks no other host, and could not (`Content-Security-Policy`)."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from importlib.util import find_spec
from pathlib import Path

from fastapi import Request
from fastapi.openapi.docs import get_swagger_ui_html
from starlette.responses import Response

from api.http.routes import Routes
from core.errors import NotFound

routes = Routes(tags=["docs"])

# The package of the extra, whose files alone are used: nothing of it is imported.
PACKAGE = "fastapi_swagger"
SCRIPT, STYLE, ICON = "swagger-ui-bundle.js", "swagger-ui.css", "favicon-32x32.png"
MEDIA_TYPES = {SCRIPT: "text/javascript", STYLE: "text/css", ICON: "image/png"}
# The page has a script of a few lines in it, and Swagger UI sets styles and draws icons that it holds as data.
POLICY = (
    "default-src 'none'; connect-src 'self'; script-src 'self' 'unsafe-inline'; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data:; font-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)


@routes.get("/docs", include_in_schema=False)
async def show_docs(request: Request) -> Response:
    """The page. 404 where the extra is not installed."""
    _folder()
    root = request.scope.get("root_path", "").rstrip("/")
    app = request.app
    page = get_swagger_ui_html(
        openapi_url=f"{root}{app.openapi_url}",
        title=app.title,
        swagger_js_url=f"{root}/docs/{SCRIPT}",
        swagger_css_url=f"{root}/docs/{STYLE}",
        swagger_favicon_url=f"{root}/docs/{ICON}",
        swagger_ui_parameters={"validatorUrl": None},  # It would be sent the address of what it shows.
    )
    page.headers["Content-Security-Policy"] = POLICY
    return page


def _file_route(name: str) -> Callable[[Request], Awaitable[Response]]:
    async def send_file(request: Request) -> Response:
        body = await asyncio.to_thread((_folder() / name).read_bytes)
        return Response(body, media_type=MEDIA_TYPES[name], headers={"Cache-Control": "private, max-age=86400"})

    return send_file


for _name in MEDIA_TYPES:
    routes.get(f"/docs/{_name}", include_in_schema=False)(_file_route(_name))


def _folder() -> Path:
    """Where the files of Swagger UI are. Raises `NotFound` where they are not installed."""
    package = find_spec(PACKAGE)
    if package is None or not package.submodule_search_locations:
        raise NotFound(
            "The page needs an extra that is not installed: uv sync --locked --inexact --extra docs. "
            "What it would show is at /openapi.json.",
            code="docs_not_installed",
        )
    return Path(package.submodule_search_locations[0]) / "resources"
