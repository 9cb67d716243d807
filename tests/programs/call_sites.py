"""Buffers that do not fit in VRAM and are used in turns, allocated by two functions from two threads: of which most was moved,
and where it was allocated, is to be found in the report. Arguments: [rounds, default 8]"""

import ctypes
import os
import sys
import threading

# Gives the interpreter's lock away for the time of each call, as frameworks do.
cuda = ctypes.CDLL("libcuda.so.1")
MIB = 1 << 20
BYTES = 32 * MIB


def ok(result):
    if result != 0:
        raise SystemExit(f"CUDA error {result}")


class Weights:
    def allocate(self):
        address = ctypes.c_uint64()
        ok(cuda.cuMemAlloc_v2(ctypes.byref(address), ctypes.c_size_t(BYTES)))  # the line of weights
        return address


def activations():
    address = ctypes.c_uint64()
    ok(
        cuda.cuMemAllocAsync(
            ctypes.byref(address),
            ctypes.c_size_t(BYTES),
            None,
        )
    )
    return address


def main():
    context = ctypes.c_void_p()
    ok(cuda.cuInit(0))
    ok(cuda.cuDevicePrimaryCtxRetain(ctypes.byref(context), 0))
    ok(cuda.cuCtxSetCurrent(context))
    buffers = [Weights().allocate() for _ in range(8)]

    def in_a_thread():
        ok(cuda.cuCtxSetCurrent(context))
        buffers.extend(activations() for _ in range(4))

    thread = threading.Thread(target=in_a_thread)
    thread.start()
    thread.join()
    module, mix = ctypes.c_void_p(), ctypes.c_void_p()
    with open(os.environ["EMUV_TEST_PTX"], "rb") as text:
        ok(cuda.cuModuleLoadData(ctypes.byref(module), text.read()))
    ok(cuda.cuModuleGetFunction(ctypes.byref(mix), module, b"emuv_mix"))
    for buffer in buffers:
        ok(cuda.cuMemsetD8_v2(buffer, ctypes.c_ubyte(1), ctypes.c_size_t(BYTES)))
    count = ctypes.c_uint64(BYTES // 4)
    for number in range(int(sys.argv[1]) if len(sys.argv) > 1 else 8):
        seed = ctypes.c_uint32(number)
        for buffer in buffers:
            given = [ctypes.addressof(value) for value in (buffer, count, seed)]
            ok(cuda.cuLaunchKernel(mix, 4096, 1, 1, 256, 1, 1, 0, None, (ctypes.c_void_p * 3)(*given), None))
    ok(cuda.cuCtxSynchronize())


main()
