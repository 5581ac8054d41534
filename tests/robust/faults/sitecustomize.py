"""Faults for a process that has this folder on its PYTHONPATH: of the file system, signals and kills.

FAULT_FILES: a regular expression; opening what it matches for writing fails with FAULT_ERRNO, from the
FAULT_AFTER-th time on. FAULT_FREE: bytes that every file system seems to have free. FAULT_SIGNAL: `<number>:<module>`,
a signal that this process gets at the moment at which it begins to import the module. FAULT_KILL:
`<module>:<function>:<n>:<ms>`, kill -9 so many milliseconds into the n-th call of a function (or method) of a module.
"""

import builtins
import errno
import importlib.util
import io
import os
import re
import signal
import sys
import threading
from typing import Any

_open, _statvfs = io.open, os.statvfs
_seen = 0


def _faulty_open(file: Any, mode: str = "r", *args: Any, **kwargs: Any) -> Any:
    global _seen
    pattern = os.environ.get("FAULT_FILES")
    if pattern and set(mode) & set("wax+") and re.search(pattern, str(file)):
        _seen += 1
        if _seen > int(os.environ.get("FAULT_AFTER", "0")):
            code = getattr(errno, os.environ.get("FAULT_ERRNO", "ENOSPC"))
            raise OSError(code, os.strerror(code), str(file))
    return _open(file, mode, *args, **kwargs)


class _Full:
    def __init__(self, real: os.statvfs_result) -> None:
        self.f_frsize, self.f_blocks = real.f_frsize, real.f_blocks
        self.f_bfree = self.f_bavail = int(os.environ["FAULT_FREE"]) // real.f_frsize


class _SignalAtImport:
    number, _, name = os.environ.get("FAULT_SIGNAL", "").partition(":")

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> None:
        if name == self.name:
            os.kill(os.getpid(), int(self.number))


class _KillInCall:
    module, _, rest = os.environ.get("FAULT_KILL", ":::").partition(":")
    looking, calls = False, 0

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> Any:
        if name != self.module or self.looking:
            return None
        self.looking = True
        spec = importlib.util.find_spec(name)
        assert spec is not None
        assert spec.loader is not None
        real = spec.loader.exec_module

        def exec_module(module: Any) -> None:
            real(module)
            self.wrap(module)

        spec.loader.exec_module = exec_module  # type: ignore[method-assign]
        return spec

    def wrap(self, owner: Any) -> None:
        function, number, wait = self.rest.split(":")
        *path, last = function.split(".")
        for part in path:
            owner = getattr(owner, part)
        real = getattr(owner, last)

        def call(*args: Any, **kwargs: Any) -> Any:
            self.calls += 1
            if self.calls == int(number):
                threading.Timer(float(wait) / 1000, os.kill, (os.getpid(), signal.SIGKILL)).start()
            return real(*args, **kwargs)

        setattr(owner, last, call)


if "FAULT_KILL" in os.environ:
    sys.meta_path.insert(0, _KillInCall())  # type: ignore[arg-type]  # it finds one module
if "FAULT_SIGNAL" in os.environ:
    sys.meta_path.insert(0, _SignalAtImport())  # type: ignore[arg-type]  # it finds nothing
builtins.open = io.open = _faulty_open
if "FAULT_FREE" in os.environ:
    os.statvfs = lambda path: _Full(_statvfs(path))  # type: ignore[assignment,return-value]
