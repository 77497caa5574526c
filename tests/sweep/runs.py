"""Points that workers compute in tests; workers import them by name."""

import os
import signal
import time

from moesim.errors import UsageError


def double(options):
    if options["x"] == 13:
        return {"ok": False, "error": {"message": "thirteen", "exit_code": 2}}
    return {"ok": True, "result": {"y": 2 * options["x"], "many": [1, 2]}}


def slow(options):
    time.sleep(0.02)
    return double(options)


def holds(options):
    """Touches that many bytes at once."""
    return {"ok": True, "result": {"y": len(bytearray(options["x"])).bit_length()}}


def dies_of_seven(options):
    if options["x"] == 7:
        os.kill(os.getpid(), signal.SIGKILL)
    return double(options)


def refuses(_):
    raise UsageError("so")


def where(_):
    return os.getpid()
