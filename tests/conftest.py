"""What holds for the whole run of the suite."""

from __future__ import annotations

import ipaddress
import socket
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings

ROOT = str(Path(__file__).parent.parent)
LINKED_FOLDERS = ("planners", "kernels", "traces", "reports", "hwprofiles")


# `python -m pytest` puts the checkout on the path, where other packages would find the linked
# folders: transformers looks for a package called kernels.
sys.path[:] = [entry for entry in sys.path if entry not in (ROOT, "")]


@pytest.fixture(scope="session", autouse=True)
def _nothing_is_imported_past_the_package() -> Iterator[None]:
    """The top-level folders are parts of moesim: imported bare, every class would exist twice."""
    yield
    bare = sorted(name for name in LINKED_FOLDERS if name in sys.modules)
    assert not bare, f"imported without moesim.: {', '.join(bare)}"


# A machine that is busy with something else is no defect of what is tested.
settings.register_profile("moesim", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("moesim")


@pytest.fixture(scope="session", autouse=True)
def _nothing_leaves_the_machine() -> Iterator[None]:
    """Connections of this process go to itself or to nobody."""
    connect = socket.socket.connect

    def connect_here(one: socket.socket, address: Any) -> None:
        if one.family != socket.AF_UNIX and not _is_here(address[0]):
            raise PermissionError(f"tests must not reach {address}")
        connect(one, address)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(socket.socket, "connect", connect_here)
        yield


def _is_here(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
