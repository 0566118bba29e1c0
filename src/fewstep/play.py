"""A page to play with a model, which only this machine can reach: `fewstep play`. It uses no network."""

from __future__ import annotations

import asyncio
import base64
import socket
from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from importlib.resources import files
from threading import Event
from types import FrameType
from typing import TYPE_CHECKING, Any, cast

from .core.extras import needs
from .diffusion.playing import Ask, LeftError, Player, Side

if TYPE_CHECKING:
    from starlette.applications import Starlette
    from starlette.requests import Request
    from starlette.responses import Response

HOST = "127.0.0.1"
PAGE = {"/": ("page.html", "text/html"), "/page.css": ("page.css", "text/css"), "/page.js": ("page.js", "text/javascript")}
POLICY = "default-src 'self'; img-src data:; media-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
HEADERS = {"Content-Security-Policy": POLICY, "Cache-Control": "no-store"}
SIDES = ("model", "few", "teacher")
WHOLE, FRACTIONS = ("steps", "teacher_steps", "seed", "n", "label"), ("number", "guidance", "strength")
LOOK = 0.1  # seconds between two checks that the browser is still connected


def serve(player: Player, *, port: int = 7860, told: Callable[[str], None] = print) -> None:
    """Serves the page until it is stopped by Ctrl-C.

    Args:
        player: what to play with.
        port: of this machine; 0 takes a free one.
        told: called with the address of the page.

    Raises:
        ModuleNotFoundError: starlette or uvicorn is not installed.
        ValueError: the port is taken.
    """
    needs("play")
    import uvicorn

    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as listening:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listening.bind((HOST, port))
            listening.listen()  # before the address is told
        except (OSError, OverflowError) as error:
            raise ValueError(f"port {port} is not free ({error}); choose another with --port") from error
        closing = Event()
        settings = uvicorn.Config(
            page(player, closing), log_level="warning", access_log=False, lifespan="off", proxy_headers=False,
            server_header=False, ws="none",
        )  # fmt: skip
        server = uvicorn.Server(settings)
        stop = server.handle_exit

        def ending(sig: int, frame: FrameType | None) -> None:
            closing.set()  # drawings in progress are given up
            stop(sig, frame)

        server.handle_exit = ending  # type: ignore[method-assign]
        told(f"http://{HOST}:{listening.getsockname()[1]} shows the page, on this machine only; Ctrl-C ends it")
        try:
            server.run(sockets=[listening])
        except KeyboardInterrupt:  # uvicorn raises it after everything is closed
            told("ended")


def page(player: Player, closing: Event) -> Starlette:
    """The page as an application: its files, the model's settings at /offers, and drawings at /draw.

    Requests that name another host are refused, so no page of another host name can reach it. /draw takes JSON only, which
    a browser lets no other page send.
    """
    from starlette.applications import Starlette
    from starlette.middleware import Middleware
    from starlette.middleware.trustedhost import TrustedHostMiddleware
    from starlette.responses import JSONResponse, Response
    from starlette.routing import Route

    def file(name: str, kind: str) -> Callable[[Request], Awaitable[Response]]:
        content = (files("fewstep") / "assets" / "play" / name).read_bytes()

        async def send(request: Request) -> Response:
            return Response(
                content, media_type=kind, headers={"Content-Security-Policy": POLICY, "Cache-Control": "no-store"}
            )

        return send

    async def offers(request: Request) -> Response:
        return JSONResponse(player.offers)

    async def draw(request: Request) -> Response:
        try:
            side, ask = read(await request.json() if request.headers.get("content-type") == "application/json" else None)
            return JSONResponse(await _drawn(player, side, ask, request, closing))
        except ValueError as error:
            return JSONResponse({"sentence": str(error)})
        except LeftError:
            return Response(status_code=204)

    routes = [Route(path, file(*what)) for path, what in PAGE.items()]
    routes += [Route("/offers", offers), Route("/draw", draw, methods=["POST"])]
    known = Middleware(TrustedHostMiddleware, allowed_hosts=[HOST, "localhost"], www_redirect=False)
    return Starlette(routes=routes, middleware=[known])


async def _drawn(player: Player, side: Side, ask: Ask, request: Request, closing: Event) -> dict[str, Any]:
    """A drawing as the page shows it, made in a thread; it is given up when the browser leaves or the server ends."""
    from starlette.concurrency import run_in_threadpool

    left = Event()
    work = asyncio.ensure_future(run_in_threadpool(player.draw, side, ask, left.is_set))
    while not work.done():
        await asyncio.wait([work], timeout=LOOK)
        if closing.is_set() or await request.is_disconnected():
            left.set()
    found = work.result()
    return {
        "files": [f"data:{found.kind};base64,{base64.b64encode(file).decode()}" for file in found.files],
        "kind": found.kind,
        "seeds": found.seeds,
        "calls": found.calls,
        "seconds": found.seconds,
        "command": found.command,
    }


def read(told: object) -> tuple[Side, Ask]:
    """The side and the settings in the JSON that the page sends.

    Raises:
        ValueError: a setting is unknown or has a wrong value; the message is one sentence.
    """
    if not isinstance(told, Mapping) or told.get("side") not in SIDES:
        raise ValueError("this is no request of the page; reload it")
    given = {name: value for name, value in told.items() if name != "side" and value is not None}
    unknown = given.keys() - {*WHOLE, *FRACTIONS, "prompt"}
    if unknown:
        raise ValueError(f"the page has no setting {', '.join(sorted(map(str, unknown)))}; reload it")
    for name, value in given.items():
        said = name.replace("_", " ")
        if name in WHOLE and type(value) is not int:
            raise ValueError(f"{said} must be a whole number, not {value!r}")
        if name in FRACTIONS and type(value) not in (int, float):
            raise ValueError(f"{said} must be a number, not {value!r}")
        if name == "prompt" and not isinstance(value, str):
            raise ValueError(f"a prompt is a text, not {value!r}")
    try:
        return cast(Side, told["side"]), partial(Ask, **given)()
    except ValueError as error:
        raise ValueError(str(error).removeprefix("--")) from error
