"""Templates and static files, read once: no request names a file."""

from __future__ import annotations

import hashlib
from functools import cache
from pathlib import Path

from fastapi import APIRouter, Request, Response
from fastapi.responses import HTMLResponse
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from online_dpo.annotation.web.rendering import shown
from online_dpo.annotation.web.site import Answer

HERE = Path(__file__).parent
TYPES = {".js": "text/javascript; charset=utf-8", ".css": "text/css; charset=utf-8", ".svg": "image/svg+xml"}

router = APIRouter()


@cache
def _files() -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in sorted((HERE / "static").iterdir()) if file.suffix in TYPES}


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=FileSystemLoader(HERE / "templates"), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    environment.filters["shown"] = shown
    return environment


def show(template: str, **values: object) -> HTMLResponse:
    """A page of ours."""
    return HTMLResponse(_environment().get_template(template).render(**values))


@router.get("/static/{name}")
def static_file(name: str, request: Request) -> Response:
    """Style and script of the pages."""
    content = _files().get(name)
    if content is None:
        raise Answer(404, "There is no such page.")
    tag = f'"{hashlib.sha256(content).hexdigest()[:16]}"'
    headers = {"ETag": tag, "Cache-Control": "no-cache"}
    if request.headers.get("if-none-match") == tag:
        return Response(status_code=304, headers=headers)
    return Response(content, media_type=TYPES[Path(name).suffix], headers=headers)
