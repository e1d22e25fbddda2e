"""Python runs this first where the folder is on PYTHONPATH: only this machine can be reached.

Each attempt to reach another is refused and written to the file that NETWORK_LOG names.
"""

from __future__ import annotations

import ipaddress
import os
import socket
from typing import Any

_connect, _connect_ex = socket.socket.connect, socket.socket.connect_ex
_getaddrinfo = socket.getaddrinfo


def _check(host: Any) -> None:
    name = host.decode() if isinstance(host, bytes) else host
    try:
        local = not name or name == "localhost" or ipaddress.ip_address(name).is_loopback
        local = local or ipaddress.ip_address(name).is_unspecified
    except ValueError:
        local = False
    if not local:
        with open(os.environ["NETWORK_LOG"], "a", encoding="utf-8") as log:
            log.write(f"{name}\n")
        raise OSError(f"{name}: there is no network here")


def _is_internet(sock: socket.socket) -> bool:
    return sock.family in (socket.AF_INET, socket.AF_INET6)


def _guarded_connect(sock: socket.socket, address: Any) -> None:
    if _is_internet(sock):
        _check(address[0])
    _connect(sock, address)


def _guarded_connect_ex(sock: socket.socket, address: Any) -> int:
    if _is_internet(sock):
        _check(address[0])
    return _connect_ex(sock, address)


def _guarded_getaddrinfo(host: Any, *arguments: Any, **options: Any) -> Any:
    _check(host)
    return _getaddrinfo(host, *arguments, **options)


socket.socket.connect = _guarded_connect  # type: ignore[method-assign]
socket.socket.connect_ex = _guarded_connect_ex  # type: ignore[method-assign]
socket.getaddrinfo = _guarded_getaddrinfo
