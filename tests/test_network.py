"""The suite cannot reach a network."""

import socket

import pytest


def test_nobody_is_reached_but_this_machine():
    with socket.create_server(("127.0.0.1", 0)) as here:
        socket.create_connection(here.getsockname()).close()
    with socket.socket() as one, pytest.raises(PermissionError, match="must not reach"):
        one.connect(("192.0.2.1", 80))
