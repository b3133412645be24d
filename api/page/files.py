"""The files of the live page: `/` for a browser, and what that loads from `/page/`.

They are read once, and nothing of them is anybody's: what the page shows it asks for (feed.py), with a session
(session.py). A browser may load and ask nothing else than this router, runs no script that stands in the page, and
makes no script or markup out of text (`Content-Security-Policy`, Trusted Types).
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from hashlib import blake2b
from pathlib import Path

from fastapi import Request
from starlette.responses import PlainTextResponse, Response

from api.http.headers import HEAD_ONLY
from api.http.routes import Routes

routes = Routes(tags=["page"])

FOLDER = Path(__file__).parents[2] / "page"
INDEX = "index.html"
MEDIA_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}
POLICY = (
    "default-src 'none'; connect-src 'self'; script-src 'self'; style-src 'self'; img-src 'self'; base-uri 'none'; "
    "form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'; trusted-types 'none'"
)
SAFE = {
    "Content-Security-Policy": POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    # Kept, and asked about each time: a router that was replaced has another page.
    "Cache-Control": "no-cache",
}
OLLAMAS_WORDS = "Ollama is running"


@routes.get("/")
async def root(request: Request) -> Response:
    """For a browser the live page; for all others 200 while the router runs, in the words that Ollama's clients look
    for. Asks for no key."""
    if HEAD_ONLY in request.scope or not _wants_page(request.headers.get("accept", "")):
        return PlainTextResponse(OLLAMAS_WORDS, headers={"Vary": "Accept"})
    reply = _reply(request, INDEX)
    reply.headers["Vary"] = "Accept"
    return reply


def _wants_page(accept: str) -> bool:
    """Whether a client names HTML among what it takes, as browsers do that load a page and nobody else does."""
    for kind in accept.lower().split(","):
        media_type, *params = (part.strip() for part in kind.split(";"))
        if media_type == "text/html":
            return not any(param.replace(" ", "").rstrip("0.") == "q=" for param in params)
    return False


class PageFile:
    """A file of the page, as it is sent."""

    def __init__(self, path: Path) -> None:
        self.body = path.read_bytes()
        self.tag = f'"{blake2b(self.body, digest_size=12).hexdigest()}"'
        self.media_type = MEDIA_TYPES[path.suffix]


FILES = {
    path.relative_to(FOLDER).as_posix(): PageFile(path)
    for path in sorted(FOLDER.rglob("*"))
    if path.suffix in MEDIA_TYPES
}


def _reply(request: Request, name: str) -> Response:
    file = FILES[name]
    headers = {**SAFE, "ETag": file.tag}
    known = request.headers.get("if-none-match", "")
    if file.tag in (tag.strip().removeprefix("W/") for tag in known.split(",")):
        return Response(status_code=304, headers=headers)
    return Response(file.body, media_type=file.media_type, headers=headers)


def _file_route(name: str) -> Callable[[Request], Awaitable[Response]]:
    async def send_file(request: Request) -> Response:
        return _reply(request, name)

    return send_file


for _name in FILES:
    if _name != INDEX:
        routes.get(f"/page/{_name}", include_in_schema=False)(_file_route(_name))
