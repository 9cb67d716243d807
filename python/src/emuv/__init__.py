"""What a program can say to emuV, and ask it (``emuv run -- python ...``).

Without emuV everything here does nothing, and says so once on standard error. The functions are those of
``include/emuv.h``, called in the library that emuV has loaded into this process; nothing is loaded from here.
"""

from __future__ import annotations

import contextlib
import ctypes
import math
import sys
import time

__all__ = ["active", "hint", "mark", "report", "stats"]

_ABI_VERSION = 1
_OK, _NOT_ACTIVE, _INVALID_VALUE, _NOT_PLACED, _NOT_KEPT = range(5)
_HINTS = {"none": 0, "hot": 1, "cold": 2, "discard": 3}
_UNKNOWN = 2**64 - 1

#: Fields of ``struct emuv_stats``, in order.
_FIELDS = (
    "size",
    "devices",
    "vram_budget",
    "vram_used",
    "vram_peak",
    "ram_budget",
    "ram_used",
    "ram_peak",
    "allocations",
    "frees",
    "refused",
    "spilled",
    "launches",
    "into_vram",
    "out_of_vram",
    "remapped",
    "in_place",
    "held",
    "held_microseconds",
    "bound_permille",
)
#: Those that only rise: differences of them say what happened in between.
_COUNTS = _FIELDS[_FIELDS.index("allocations") : _FIELDS.index("bound_permille")]

_library = None
_looked = False
_said = False


def _find():
    """emuV's library, if it is in this process."""
    global _library, _looked
    if _looked:
        return _library
    _looked = True
    here = ctypes.CDLL(None)
    try:
        version = here.emuv_abi_version
        version.restype = ctypes.c_uint32
        if version() != _ABI_VERSION:
            return None
        here.emuv_hint.argtypes = [ctypes.c_uint64, ctypes.c_uint64, ctypes.c_int]
        here.emuv_stats.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
        here.emuv_device_stats.argtypes = [ctypes.c_int, ctypes.c_void_p, ctypes.c_size_t]
        here.emuv_mark.argtypes = [ctypes.c_char_p]
    except AttributeError:
        return None
    _library = here
    return _library


def _library_or_say():
    global _said
    library = _find()
    if library is None and not _said:
        _said = True
        print("emuv: this program does not run under emuV; hints and statistics do nothing", file=sys.stderr)
    return library


def active() -> bool:
    """Whether this program runs under emuV."""
    return _find() is not None


def stats(device: int | None = None) -> dict:
    """What emuV counts of this process: of all devices, or of one. Sizes are bytes, what is not known is None.

    Empty without emuV, and before the first CUDA call.
    """
    library = _library_or_say()
    if library is None:
        return {}
    words = (ctypes.c_uint64 * len(_FIELDS))()
    if device is None:
        code = library.emuv_stats(words, ctypes.sizeof(words))
    else:
        code = library.emuv_device_stats(device, words, ctypes.sizeof(words))
    if code == _INVALID_VALUE:
        raise ValueError(f"no device {device} that this process uses")
    if code != _OK:
        return {}
    known = words[0] // ctypes.sizeof(ctypes.c_uint64)
    values = zip(_FIELDS[1:known], words[1:known])
    return {name: None if value == _UNKNOWN else value for name, value in values}


def hint(tensor, what: str | None) -> bool:
    """Says what to expect of a piece of GPU memory.

    ``"hot"``: it stays in VRAM as long as anything else can go. ``"cold"``: it goes to RAM before anything else.
    ``"discard"``: what it holds is not needed any more; its contents are undefined until they are written. ``None`` or
    ``"none"`` takes back what was said.

    Whether emuV has taken it: not so without emuV, and for memory that emuV does not place.
    """
    name = "none" if what is None else what
    if name not in _HINTS:
        raise ValueError(f"{what!r} is none of {', '.join(map(repr, _HINTS))}")
    address, size = _range(tensor, exactly=name == "discard")
    library = _library_or_say()
    if library is None or size == 0:
        return False
    code = library.emuv_hint(address, size, _HINTS[name])
    if code == _INVALID_VALUE:
        raise ValueError(f"{size} bytes at {address:#x} do not lie within one allocation")
    return code == _OK


def mark(label: str) -> bool:
    """Marks this place in the report's timeline. Whether a report is kept (``emuv run --report``)."""
    library = _library_or_say()
    if library is None:
        return False
    return library.emuv_mark(label.replace("\0", " ").encode("utf-8", "replace")) == _OK


@contextlib.contextmanager
def report(label: str | None = None):
    """Counts what happens within, in the dictionary that it gives, and marks beginning and end in the report.

    Afterwards the dictionary has ``seconds`` and each count of :func:`stats` (``into_vram``, ``held_microseconds``...); it
    stays empty without emuV.
    """
    used: dict = {}
    if label is not None:
        mark(f"{label}: begin")
    before, start = stats(), time.monotonic()
    try:
        yield used
    finally:
        after = stats()
        if after:
            used["seconds"] = time.monotonic() - start
            used.update({name: after[name] - before.get(name, 0) for name in _COUNTS if name in after})
        if label is not None:
            mark(f"{label}: end")


def _range(tensor, exactly: bool) -> tuple[int, int]:
    """Address and size in bytes. ``exactly``: what has gaps is refused, as other data may lie in them."""
    if isinstance(tensor, tuple) and len(tensor) == 2 and all(isinstance(part, int) for part in tensor):
        address, size = tensor
        if not (0 <= address < 2**64 and 0 <= size < 2**64):
            raise ValueError(f"{tensor!r} is no address and size")
        return address, size
    if callable(getattr(tensor, "data_ptr", None)):
        size = getattr(tensor, "nbytes", None)
        if size is None:
            size = tensor.numel() * tensor.element_size()
        dense = tensor.is_contiguous() if callable(getattr(tensor, "is_contiguous", None)) else True
        address = tensor.data_ptr()
    elif getattr(tensor, "__cuda_array_interface__", None) is not None:
        array = tensor.__cuda_array_interface__
        shape, item = tuple(array["shape"]), int(array["typestr"][2:])
        size, address = math.prod(shape) * item, array["data"][0] or 0
        strides = array.get("strides")
        dense = strides is None or tuple(strides) == _dense_strides(shape, item)
    else:
        raise TypeError(
            f"{type(tensor).__name__} is no tensor: it has neither data_ptr() nor __cuda_array_interface__, and is no "
            "pair (address, bytes)"
        )
    if exactly and not dense:
        raise ValueError("only a contiguous tensor can be discarded: other data may lie between its elements")
    return int(address), int(size)


def _dense_strides(shape: tuple, item: int) -> tuple:
    strides, step = [], item
    for length in reversed(shape):
        strides.append(step)
        step *= length
    return tuple(reversed(strides))
