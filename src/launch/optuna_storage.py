"""Storage of an Optuna study that several processes share.

SQLite gives up a write after 5 s behind another process, and of two processes that create the tables of a new file at
once one fails. So the URL of a SQLite file gets a longer timeout, and every storage is opened once before the sweeper
opens it: a file under a lock, and any other so that an error is one sentence.

Source: Optuna 2.10, optuna.storages.RDBStorage; SQLAlchemy 1.4, pysqlite ("timeout" of sqlite3.connect).
"""

from importlib import import_module
from pathlib import Path
from typing import Any

from filelock import FileLock

from src.errors import UserError, one_line

KEY = "hydra.sweeper.storage"
#: Seconds that a write to SQLite waits for those of other processes.
TIMEOUT_S = 600


def prepare_storage(arguments: list[str]) -> list[str]:
    """Open the storage that the command line names, if any; return the command line with its timeout.

    Raises:
        UserError: the storage cannot be opened.
    """
    return [_prepare(argument) if argument.lstrip("+").partition("=")[0] == KEY else argument for argument in arguments]


def find_storage_error(error: BaseException | None) -> BaseException | None:
    """Return the error of the storage, such as a server that is gone, that led to an exception; None without one."""
    while error is not None:
        kinds = type(error).__mro__
        if any(kind.__module__.startswith("sqlalchemy.") or kind.__name__ == "StorageInternalError" for kind in kinds):
            return error
        error = error.__cause__ or error.__context__
    return None


def _prepare(argument: str) -> str:
    key, _, given = argument.partition("=")
    url = given.strip("'\"")
    if "://" not in url or url.startswith("redis"):
        return argument
    scheme, _, path = url.partition(":///")
    name, _, query = path.partition("?")
    if not scheme.startswith("sqlite") or not name or name == ":memory:":
        _open(url)
        return argument
    if not Path(name).resolve().parent.is_dir():
        raise UserError(f"{KEY}={url}: the folder of the file does not exist; create it")
    if "timeout=" not in query:
        query = "&".join(filter(None, (query, f"timeout={TIMEOUT_S}")))
    url = f"{scheme}:///{name}?{query}"
    with FileLock(f"{name}.lock"):
        _open(url)
    return f"{key}='{url}'"


def _open(url: str) -> None:
    storages: Any = import_module("optuna").storages  # an optional package
    try:
        storages.RDBStorage(url)
    except Exception as error:  # of SQLAlchemy, of a driver, of a missing one
        raise UserError(
            f"{KEY} cannot be opened ({one_line(error).split(' (Background')[0]}); correct its URL or start its server"
        ) from error
