/* Batched products of cuBLAS, which finds its matrices through arrays of pointers in device memory that no argument of
 * its kernels shows: built on the host and copied, built by one kernel, and built by many launches of a kernel that
 * stores one pointer each. Other memory is used in between, so that what is not known to be pointed to moves away.
 *
 *   cublas --seed N
 */
#include "checks.cuh"

#include <cublas_v2.h>

#include <cmath>

namespace {

constexpr int SIDE = 1024, BATCH = 6, ROUNDS = 20;
constexpr size_t COUNT = (size_t)SIDE * SIDE;

void blas(cublasStatus_t status, const char *call) {
    if (status != CUBLAS_STATUS_SUCCESS) throw std::runtime_error(std::string(call) + ": status " + std::to_string(status));
}
#define BLAS(call) blas((call), #call)

__global__ void fill_numbers(float *out, size_t count, unsigned seed) {
    for (size_t i = blockIdx.x * (size_t)blockDim.x + threadIdx.x; i < count; i += (size_t)gridDim.x * blockDim.x)
        out[i] = (int)(mix((unsigned)i + seed) % 2001) / 1000.0f - 1.0f;
}
__global__ void list_strided(float **table, float *base, size_t stride, int count) {
    int i = threadIdx.x;
    if (i < count) table[i] = base + i * stride;
}
__global__ void list_one(float **table, int at, float *pointer) { table[at] = pointer; }

float host_number(unsigned i, unsigned seed) { return (int)(host_mix(i + seed) % 2001) / 1000.0f - 1.0f; }

/* Memory that is used and given back between the products. */
void churn(unsigned seed) {
    unsigned *memory[3];
    for (auto &block : memory) {
        DO(cudaMalloc(&block, 24 * MIB));
        fill<<<64, 256>>>(block, 6 * MIB, seed);
    }
    REQUIRE(read(memory[1], 100) == words_of(100, seed));
    for (auto &block : memory) DO(cudaFree(block));
}

enum class Listed { OnTheHost, ByOneKernel, ByManyLaunches };

/* C[b] = A[b] * B[b] for a batch of squares, ROUNDS times with fresh B. */
uint64_t batched(unsigned seed, Listed how) {
    std::vector<float *> matrices[3];
    float **tables[3], *block[3] = {};
    for (int m = 0; m < 3; m++) {
        matrices[m].resize(BATCH);
        DO(cudaMalloc(&tables[m], BATCH * sizeof(float *)));
        if (how == Listed::ByOneKernel) DO(cudaMalloc(&block[m], BATCH * COUNT * 4));
        for (int b = 0; b < BATCH; b++) {
            if (block[m]) matrices[m][b] = block[m] + b * COUNT;
            else DO(cudaMalloc(&matrices[m][b], COUNT * 4));
        }
        switch (how) {
        case Listed::OnTheHost:
            DO(cudaMemcpy(tables[m], matrices[m].data(), BATCH * sizeof(float *), cudaMemcpyHostToDevice));
            break;
        case Listed::ByOneKernel: list_strided<<<1, BATCH>>>(tables[m], block[m], COUNT, BATCH); break;
        case Listed::ByManyLaunches:
            for (int b = 0; b < BATCH; b++) list_one<<<1, 1>>>(tables[m], b, matrices[m][b]);
            break;
        }
    }
    cublasHandle_t handle;
    BLAS(cublasCreate(&handle));
    BLAS(cublasSetMathMode(handle, CUBLAS_PEDANTIC_MATH));
    for (int b = 0; b < BATCH; b++) fill_numbers<<<64, 256>>>(matrices[0][b], COUNT, seed + b);
    Words seen;
    float one = 1.0f, zero = 0.0f;
    for (unsigned round = 0; round < ROUNDS; round++) {
        for (int b = 0; b < BATCH; b++) fill_numbers<<<64, 256>>>(matrices[1][b], COUNT, seed + 100 * round + b);
        churn(seed + round);
        BLAS(cublasSgemmBatched(handle, CUBLAS_OP_N, CUBLAS_OP_N, SIDE, SIDE, SIDE, &one, tables[0], SIDE, tables[1], SIDE,
                                &zero, tables[2], SIDE, BATCH));
        int b = round % BATCH;
        std::vector<float> column(SIDE);
        DO(cudaMemcpy(column.data(), matrices[2][b], SIDE * 4, cudaMemcpyDeviceToHost));
        /* The first element against the CPU, all of the first column by its bits. */
        double sum = 0;
        for (unsigned k = 0; k < SIDE; k++)
            sum += (double)host_number(k * SIDE, seed + b) * host_number(k, seed + 100 * round + b);
        REQUIRE(std::fabs(sum - column[0]) < 1e-2);
        for (float value : column) seen.push_back(*(unsigned *)&value);
    }
    BLAS(cublasDestroy(handle));
    for (int m = 0; m < 3; m++) {
        if (block[m]) DO(cudaFree(block[m]));
        else for (float *matrix : matrices[m]) DO(cudaFree(matrix));
        DO(cudaFree(tables[m]));
    }
    return hash(seen);
}

uint64_t listed_on_the_host(unsigned seed) { return batched(seed, Listed::OnTheHost); }
uint64_t listed_by_one_kernel(unsigned seed) { return batched(seed, Listed::ByOneKernel); }
uint64_t listed_by_many_launches(unsigned seed) { return batched(seed, Listed::ByManyLaunches); }

uint64_t held_is_intact(unsigned seed) {
    REQUIRE(read(held, 4 * MIB) == words_of(4 * MIB, seed));
    DO(cudaFree(held));
    return 0;
}

} // namespace

int main(int count, char **arguments) {
    Suite suite(count, arguments);
    RUN(hold);
    RUN(listed_on_the_host);
    RUN(listed_by_one_kernel);
    RUN(listed_by_many_launches);
    RUN(held_is_intact);
    return suite.total();
}
