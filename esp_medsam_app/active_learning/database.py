"""Small SQLite files that several threads and processes share."""

from __future__ import annotations

import logging
import os
import sqlite3
from collections.abc import Callable, Iterable
from contextlib import closing
from pathlib import Path
from typing import TypeVar

Result = TypeVar("Result")

# How long one waits for another's transaction, seconds.
_PATIENCE = 10.0

logger = logging.getLogger(__name__)


def retain_images(
    connection: sqlite3.Connection, tables: Iterable[str], images: Iterable[str]
) -> None:
    """Delete the rows of all images but these; the tables' column is `image`."""
    wanted = set(images)
    for table in tables:
        there = connection.execute(f"SELECT DISTINCT image FROM {table}").fetchall()
        gone = [(image,) for (image,) in there if image not in wanted]
        connection.executemany(f"DELETE FROM {table} WHERE image = ?", gone)


def transact(path: Path, tables: str, work: Callable[[sqlite3.Connection], Result]) -> Result:
    """Do some work in one transaction: all of it is kept, or nothing if the process dies.

    SQLite's own locks keep others out meanwhile. A file that is no database, or damaged, is put
    aside with a line in the log, and the work is done in a new one: what these files hold can be
    found out again.

    Args:
        path: of the file; made with its folder if need be.
        tables: SQL that creates what is not there.
        work: may be done twice.

    Raises:
        sqlite3.OperationalError: the file cannot be written, or is locked for long.
        OSError: the folder cannot be made.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        return _transact(path, tables, work)
    except sqlite3.DatabaseError as error:
        # its subclasses are other matters than damage: no room, no right, locked
        if type(error) is not sqlite3.DatabaseError:
            raise
        aside = path.with_name(path.name + ".damaged")
        logger.warning("%s is damaged (%s): begun anew, the old one is %s", path, error, aside.name)
        os.replace(path, aside)
        path.with_name(path.name + "-journal").unlink(missing_ok=True)
        return _transact(path, tables, work)


def _transact(path: Path, tables: str, work: Callable[[sqlite3.Connection], Result]) -> Result:
    connection = sqlite3.connect(path, timeout=_PATIENCE, isolation_level=None)
    with closing(connection):
        connection.executescript(tables)
        connection.execute("BEGIN IMMEDIATE")
        try:
            result = work(connection)
            connection.execute("COMMIT")
        except BaseException:
            if connection.in_transaction:
                connection.execute("ROLLBACK")
            raise
        return result
