/* How long changing a mapping takes beside copies between VRAM and RAM (docs/measurements.md, 2026-11-26): a chunk is mapped, made accessible
 * and unmapped over and over while other threads copy in pieces of several sizes, one way or both. With `runs`: the same of several
 * chunks side by side, made accessible and unmapped by one call each.
 *
 *   nvcc -O2 -o mapping_beside_copies tests/gpu/mapping_beside_copies.c -lcuda && ./mapping_beside_copies [runs]
 */
#include <cuda.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <pthread.h>
#include <time.h>
#define CK(x) do { CUresult r_ = (x); if (r_) { fprintf(stderr, "%s: %d line %d\n", #x, r_, __LINE__); exit(1); } } while (0)
static double now(void) { struct timespec t; clock_gettime(CLOCK_MONOTONIC, &t); return t.tv_sec * 1e6 + t.tv_nsec / 1e3; }
static CUcontext ctx; static CUdevice dev;
static CUmemGenericAllocationHandle mk(size_t n, int host, int exportable) {
    CUmemAllocationProp p; memset(&p, 0, sizeof p); p.type = CU_MEM_ALLOCATION_TYPE_PINNED;
    if (host) { p.location.type = CU_MEM_LOCATION_TYPE_HOST_NUMA; p.location.id = 0; } else { p.location.type = CU_MEM_LOCATION_TYPE_DEVICE; p.location.id = dev; }
    if (exportable) p.requestedHandleTypes = CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR;
    CUmemGenericAllocationHandle h; CK(cuMemCreate(&h, n, &p, 0)); return h;
}
static void acc(CUdeviceptr at, size_t n) { CUmemAccessDesc d; memset(&d, 0, sizeof d); d.location.type = CU_MEM_LOCATION_TYPE_DEVICE; d.location.id = dev; d.flags = CU_MEM_ACCESS_FLAGS_PROT_READWRITE; CK(cuMemSetAccess(at, n, &d, 1)); }
static CUdeviceptr base; static size_t used;
static CUdeviceptr va(size_t n) { CUdeviceptr a = base + used; used += n; return a; }
static CUdeviceptr mapped(size_t n, int host) { CUdeviceptr a = va(n); CUmemGenericAllocationHandle h = mk(n, host, !host); CK(cuMemMap(a, n, 0, h, 0)); acc(a, n); return a; }
static volatile int stop; static size_t piece; static int dirs; static volatile long copied[2];
static void *pump(void *arg) {
    int d = (int)(long)arg; CK(cuCtxSetCurrent(ctx)); CUstream s; CK(cuStreamCreate(&s, CU_STREAM_NON_BLOCKING));
    size_t n = 64 << 20; CUdeviceptr v = mapped(n, 0), r = mapped(n, 1); CUevent e[8]; for (int i = 0; i < 8; i++) CK(cuEventCreate(&e[i], CU_EVENT_DISABLE_TIMING));
    size_t depth = 4; if (piece < (4 << 20)) depth = 8; long k = 0;
    while (!stop) { size_t o = (k * piece) % n; if (k >= (long)depth) while (cuEventQuery(e[k % depth]) == CUDA_ERROR_NOT_READY) ; 
        if (d == 0) CK(cuMemcpyAsync(v + o, r + o, piece, s)); else CK(cuMemcpyAsync(r + o, v + o, piece, s));
        CK(cuEventRecord(e[k % depth], s)); k++; copied[d] += piece; }
    CK(cuStreamSynchronize(s)); return 0;
}
static int cmp(const void *a, const void *b) { double x = *(double *)a, y = *(double *)b; return x < y ? -1 : x > y; }
static void report(const char *w, double *t, int n) { qsort(t, n, 8, cmp); double s = 0; for (int i = 0; i < n; i++) s += t[i]; printf("   %-22s mean %7.1f p50 %7.1f p90 %7.1f max %7.1f us\n", w, s / n, t[n / 2], t[n * 9 / 10], t[n - 1]); }
static void measure(const char *title, size_t bytes, int host) {
    enum { N = 150 }; static double tm[N], ta[N], tu[N]; CUmemGenericAllocationHandle h = mk(bytes, host, !host); CUdeviceptr a = va(bytes);
    double t0 = now(); long c0 = copied[0], c1 = copied[1]; 
    for (int i = 0; i < N; i++) { double t = now(); CK(cuMemMap(a, bytes, 0, h, 0)); tm[i] = now() - t; t = now(); acc(a, bytes); ta[i] = now() - t; t = now(); CK(cuMemUnmap(a, bytes)); tu[i] = now() - t;
        double until = now() + 200 + rand() % 300; while (now() < until) ; }
    double us = now() - t0; printf(" %s, %s chunk of %zu MiB, copies in %.1f out %.1f GB/s\n", title, host ? "host" : "VRAM", bytes >> 20, (copied[0] - c0) / us / 1e3, (copied[1] - c1) / us / 1e3);
    report("map", tm, N); report("setAccess", ta, N); report("unmap", tu, N); CK(cuMemRelease(h));
}
static void measure_run(const char *title, size_t bytes, int count) {
    enum { N = 100, MOST = 16 }; static double tm[N], ta[N], tu[N]; CUmemGenericAllocationHandle h[MOST]; CUdeviceptr a = va(bytes * count); int together = 1;
    for (int c = 0; c < count; c++) h[c] = mk(bytes, 0, 1);
    for (int i = 0; i < N; i++) {
        double t = now(); for (int c = 0; c < count; c++) CK(cuMemMap(a + c * bytes, bytes, 0, h[c], 0)); tm[i] = now() - t;
        t = now(); acc(a, bytes * count); ta[i] = now() - t;
        t = now(); CUresult r = together ? cuMemUnmap(a, bytes * count) : CUDA_ERROR_INVALID_VALUE;
        if (r) { together = 0; for (int c = 0; c < count; c++) CK(cuMemUnmap(a + c * bytes, bytes)); }
        tu[i] = now() - t; double until = now() + 200 + rand() % 300; while (now() < until) ; }
    printf(" %s, %d chunks of %zu MiB, unmapped %s\n", title, count, bytes >> 20, together ? "by one call" : "one by one: the driver refuses a run");
    report("map", tm, N); report("setAccess", ta, N); report("unmap", tu, N); for (int c = 0; c < count; c++) CK(cuMemRelease(h[c]));
}
static void runs(void) {
    for (dirs = 0; dirs <= 1; dirs++) {
        piece = 32 << 20; stop = 0; pthread_t t; if (dirs) { pthread_create(&t, 0, pump, (void *)0L); double u = now() + 300e3; while (now() < u) ; }
        for (int count = 1; count <= 16; count *= 2) { measure_run(dirs ? "copies in" : "idle", 32 << 20, count); measure_run(dirs ? "copies in" : "idle", 4 << 20, count); }
        stop = 1; if (dirs) pthread_join(t, 0);
    }
}
int main(int argc, char **argv) {
    CK(cuInit(0)); CK(cuDeviceGet(&dev, 0)); CK(cuDevicePrimaryCtxRetain(&ctx, dev)); CK(cuCtxSetCurrent(ctx)); CK(cuMemAddressReserve(&base, 1ull << 40, 0, 0, 0));
    if (argc > 1 && !strcmp(argv[1], "runs")) { runs(); return 0; }
    size_t sizes[] = {32 << 20, 4 << 20};
    for (int i = 0; i < 2; i++) { measure("idle", sizes[i], 0); }
    measure("idle", 32 << 20, 1);
    size_t pieces[] = {32 << 20, 8 << 20, 2 << 20, 512 << 10};
    for (dirs = 1; dirs <= 3; dirs++) for (int p = 0; p < 4; p++) {
        piece = pieces[p]; stop = 0; copied[0] = copied[1] = 0; pthread_t t[2]; char title[80]; sprintf(title, "%s%s in pieces of %zu KiB", dirs & 1 ? "in " : "", dirs & 2 ? "out" : "", piece >> 10);
        for (long d = 0; d < 2; d++) if (dirs >> d & 1) pthread_create(&t[d], 0, pump, (void *)d);
        double u = now() + 600e3; while (now() < u) ;
        measure(title, 32 << 20, 0); if (dirs == 3 && p < 3) { measure(title, 4 << 20, 0); measure(title, 32 << 20, 1); }
        stop = 1; for (int d = 0; d < 2; d++) if (dirs >> d & 1) pthread_join(t[d], 0);
    }
    return 0;
}
