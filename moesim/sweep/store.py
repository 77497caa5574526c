"""Results by key in one SQLite file, which several processes may share and any may be killed."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from moesim.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["Store"]

WAIT_S = 60.0
"""For another process that writes to the same store."""


class Store:
    """Texts of results by key; what :meth:`put` returned from survives a kill.

    Args:
        path: The file; made if it is not there.

    Raises:
        InputError: If it is not such a store, or cannot be written to.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        with self._refusing():
            path.parent.mkdir(parents=True, exist_ok=True)
            self._data = sqlite3.connect(path, timeout=WAIT_S)
            try:
                self._prepare()
            except BaseException:
                self._data.close()
                raise

    def _prepare(self) -> None:
        self._data.execute("PRAGMA journal_mode=WAL")
        # A batch is on its way to the disk before the next begins; a power cut may lose the last
        # ones, which are then computed again, but never half of one.
        self._data.execute("PRAGMA synchronous=NORMAL")
        self._data.execute(
            "CREATE TABLE IF NOT EXISTS points (key TEXT PRIMARY KEY, result TEXT NOT NULL)"
            " WITHOUT ROWID"
        )
        self._data.commit()

    def put(self, results: Iterable[tuple[str, str]]) -> None:
        """Keep results, all or none; one that is there already stays."""
        with self._refusing(), self._data:
            self._data.executemany("INSERT OR IGNORE INTO points VALUES (?, ?)", results)

    def keys(self) -> set[str]:
        """Keys of all results."""
        with self._refusing():
            return {key for (key,) in self._data.execute("SELECT key FROM points")}

    def get(self, key: str) -> str | None:
        """The result of a point, None if it is not there."""
        with self._refusing():
            row = self._data.execute("SELECT result FROM points WHERE key = ?", (key,)).fetchone()
        return None if row is None else str(row[0])

    def close(self) -> None:
        """Write everything back into the one file."""
        self._data.close()

    @contextmanager
    def _refusing(self) -> Iterator[None]:
        try:
            yield
        except (sqlite3.Error, OSError) as error:
            raise InputError(
                f"the store of results cannot be used: {error}",
                file=self.path,
                fix="make room or choose another --out; what is in it stays, and --resume goes on",
            ) from error
