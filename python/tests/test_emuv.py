"""The module, without emuV and under it: `python test_emuv.py`, and `emuv run --sim=vram=256M --ram 512M -- python test_emuv.py`.

No framework: the driver is called by ctypes.
"""

import contextlib
import ctypes
import io
import os
import sys
import unittest

import emuv

MIB = 1 << 20
UNDER_EMUV = os.environ.get("EMUV_RUN_DIR") is not None


class Tensor:
    """As PyTorch's, as far as it matters."""

    def __init__(self, address, nbytes, contiguous=True):
        self.address, self.nbytes, self.contiguous = address, nbytes, contiguous

    def data_ptr(self):
        return self.address

    def is_contiguous(self):
        return self.contiguous


class Array:
    """As CuPy's."""

    def __init__(self, address, shape, strides=None):
        self.__cuda_array_interface__ = {
            "shape": shape, "typestr": "<f4", "data": (address, False), "strides": strides, "version": 3,
        }


class Anywhere(unittest.TestCase):
    def test_what_is_no_tensor_is_refused(self):
        with self.assertRaisesRegex(TypeError, "list is no tensor"):
            emuv.hint([1, 2], "cold")
        with self.assertRaisesRegex(ValueError, "'warm' is none of 'none', 'hot', 'cold', 'discard'"):
            emuv.hint((0, 1), "warm")
        with self.assertRaisesRegex(ValueError, "no address and size"):
            emuv.hint((-1, 1), "cold")

    def test_what_has_gaps_is_not_discarded(self):
        for gappy in [Tensor(4096, 64, contiguous=False), Array(4096, (4, 4), (32, 4))]:
            with self.assertRaisesRegex(ValueError, "contiguous"):
                emuv.hint(gappy, "discard")
            self.assertFalse(emuv.hint(gappy, "cold"))
        self.assertEqual(emuv._range(Array(4096, (3, 4), (16, 4)), exactly=True), (4096, 48))


@unittest.skipIf(UNDER_EMUV, "under emuV")
class WithoutEmuv(unittest.TestCase):
    def test_nothing_happens_and_it_is_said_once(self):
        emuv._said = False
        said = io.StringIO()
        with contextlib.redirect_stderr(said):
            self.assertFalse(emuv.active())
            self.assertEqual(emuv.stats(), {})
            self.assertFalse(emuv.hint(Tensor(4096, 64), "discard"))
            self.assertFalse(emuv.mark("here"))
            with emuv.report("all") as used:
                pass
        self.assertEqual(used, {})
        self.assertEqual(said.getvalue().count("emuv: this program does not run under emuV"), 1)


@unittest.skipUnless(UNDER_EMUV, "not under emuV")
class UnderEmuv(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        assert emuv.stats() == {}, "before the first CUDA call"
        cls.cuda = ctypes.CDLL("libcuda.so.1")
        context = ctypes.c_void_p()
        cls.ok(cls.cuda.cuInit(0))
        cls.ok(cls.cuda.cuDevicePrimaryCtxRetain(ctypes.byref(context), 0))
        cls.ok(cls.cuda.cuCtxSetCurrent(context))

    @staticmethod
    def ok(code):
        assert code == 0, code

    def allocate(self, size):
        address = ctypes.c_uint64()
        self.ok(self.cuda.cuMemAlloc_v2(ctypes.byref(address), ctypes.c_size_t(size)))
        self.addCleanup(lambda: self.cuda.cuMemFree_v2(address))
        return address.value

    def test_hints_are_taken_for_memory_that_emuv_places(self):
        address = self.allocate(8 * MIB)
        for tensor in [Tensor(address, 8 * MIB), Array(address, (2, MIB)), (address + 5, MIB)]:
            for what in ["hot", "cold", "discard", "none", None]:
                self.assertTrue(emuv.hint(tensor, what), (tensor, what))
        self.assertFalse(emuv.hint((id(self), 8), "cold"), "memory of the host")
        self.assertFalse(emuv.hint((address, 0), "discard"), "nothing")
        with self.assertRaisesRegex(ValueError, "do not lie within one allocation"):
            emuv.hint((address, 9 * MIB), "discard")

    def test_statistics_follow_what_happens(self):
        with emuv.report("one allocation") as used:
            self.allocate(16 * MIB)
            now = emuv.stats()
        self.assertEqual((used["allocations"], used["frees"]), (1, 0))
        self.assertGreaterEqual(used["seconds"], 0.0)
        self.assertGreaterEqual(now["vram_used"] + now["ram_used"], 16 * MIB)
        self.assertEqual(now, emuv.stats(0))
        self.assertEqual(now["devices"], 1)
        self.assertIsNone(now["bound_permille"])
        with self.assertRaisesRegex(ValueError, "no device 7"):
            emuv.stats(7)

    def test_what_fails_within_a_report_is_counted_and_goes_on(self):
        with self.assertRaises(KeyError), emuv.report() as used:
            raise KeyError
        self.assertIn("launches", used)


if __name__ == "__main__":
    unittest.main(verbosity=1 if "-v" in sys.argv else 0)
