/* emuv.h: what a program can say to emuV, and ask it. docs/hints.md has the reasons and the examples.
 *
 * There is nothing to link. The functions are exported by the library that `emuv run` loads into the program; they are
 * declared weak, so in a program that runs without emuV they are null:
 *
 *     if (emuv_hint) emuv_hint((uint64_t)pointer, bytes, EMUV_HINT_COLD);
 *
 * (Other languages look them up with dlsym(RTLD_DEFAULT, "emuv_hint").) All may be called from any thread, at any time,
 * whatever is current. None waits for the GPU, none makes a driver call, none changes what a program computes, except that
 * the contents of discarded memory are undefined until they are written.
 *
 * The interface is stable: within one EMUV_ABI_VERSION functions and fields are only added. SPDX: MIT OR Apache-2.0. */
#ifndef EMUV_H
#define EMUV_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#if defined(__GNUC__)
#define EMUV_API __attribute__((weak))
#else
#define EMUV_API
#endif

#define EMUV_ABI_VERSION 1

/* What the functions give. */
enum {
    EMUV_OK = 0,
    /* Nothing to talk to: no CUDA call was made yet, emuV is switched off, or this is a forked child. */
    EMUV_ERROR_NOT_ACTIVE = 1,
    /* An argument is wrong: nothing was done. */
    EMUV_ERROR_INVALID_VALUE = 2,
    /* No memory that emuV places starts or lies there (host memory, arrays, managed memory, memory of other processes, what
     * the program maps itself, or no allocation at all). */
    EMUV_ERROR_NOT_PLACED = 3,
    /* No report is kept of this run (`emuv run --report FILE`). */
    EMUV_ERROR_NOT_KEPT = 4,
    /* Something failed inside emuV; the program goes on as if the call had not been made. */
    EMUV_ERROR_INTERNAL = 5
};

/* What to expect of a piece of memory. */
enum {
    /* Nothing any more: what was said before is taken back. */
    EMUV_HINT_NONE = 0,
    /* It is needed all the time: it stays in VRAM as long as anything else can go, and is brought when there is room. */
    EMUV_HINT_HOT = 1,
    /* It is not needed for a while: it goes to RAM before anything else. It comes back when it is needed. */
    EMUV_HINT_COLD = 2,
    /* What it holds is not needed any more; the allocation stays. Until the program gives the GPU work again that may touch
     * it, the contents are undefined and are moved by nobody. Work that was given before goes on undisturbed, but what it
     * writes there may be lost. */
    EMUV_HINT_DISCARD = 3
};

/* EMUV_ABI_VERSION of the library. */
EMUV_API uint32_t emuv_abi_version(void);

/* The library's version, e.g. "0.1.0". */
EMUV_API const char *emuv_version(void);

/* Says what to expect of the `bytes` bytes at the device address `address`, which lie within one allocation. Heat counts for
 * whole chunks (2 to 32 MiB) of which any part lies in the range; only chunks that lie in the range wholly are discarded, and an
 * allocation up to 1 MiB, which shares its chunk with others, is left as it is. What is said of memory ends with the
 * allocation. Gives EMUV_OK also where it is of no use (under --policy static, say). */
EMUV_API int emuv_hint(uint64_t address, uint64_t bytes, int hint);

/* Counts are from the beginning of the process, sizes are bytes. A field that is not known is UINT64_MAX. */
struct emuv_stats {
    uint64_t size; /* of what was filled in, in bytes: fields beyond it are not known to the library */
    uint64_t devices; /* that the process uses */
    uint64_t vram_budget, vram_used, vram_peak;
    uint64_t ram_budget, ram_used, ram_peak; /* over all devices */
    uint64_t allocations, frees, refused;
    uint64_t spilled; /* placed in RAM, ever */
    uint64_t launches;
    uint64_t into_vram, out_of_vram; /* copied */
    uint64_t remapped; /* exchanged without copying: the contents were nobody's */
    uint64_t in_place; /* read (or written) in RAM, over the link */
    uint64_t held, held_microseconds; /* calls that waited for data */
    uint64_t bound_permille; /* how close to what GPU and link allow; of one device */
};

/* Fills in `*stats`, of all devices together; `size` is sizeof *stats. */
EMUV_API int emuv_stats(struct emuv_stats *stats, size_t size);

/* The same of one device, by its CUDA ordinal. */
EMUV_API int emuv_device_stats(int device, struct emuv_stats *stats, size_t size);

/* Marks this place in the report's timeline, on all devices that are in use: the first 64 marks of a process are kept, 56 bytes
 * (UTF-8) of each. */
EMUV_API int emuv_mark(const char *label);

#ifdef __cplusplus
}
#endif

#endif
