/* What the programs of the CUDA runtime here do the same way: report a failed check, make words, read them back, take
 * memory first (CLIENT_HOLD_MIB of it, so that under a VRAM budget of that size the rest spills), print results. */
#pragma once
#include <cuda_runtime.h>

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <stdexcept>
#include <string>
#include <vector>

namespace {

constexpr size_t MIB = 1 << 20;
using Words = std::vector<unsigned>;

void check(cudaError_t result, const char *call) {
    if (result != cudaSuccess) throw std::runtime_error(std::string(call) + ": " + cudaGetErrorName(result));
}
void require(bool condition, const char *what) {
    if (!condition) throw std::runtime_error(what);
}
#define DO(call) check((call), #call)
#define REQUIRE(condition) require((condition), #condition)

uint64_t hash(const Words &words) {
    uint64_t state = 0xcbf29ce484222325u;
    for (unsigned word : words) state = (state ^ word) * 0x100000001b3u;
    return state;
}

__device__ unsigned mix(unsigned x) {
    x ^= x >> 16; x *= 0x7feb352d; x ^= x >> 15; x *= 0x846ca68b; x ^= x >> 16;
    return x;
}
__global__ void fill(unsigned *out, size_t count, unsigned seed) {
    for (size_t i = blockIdx.x * (size_t)blockDim.x + threadIdx.x; i < count; i += (size_t)gridDim.x * blockDim.x)
        out[i] = mix((unsigned)i + seed);
}
unsigned host_mix(unsigned x) {
    x ^= x >> 16; x *= 0x7feb352d; x ^= x >> 15; x *= 0x846ca68b; x ^= x >> 16;
    return x;
}

Words words_of(size_t count, unsigned seed) {
    Words words(count);
    for (size_t i = 0; i < count; i++) words[i] = host_mix((unsigned)i + seed);
    return words;
}

Words read(const unsigned *from, size_t count) {
    Words words(count);
    DO(cudaMemcpy(words.data(), from, count * 4, cudaMemcpyDeviceToHost));
    return words;
}

unsigned *held;

uint64_t hold(unsigned seed) {
    const char *mib = getenv("CLIENT_HOLD_MIB");
    size_t bytes = (size_t)(mib ? atol(mib) : 64) * MIB;
    DO(cudaMalloc(&held, bytes));
    fill<<<256, 256>>>(held, bytes / 4, seed);
    DO(cudaDeviceSynchronize());
    return 0;
}

/* The checks of one program, in order. */
class Suite {
public:
    Suite(int count, char **arguments) : seed(count > 2 ? (unsigned)strtoul(arguments[2], nullptr, 10) : 1) {}
    void run(const char *name, uint64_t (*body)(unsigned)) {
        try {
            printf("PASS %s %016llx\n", name, (unsigned long long)body(seed));
            passed++;
        } catch (const std::exception &error) {
            printf("FAIL %s %s\n", name, error.what());
            failed++;
        }
        fflush(stdout);
    }
    int total() const {
        printf("TOTAL %u passed %u failed %u skipped 0\n", passed + failed, passed, failed);
        return failed != 0;
    }

private:
    unsigned seed, passed = 0, failed = 0;
};
#define RUN(name) suite.run(#name, name)

} // namespace
