/* What every test program here does the same way: report a failed check, start the device, load the
 * kernels, launch them, and compute on the CPU what they must give.
 *
 * Settings, all from the environment so that one test can pass them to any program:
 *   EMUV_TEST_PTX        path of emuv.ptx
 *   EMUV_TEST_EXPECT     "emuv" or "plain": whose driver library this process must be using (not checked if unset)
 *   EMUV_TEST_SLACK_MIB  by how much "free" may differ before and after (a real driver caches; default 0)
 *   EMUV_TEST_DEVICE     the device that it uses (default 0)
 * A program prints what it did, exits 0 if every check held, 1 at the first that did not. */
#ifndef EMUV_PROGRAM_H
#define EMUV_PROGRAM_H

#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include <dlfcn.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "cuda_min.h"

#define MIB ((size_t)1 << 20)

#define CHECK(condition, ...)                                                  \
    do {                                                                       \
        if (!(condition)) {                                                    \
            fprintf(stderr, "%s:%d: not so: %s: ", __FILE__, __LINE__, #condition); \
            fprintf(stderr, __VA_ARGS__);                                      \
            fputc('\n', stderr);                                               \
            exit(1);                                                           \
        }                                                                      \
    } while (0)

/* The call must return exactly this code. */
#define EXPECT(call, code)                                            \
    do {                                                              \
        CUresult result_ = (call);                                    \
        CHECK(result_ == (code), "%s gave %d", #call, result_);       \
    } while (0)

#define OK(call) EXPECT(call, CUDA_SUCCESS)

/* The call must fail, with whichever code. */
#define FAILS(call)                                                   \
    do {                                                              \
        CUresult result_ = (call);                                    \
        CHECK(result_ != CUDA_SUCCESS, "%s succeeded", #call);        \
    } while (0)

static inline size_t number(const char *text, size_t otherwise) {
    return text && *text ? strtoull(text, NULL, 0) : otherwise;
}

static inline size_t argument(int argc, char **argv, int index, size_t otherwise) {
    return number(index < argc ? argv[index] : NULL, otherwise);
}

static inline size_t slack_bytes(void) {
    return number(getenv("EMUV_TEST_SLACK_MIB"), 0) * MIB;
}

static inline double now_us(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec * 1e6 + (double)t.tv_nsec / 1e3;
}

/* For qsort: numbers, the smallest first. */
static inline int ascending(const void *a, const void *b) {
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

/* A small generator with a printed seed: the same seed gives the same run. */
static inline uint64_t next_random(uint64_t *state) {
    uint64_t x = (*state += 0x9e3779b97f4a7c15u);
    x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9u;
    x = (x ^ (x >> 27)) * 0x94d049bb133111ebu;
    return x ^ (x >> 31);
}

/* Argument `index` if given, else a seed from the clock; printed either way. */
static inline uint64_t seed_argument(int argc, char **argv, int index) {
    struct timespec t;
    clock_gettime(CLOCK_REALTIME, &t);
    uint64_t seed = argument(argc, argv, index, (size_t)t.tv_sec * 1000003u + (size_t)t.tv_nsec);
    printf("seed %" PRIu64 "\n", seed);
    fflush(stdout);
    return seed;
}

/* Fails if the driver library in use is not the one that EMUV_TEST_EXPECT names; `function` is any
 * function pointer that the program got from the library. */
static inline void check_library(void *function) {
    const char *expected = getenv("EMUV_TEST_EXPECT");
    if (!expected) return;
    Dl_info info;
    CHECK(dladdr(function, &info) && info.dli_fname, "address %p is in no library", function);
    void *library = dlopen(info.dli_fname, RTLD_NOW | RTLD_NOLOAD);
    void *version = library ? dlsym(library, "emuv_version") : NULL;
    Dl_info version_info;
    /* The symbol could also come from a dependency: it must be of the very same file. */
    int ours = version && dladdr(version, &version_info) && version_info.dli_fbase == info.dli_fbase;
    CHECK(ours == !strcmp(expected, "emuv"), "expected %s, the function is in %s", expected, info.dli_fname);
}

static inline char *read_text(const char *path) {
    FILE *file = fopen(path, "rb");
    CHECK(file, "cannot open %s", path);
    fseek(file, 0, SEEK_END);
    long length = ftell(file);
    rewind(file);
    char *text = malloc((size_t)length + 1);
    CHECK(text && fread(text, 1, (size_t)length, file) == (size_t)length, "cannot read %s", path);
    text[length] = 0;
    fclose(file);
    return text;
}

static inline char *kernel_text(void) {
    const char *path = getenv("EMUV_TEST_PTX");
    CHECK(path, "set EMUV_TEST_PTX to the path of emuv.ptx");
    return read_text(path);
}

/* What the kernels must compute. */
static inline uint32_t mix_word(uint32_t x) {
    x ^= x >> 16;
    x *= 0x7feb352du;
    x ^= x >> 15;
    x *= 0x846ca68bu;
    x ^= x >> 16;
    return x;
}

static inline uint64_t reduce_words(const uint32_t *words, uint64_t count) {
    uint64_t sum = 0;
    for (uint64_t i = 0; i < count; i++) sum += (uint64_t)words[i] * (2 * i + 1);
    return sum;
}

static inline uint64_t reduce_filled(uint32_t seed, uint64_t count) {
    uint64_t sum = 0;
    for (uint64_t i = 0; i < count; i++) sum += (uint64_t)mix_word((uint32_t)i + seed) * (2 * i + 1);
    return sum;
}

/* What a buffer holds that was filled once and mixed any number of times: word i is factor * fill(i) + addend. */
struct contents {
    uint32_t seed, factor, addend;
};

static inline struct contents filled(uint32_t seed) {
    return (struct contents){seed, 1, 0};
}

static inline struct contents mixed(struct contents before, uint32_t round) {
    return (struct contents){before.seed, before.factor * 1664525u, before.addend * 1664525u + 1013904223u + round};
}

static inline uint32_t word_of(struct contents contents, uint64_t index) {
    return mix_word((uint32_t)index + contents.seed) * contents.factor + contents.addend;
}

static inline uint64_t reduce_contents(struct contents contents, uint64_t count) {
    uint64_t sum = 0;
    for (uint64_t i = 0; i < count; i++) sum += (uint64_t)word_of(contents, i) * (2 * i + 1);
    return sum;
}

#ifndef EMUV_PROGRAM_WITHOUT_LINKING
/* The rest calls the driver by linked symbols. */

static struct {
    CUdevice device;
    CUcontext context;
    CUmodule module;
    CUfunction fill, mix, axpy, gemm, gather, chase, reduce, touch, batched_mix, store_pointers, link, walk;
} gpu;

static inline void load_kernels(void) {
    char *text = kernel_text();
    OK(cuModuleLoadData(&gpu.module, text));
    free(text);
    OK(cuModuleGetFunction(&gpu.fill, gpu.module, "emuv_fill"));
    OK(cuModuleGetFunction(&gpu.mix, gpu.module, "emuv_mix"));
    OK(cuModuleGetFunction(&gpu.axpy, gpu.module, "emuv_axpy"));
    OK(cuModuleGetFunction(&gpu.gemm, gpu.module, "emuv_gemm"));
    OK(cuModuleGetFunction(&gpu.gather, gpu.module, "emuv_gather"));
    OK(cuModuleGetFunction(&gpu.chase, gpu.module, "emuv_chase"));
    OK(cuModuleGetFunction(&gpu.reduce, gpu.module, "emuv_reduce"));
    OK(cuModuleGetFunction(&gpu.touch, gpu.module, "emuv_touch"));
    OK(cuModuleGetFunction(&gpu.batched_mix, gpu.module, "emuv_batched_mix"));
    OK(cuModuleGetFunction(&gpu.store_pointers, gpu.module, "emuv_store_pointers"));
    OK(cuModuleGetFunction(&gpu.link, gpu.module, "emuv_link"));
    OK(cuModuleGetFunction(&gpu.walk, gpu.module, "emuv_walk"));
}

/* The device (0 if EMUV_TEST_DEVICE names no other), its primary context made current, the kernels loaded. */
static inline void start_gpu(void) {
    check_library((void *)cuMemAlloc_v2);
    OK(cuInit(0));
    OK(cuDeviceGet(&gpu.device, (int)number(getenv("EMUV_TEST_DEVICE"), 0)));
    OK(cuDevicePrimaryCtxRetain(&gpu.context, gpu.device));
    OK(cuCtxSetCurrent(gpu.context));
    load_kernels();
}

static inline void launch(CUfunction function, uint64_t threads, CUstream stream, void **parameters) {
    uint64_t blocks = (threads + 255) / 256;
    unsigned grid = blocks > 4096 ? 4096 : blocks ? (unsigned)blocks : 1;
    OK(cuLaunchKernel(function, grid, 1, 1, 256, 1, 1, 0, stream, parameters, NULL));
}

static inline void run_fill_on(CUstream stream, CUdeviceptr dst, uint64_t count, uint32_t seed) {
    void *parameters[] = {&dst, &count, &seed};
    launch(gpu.fill, count, stream, parameters);
}

static inline void run_fill(CUdeviceptr dst, uint64_t count, uint32_t seed) {
    run_fill_on(NULL, dst, count, seed);
}

/* Adds the weighted sum of `count` words to the word at `out`, in the stream's order. */
static inline void run_reduce_on(CUstream stream, CUdeviceptr out, CUdeviceptr source, uint64_t count) {
    void *parameters[] = {&out, &source, &count};
    launch(gpu.reduce, count, stream, parameters);
}

static inline void run_mix_on(CUstream stream, CUdeviceptr buffer, uint64_t count, uint32_t round) {
    void *parameters[] = {&buffer, &count, &round};
    launch(gpu.mix, count, stream, parameters);
}

static inline void run_mix(CUdeviceptr buffer, uint64_t count, uint32_t round) {
    run_mix_on(NULL, buffer, count, round);
}

/* Mixes `buffers` buffers of `count` words each, whose addresses are in the table. */
static inline void run_batched_mix_on(CUstream stream, CUdeviceptr table, uint64_t buffers, uint64_t count, uint32_t round) {
    void *parameters[] = {&table, &buffers, &count, &round};
    launch(gpu.batched_mix, count, stream, parameters);
}

/* table[i] = base + i * stride_bytes, written by the device. */
static inline void run_store_pointers_on(CUstream stream, CUdeviceptr table, CUdeviceptr base, uint64_t stride_bytes, uint64_t count) {
    void *parameters[] = {&table, &base, &stride_bytes, &count};
    launch(gpu.store_pointers, count, stream, parameters);
}

/* The weighted sum of `count` words; waits for it. */
static inline uint64_t run_reduce(CUdeviceptr source, uint64_t count) {
    CUdeviceptr out;
    uint64_t sum = 0;
    OK(cuMemAlloc_v2(&out, sizeof sum));
    OK(cuMemcpyHtoD_v2(out, &sum, sizeof sum));
    void *parameters[] = {&out, &source, &count};
    launch(gpu.reduce, count, NULL, parameters);
    OK(cuMemcpyDtoH_v2(&sum, out, sizeof sum));
    OK(cuMemFree_v2(out));
    return sum;
}

static inline size_t free_bytes(void) {
    size_t available, total;
    OK(cuMemGetInfo_v2(&available, &total));
    CHECK(available <= total, "free %zu of %zu", available, total);
    return available;
}

/* A driver may set memory aside at the first launch and allocation: do both before measuring "free". */
static inline size_t settled_free_bytes(void) {
    CUdeviceptr block;
    OK(cuMemAlloc_v2(&block, MIB));
    run_fill(block, MIB / 4, 1);
    (void)run_reduce(block, MIB / 4);
    OK(cuMemFree_v2(block));
    return free_bytes();
}

static inline void check_free_is(size_t expected) {
    size_t actual = free_bytes();
    size_t difference = actual > expected ? actual - expected : expected - actual;
    CHECK(difference <= slack_bytes(), "free was %zu, is %zu", expected, actual);
}

/* Compares every word of a buffer with the model; waits for all work first. `number` names it in a failure. */
static inline void check_contents(CUdeviceptr buffer, uint64_t count, struct contents contents, size_t number) {
    enum { PIECE = 1 << 20 };
    uint32_t *words = malloc(PIECE * sizeof *words);
    CHECK(words, "no memory");
    OK(cuCtxSynchronize());
    for (uint64_t first = 0; first < count; first += PIECE) {
        uint64_t piece = count - first < PIECE ? count - first : PIECE;
        OK(cuMemcpyDtoH_v2(words, buffer + first * 4, piece * 4));
        for (uint64_t i = 0; i < piece; i++)
            CHECK(words[i] == word_of(contents, first + i), "buffer %zu at %llx, word %" PRIu64 ": %x, not %x", number, buffer, first + i,
                  words[i], word_of(contents, first + i));
    }
    free(words);
}

/* Fills, sums and compares with the CPU: proof that the driver works for this process. */
static inline void check_compute(size_t bytes) {
    CUdeviceptr block;
    uint64_t count = bytes / 4;
    OK(cuMemAlloc_v2(&block, bytes));
    run_fill(block, count, 77);
    CHECK(run_reduce(block, count) == reduce_filled(77, count), "a sum of %zu bytes is wrong", bytes);
    OK(cuMemFree_v2(block));
}
#endif
#endif
