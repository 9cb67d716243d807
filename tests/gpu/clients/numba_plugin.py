"""A pytest plugin for the test suite inside the numba-cuda package: one line per test, and memory that spills.

Every process first takes CLIENT_HOLD_MIB of device memory and keeps it, so that under a VRAM budget of that size
all that the tests allocate spills. By a handle, since those survive the tests' resetting of the context.
"""

import ctypes
import importlib.util
import os
import sys
import types

import pytest

# Takes twice the card's memory as managed memory, which can take a whole host down: never run, plain or not.
NEVER = "oversubscribe"

counts = {"PASS": 0, "FAIL": 0, "SKIP": 0}
words = {}


class Properties(ctypes.Structure):
    """CUmemAllocationProp: pinned device memory of device 0."""

    _fields_ = [
        ("type", ctypes.c_int),
        ("handle_types", ctypes.c_int),
        ("location_type", ctypes.c_int),
        ("location_id", ctypes.c_int),
        ("win32", ctypes.c_void_p),
        ("flags", ctypes.c_ubyte * 8),
    ]


def take_memory(mib):
    driver = ctypes.CDLL("libcuda.so.1")
    handle = ctypes.c_ulonglong()
    properties = Properties(type=1, location_type=1)
    result = driver.cuInit(0) or driver.cuMemCreate(
        ctypes.byref(handle), ctypes.c_size_t(mib << 20), ctypes.byref(properties), ctypes.c_ulonglong(0)
    )
    if result:
        sys.exit(f"cannot take {mib} MiB of device memory: CUDA error {result}")


class Missing:
    """Stands for what is not installed: a test that uses it is skipped."""

    def __init__(self, *_, **__):
        pytest.skip("the package filecheck is not installed")


def stand_in_for_filecheck():
    """All of the suite's tests import it, few use it."""
    names = {"matcher": ["Matcher"], "options": ["Options"], "parser": ["Parser", "pattern_for_opts"], "finput": ["FInput"]}
    sys.modules["filecheck"] = types.ModuleType("filecheck")
    for module, contents in names.items():
        sys.modules[f"filecheck.{module}"] = types.ModuleType(f"filecheck.{module}")
        for name in contents:
            setattr(sys.modules[f"filecheck.{module}"], name, Missing)


@pytest.fixture
def initialize_from_pytest_config(request):
    """The suite asks for this fixture, and the package does not ship it."""
    request.cls._dump_failed_filechecks = False


def is_worker(config):
    return hasattr(config, "workerinput")


def distributes(config):
    return config.pluginmanager.hasplugin("dsession")


def pytest_configure(config):
    if is_worker(config) or not distributes(config):
        take_memory(int(os.environ.get("CLIENT_HOLD_MIB", "64")))
        if importlib.util.find_spec("filecheck") is None:
            stand_in_for_filecheck()


def pytest_collection_modifyitems(config, items):
    never = [item for item in items if NEVER in item.nodeid]
    config.hook.pytest_deselected(items=never)
    items[:] = [item for item in items if NEVER not in item.nodeid]


@pytest.hookimpl(trylast=True)
def pytest_runtest_logreport(report):
    """Also called in the process that gathers the workers' reports; only that one prints."""
    if "PYTEST_XDIST_WORKER" in os.environ:
        return
    name = report.nodeid.replace(" ", "_")
    if report.failed:
        words[name] = ("FAIL", reason(report))
    elif report.skipped:
        words.setdefault(name, ("SKIP", "expected to fail" if hasattr(report, "wasxfail") else "skipped"))
    elif report.when == "call":
        words.setdefault(name, ("PASS", "-"))
    if report.when == "teardown" and name in words:
        word, detail = words.pop(name)
        counts[word] += 1
        print(f"\n{word} {name} {detail}", flush=True)


def pytest_collectreport(report):
    """A file that cannot be imported counts as one failed test."""
    if report.failed:
        words.setdefault(report.nodeid, ("FAIL", reason(report)))


def reason(report):
    crash = getattr(report.longrepr, "reprcrash", None)
    text = crash.message if crash else str(report.longrepr).strip().rpartition("\n")[2]
    return " ".join(text.split())[:200]


def pytest_sessionfinish(session):
    if "PYTEST_XDIST_WORKER" in os.environ:
        return
    for name, (word, detail) in words.items():
        counts[word] += 1
        print(f"\n{word} {name} {detail}")
    total = sum(counts.values())
    print(f"\nTOTAL {total} passed {counts['PASS']} failed {counts['FAIL']} skipped {counts['SKIP']}", flush=True)
