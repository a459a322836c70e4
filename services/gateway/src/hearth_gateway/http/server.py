"""uvicorn as this gateway runs it: its own protocol, no signals, no access log, drained by the lifecycle."""

import asyncio
import contextlib
import logging
import socket
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from typing import Any

import uvicorn

from hearth_gateway.http import protocol
from hearth_gateway.http.front import Front
from hearth_gateway.http.protocol import HardenedProtocol, Limits


class _Server(uvicorn.Server):
    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """The lifecycle has them."""
        yield


@dataclass(frozen=True, slots=True)
class Listening:
    port: int
    server: _Server
    done: "asyncio.Task[None]"

    async def close(self) -> None:
        """Take no more connections, and wait until the open ones have their answers."""
        self.server.should_exit = True
        await asyncio.shield(self.done)  # whoever gives up waiting does not end the server under its last answers


def bind(host: str, port: int) -> socket.socket:
    """A listening socket, or an error that says what is wrong."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
    except OSError as error:
        listener.close()
        why = f"cannot listen on {host}:{port}: {error.strerror}; choose another HEARTH_HTTP_PORT"
        raise OSError(error.errno, why) from error
    return listener


@contextlib.asynccontextmanager
async def serving(
    app: Front, *, host: str, port: int, keep_alive_s: int, connections_max: int, limits: Limits, drain_s_max: float
) -> AsyncIterator[Listening]:
    listener = bind(host, port)

    class Protocol(HardenedProtocol):
        pass

    Protocol.connections_max = connections_max
    logging.getLogger("uvicorn.error").setLevel(logging.ERROR)  # strangers send what is no HTTP all day
    application: Any = app
    config = uvicorn.Config(
        application, http=Protocol, ws="none", lifespan="off", interface="asgi3", access_log=False, server_header=False,
        log_config=None, timeout_keep_alive=keep_alive_s, backlog=4096, timeout_graceful_shutdown=max(1, int(drain_s_max)),
        proxy_headers=False,
    )  # fmt: skip
    server = _Server(config)
    loop = asyncio.get_running_loop()
    done = loop.create_task(server.serve(sockets=[listener]), name="http")
    sweeping = loop.create_task(protocol.sweep(server.server_state, limits), name="http-sweep")
    try:
        while not server.started and not done.done():
            await asyncio.sleep(0.005)
        yield Listening(listener.getsockname()[1], server, done)
    finally:
        server.should_exit = True
        server.force_exit = True
        await done
        sweeping.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await sweeping
        listener.close()
