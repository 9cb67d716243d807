/* What making pinned RAM costs, by size and threads; what it does to mappings and to work that is given to the GPU meanwhile; and what pinning
 * memory that is there already costs (docs/measurements.md, 2026-11-27, evening).
 *
 *   gcc -O2 -o making_ram tests/gpu/making_ram.c -I/usr/local/cuda/include -lcuda -lpthread && ./making_ram
 */
#include <cuda.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#define CK(x) do { CUresult r_ = (x); if (r_) { fprintf(stderr, "%s: %d line %d\n", #x, r_, __LINE__); exit(1); } } while (0)
#define MIB ((size_t)1 << 20)
static double now(void) { struct timespec t; clock_gettime(CLOCK_MONOTONIC, &t); return t.tv_sec * 1e6 + t.tv_nsec / 1e3; }
static CUcontext ctx; static CUdevice dev;
static CUmemGenericAllocationHandle make(size_t bytes, CUmemLocationType where, int id) {
    CUmemAllocationProp p; memset(&p, 0, sizeof p); p.type = CU_MEM_ALLOCATION_TYPE_PINNED; p.location.type = where; p.location.id = id;
    CUmemGenericAllocationHandle h; CK(cuMemCreate(&h, bytes, &p, 0)); return h;
}
struct making { size_t bytes; int count; CUmemGenericAllocationHandle *made; double us; };
static void *make_ram(void *arg) {
    struct making *m = arg; CK(cuCtxSetCurrent(ctx)); double from = now();
    for (int i = 0; i < m->count; i++) m->made[i] = make(m->bytes, CU_MEM_LOCATION_TYPE_HOST_NUMA, 0);
    m->us = now() - from; return 0;
}
static void sizes(void) {
    static const size_t SIZES[] = { 2 * MIB, 4 * MIB, 8 * MIB, 32 * MIB, 128 * MIB };
    for (int k = 0; k < 5; k++) for (int threads = 1; threads <= 4; threads *= 2) {
        struct making m[4]; pthread_t t[4]; int count = (int)(1024 * MIB / SIZES[k]) / threads; double from = now();
        for (int i = 0; i < threads; i++) { m[i] = (struct making){ SIZES[k], count, malloc(count * sizeof *m[i].made), 0 }; pthread_create(&t[i], 0, make_ram, &m[i]); }
        for (int i = 0; i < threads; i++) pthread_join(t[i], 0);
        double us = now() - from; from = now();
        for (int i = 0; i < threads; i++) { for (int n = 0; n < count; n++) CK(cuMemRelease(m[i].made[n])); free(m[i].made); }
        printf("%4zu MiB, %d threads: %7.0f us each per thread, %4.1f GB/s, releasing %6.0f us\n", SIZES[k] / MIB, threads, us / count, 1024 * MIB / us / 1e3, (now() - from) / count / threads);
    }
}
/* What a thread does over and over, prepared before anything is timed. */
static CUdeviceptr address, memory; static CUmemGenericAllocationHandle handle; static CUstream stream;
static void map(void) {
    CUmemAccessDesc d; memset(&d, 0, sizeof d); d.location.type = CU_MEM_LOCATION_TYPE_DEVICE; d.location.id = dev; d.flags = CU_MEM_ACCESS_FLAGS_PROT_READWRITE;
    CK(cuMemMap(address, 32 * MIB, 0, handle, 0)); CK(cuMemSetAccess(address, 32 * MIB, &d, 1)); CK(cuMemUnmap(address, 32 * MIB));
}
static void launch(void) { static int n; CK(cuMemsetD8Async(memory, 1, 1024, stream)); if (++n % 64 == 0) CK(cuStreamSynchronize(stream)); }
static volatile int stop; static double sum, worst; static int count;
static void *over_and_over(void *what) {
    CK(cuCtxSetCurrent(ctx)); sum = worst = 0; count = 0;
    while (!stop) { double from = now(); ((void (*)(void))what)(); double us = now() - from; sum += us; count++; if (us > worst) worst = us; }
    return 0;
}
static void beside(const char *name, void (*what)(void)) {
    for (int making = 0; making <= 1; making++) {
        pthread_t t; struct making m = { 4 * MIB, 200, malloc(200 * sizeof *m.made), 0 }; stop = 0; pthread_create(&t, 0, over_and_over, (void *)what);
        double until = now() + 300e3; if (making) make_ram(&m); else while (now() < until) ;
        stop = 1; pthread_join(t, 0);
        printf("%s %s: mean %.0f us, worst %.0f, %d times\n", name, making ? "beside making 200 x 4 MiB of RAM" : "alone, 300 ms", sum / count, worst, count);
        if (making) { printf("   making took %.0f us each\n", m.us / m.count); for (int i = 0; i < m.count; i++) CK(cuMemRelease(m.made[i])); }
        free(m.made);
    }
}
int main(void) {
    CK(cuInit(0)); CK(cuDeviceGet(&dev, 0)); CK(cuDevicePrimaryCtxRetain(&ctx, dev)); CK(cuCtxSetCurrent(ctx));
    CK(cuMemAddressReserve(&address, 32 * MIB, 0, 0, 0)); handle = make(32 * MIB, CU_MEM_LOCATION_TYPE_DEVICE, dev); CK(cuMemAlloc(&memory, MIB)); CK(cuStreamCreate(&stream, CU_STREAM_NON_BLOCKING));
    for (int turn = 0; turn < 2; turn++) sizes();
    beside("mapping 32 MiB of VRAM", map); beside("giving the GPU work", launch);
    for (int turn = 0; turn < 2; turn++) {
        size_t bytes = 256 * MIB; void *there; double from = now(); CK(cuMemHostAlloc(&there, bytes, 0)); printf("cuMemHostAlloc of 256 MiB: %.0f us\n", now() - from); CK(cuMemFreeHost(there));
        void *pages = mmap(0, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0); madvise(pages, bytes, MADV_HUGEPAGE);
        from = now(); memset(pages, 0, bytes); double touched = now(); CK(cuMemHostRegister(pages, bytes, 0)); printf("touching 256 MiB of huge pages: %.0f us, pinning them: %.0f\n", touched - from, now() - touched);
        CK(cuMemHostUnregister(pages)); munmap(pages, bytes);
    }
    return 0;
}
