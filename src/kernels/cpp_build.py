"""C++ kernels for the CPU: compiled on first use, where the machine has a compiler.

A `Source` is compiled for an element type and sizes in about a second, without torch's headers, and the library is
kept in the user's cache folder. Its functions use torch's OpenMP threads. Where there is no compiler, or the library
does not load, the operation falls back to its reference.
"""

import ctypes
import functools
import hashlib
import os
import shutil
import subprocess
import tempfile
from array import array
from collections.abc import Iterable
from pathlib import Path
from typing import TypeAlias

import torch
from torch import Tensor

from src.kernels.compile_cache import cache_folder, describe_processor

INCLUDE = Path(__file__).parent / "include"
SRC = INCLUDE.parents[1]
# Linked to no OpenMP of its own: it finds torch's, and with that its threads.
COMPILE = ("-O3", "-march=native", "-std=c++17", "-fopenmp", "-fPIC", "-Wno-psabi", f"-I{INCLUDE}", "-c")
TIMEOUT_SECONDS = 120
C_ARGUMENTS = {int: ctypes.c_long, float: ctypes.c_double}  # a pointer otherwise
C_TYPES = {torch.float32: "float", torch.float64: "double"}
VECTOR_BYTES = 64  # rows are whole vectors of any machine

Argument: TypeAlias = "Tensor | array[int] | int | float | None"


class Kernels:
    """Functions of one compiled source.

    Arguments are contiguous tensors and tables (None: a null pointer), then numbers. Floating-point tensors have the
    element type of the source; those of a function `<name>_half` may be bfloat16 instead.
    """

    def __init__(self, library: ctypes.CDLL, dtype: torch.dtype) -> None:
        self.library, self.dtype = library, dtype

    def __call__(self, name: str, *args: Argument) -> None:
        """Call the function `name`.

        Raises:
            TypeError: a tensor has another element type, which the function would read as its own.
        """
        allowed = (self.dtype, torch.bfloat16) if name.endswith("_half") else (self.dtype,)
        for arg in args:
            if isinstance(arg, Tensor) and arg.is_floating_point() and arg.dtype not in allowed:
                raise TypeError(f"{name} is compiled for {self.dtype}, got a tensor of {arg.dtype}")
        function = getattr(self.library, name)
        if function.argtypes is None:
            function.argtypes = [C_ARGUMENTS.get(type(arg), ctypes.c_void_p) for arg in args]
        function(*[_pointer(arg) if isinstance(arg, Tensor | array) else arg for arg in args])


class Source:
    """C++ file, compiled once for each element type and set of sizes.

    Args:
        path: the file below `src`, without its suffix: `kernels/depth_attention/depth`.
    """

    def __init__(self, path: str) -> None:
        self.path = path

    def why_not(self, device: torch.device, dtype: torch.dtype, *, width: int, **sizes: int) -> str | None:
        """Return why its kernels cannot run on rows of `width` elements, or None; they are built to find out."""
        built = self._build(dtype, width, **sizes)
        return built if isinstance(built, str) else None

    def load(self, dtype: torch.dtype, width: int, **sizes: int) -> Kernels:
        """Return the kernels, which are built if they are not yet.

        Raises:
            RuntimeError: they cannot be built, for the reason that `why_not` returns.
        """
        built = self._build(dtype, width, **sizes)
        if isinstance(built, str):
            raise RuntimeError(built)
        return built

    def _build(self, dtype: torch.dtype, width: int, **sizes: int) -> Kernels | str:
        if dtype not in C_TYPES or width * dtype.itemsize % VECTOR_BYTES:
            return (
                f"C++ kernels need float32 or float64 in whole vectors of {VECTOR_BYTES} bytes, not {dtype} x {width}"
            )
        return _build(self.path, dtype, tuple(sizes.items()))


def table(numbers: Iterable[int]) -> "array[int]":
    """Return a table of numbers that a kernel can read."""
    return array("q", numbers)


def addresses(tensors: Iterable[Tensor]) -> "array[int]":
    """Return a table of the addresses of contiguous tensors."""
    return table(map(_pointer, tensors))


@functools.cache
def _build(source: str, dtype: torch.dtype, sizes: tuple[tuple[str, int], ...]) -> Kernels | str:
    """Return the kernels of a source, or why they cannot be built."""
    compiler = shutil.which(os.environ.get("CXX", "c++"))
    if compiler is None:
        return "there is no C++ compiler"
    defines = [f"-DREAL={C_TYPES[dtype]}", *(f"-D{name}={value}" for name, value in sizes)]
    path = SRC / f"{source}.cpp"
    command = [compiler, *COMPILE, *defines, str(path)]
    try:
        folder = cache_folder() or Path(tempfile.mkdtemp(prefix="reslab-"))
        library = folder / f"{path.stem}-{_fingerprint(command, path.parent)}.so"
        if not library.exists():
            _compile(command, library)
        return Kernels(ctypes.CDLL(str(library)), dtype)
    except (OSError, subprocess.SubprocessError) as error:
        return f"{source}.cpp cannot be built: {error}"


def _compile(command: list[str], path: Path) -> None:
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        objects, library = f"{folder}/kernels.o", f"{folder}/kernels.so"
        for arguments in ([*command, "-o", objects], [command[0], "-shared", objects, "-o", library]):
            subprocess.run(arguments, check=True, capture_output=True, timeout=TIMEOUT_SECONDS)
        Path(library).replace(path)  # atomic, because several processes may build it at the same time


def _fingerprint(command: list[str], folder: Path) -> str:
    """Return a hash of all that determines the machine code; unlike machines may share a home folder."""
    files = [*sorted(folder.iterdir()), *sorted(INCLUDE.glob("*.h"))]
    texts = [path.read_text() for path in files if path.suffix in (".cpp", ".h")]
    everything = "\n".join([*command, describe_processor(), *texts])
    return hashlib.sha256(everything.encode()).hexdigest()[:16]


def _pointer(x: "Tensor | array[int]") -> int:
    if isinstance(x, array):
        return x.buffer_info()[0]
    assert x.is_contiguous()  # the kernels know sizes, not strides
    return x.data_ptr()
