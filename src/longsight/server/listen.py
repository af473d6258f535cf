"""The socket a server listens on."""

from __future__ import annotations

import os
import socket

from longsight.ops import LongsightError


class ListenError(LongsightError, OSError):
    """The address cannot be taken; the message says which and why."""


def listen(host: str, port: int) -> socket.socket:
    """Take host and port (0: any free one) and queue connections; hand it to uvicorn's `run(sockets=[...])`.

    Taken before a model is loaded, so that a port in use is told at once and early clients wait.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        listener = socket.create_server((host, port), family=family)
    except OSError as error:
        # create_server() appends the address to the system's words; ours come first.
        reason = os.strerror(error.errno) if error.errno and error.errno > 0 else error.strerror
        raise ListenError(f"cannot listen on {host} port {port}: {reason}") from error
    # Connections inherit this. asyncio sets it only on sockets that it made itself, and without it the body of a
    # response can wait 40 ms for the client's acknowledgement of the head.
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return listener
