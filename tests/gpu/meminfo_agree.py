#!/usr/bin/env python3
"""Whether PyTorch, NVML and nvidia-smi agree on how much memory GPU 0 has.

Prints one line of JSON and exits 0 if they do. Meant to be run under emuV; a plain driver keeps a little
memory for itself, which NVML counts and CUDA does not (--plain allows for that).
"""

import argparse
import ctypes
import json
import shutil
import subprocess
import sys

MIB = 1 << 20


class Memory(ctypes.Structure):
    _fields_ = [(name, ctypes.c_ulonglong) for name in ("total", "free", "used")]


class MemoryV2(ctypes.Structure):
    _fields_ = [("version", ctypes.c_uint)] + [
        (name, ctypes.c_ulonglong) for name in ("total", "reserved", "free", "used")
    ]


def ask_nvml(uuid):
    nvml = ctypes.CDLL("libnvidia-ml.so.1")
    device = ctypes.c_void_p()
    v1, v2 = Memory(), MemoryV2()
    v2.version = ctypes.sizeof(MemoryV2) | 2 << 24
    calls = [
        ("nvmlInit_v2", ()),
        ("nvmlDeviceGetHandleByUUID", (uuid.encode(), ctypes.byref(device))),
        ("nvmlDeviceGetMemoryInfo", (device, ctypes.byref(v1))),
        ("nvmlDeviceGetMemoryInfo_v2", (device, ctypes.byref(v2))),
    ]
    for name, parameters in calls:
        result = getattr(nvml, name)(*parameters)
        if result != 0:
            raise RuntimeError(f"{name} returned {result}")
    return {"nvml_total": v1.total, "nvml_free": v1.free, "nvml_v2_total": v2.total, "nvml_v2_free": v2.free}


def ask_nvidia_smi(uuid):
    """The total in bytes (a multiple of 1 MiB), or None where there is no nvidia-smi."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return None
    query = [program, "--query-gpu=uuid,memory.total", "--format=csv,noheader,nounits"]
    for line in subprocess.run(query, check=True, capture_output=True, text=True).stdout.splitlines():
        found, total = (field.strip() for field in line.split(","))
        if found == uuid:
            return int(total) * MIB
    return None


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--plain", action="store_true", help="there is no emuV: NVML may say more")
    plain = parser.parse_args().plain

    import torch

    torch.cuda.init()
    held = torch.empty(64 * MIB, dtype=torch.uint8, device="cuda:0")
    free, total = torch.cuda.mem_get_info()
    uuid = "GPU-" + str(torch.cuda.get_device_properties(0).uuid).removeprefix("GPU-")
    found = {"torch_total": total, "torch_free": free, "properties_total": torch.cuda.get_device_properties(0).total_memory}
    found.update(ask_nvml(uuid))
    found["nvidia_smi_total"] = ask_nvidia_smi(uuid)
    del held

    mistakes = []
    for name, value in found.items():
        if not name.endswith("_total") or value is None:
            continue
        # nvidia-smi rounds to whole MiB.
        difference = value // MIB - round(total / MIB) if name == "nvidia_smi_total" else value - total
        allowed = difference >= 0 if plain and "nv" in name else difference == 0
        if not allowed:
            mistakes.append(f"{name} differs by {difference}")
    found["mistakes"] = mistakes
    print(json.dumps(found), flush=True)
    sys.exit(1 if mistakes else 0)


if __name__ == "__main__":
    main()
