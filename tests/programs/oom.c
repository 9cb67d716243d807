/* Takes memory until there is none, in blocks of falling size. The last answer is exactly
 * CUDA_ERROR_OUT_OF_MEMORY, everything obtained before stays intact, and freeing gives all of it back.
 * Arguments: [MiB of the largest block, default 32] [seed] [MiB at least to be had, default 0]
 *            [MiB at most to be had, default no limit] */
#include "program.h"

enum { MOST_BLOCKS = 1 << 16 };

struct block {
    CUdeviceptr at;
    uint64_t count;
    uint64_t sum;
};

static struct block blocks[MOST_BLOCKS];

static void check_ends(const struct block *block, uint32_t seed) {
    uint32_t words[1024];
    uint64_t part = block->count < 1024 ? block->count : 1024;
    OK(cuMemcpyDtoH_v2(words, block->at, part * 4));
    for (uint64_t i = 0; i < part; i++) CHECK(words[i] == mix_word((uint32_t)i + seed), "word %" PRIu64, i);
    uint64_t first = block->count - part;
    OK(cuMemcpyDtoH_v2(words, block->at + first * 4, part * 4));
    for (uint64_t i = 0; i < part; i++)
        CHECK(words[i] == mix_word((uint32_t)(first + i) + seed), "word %" PRIu64, first + i);
}

int main(int argc, char **argv) {
    size_t largest = argument(argc, argv, 1, 32) * MIB;
    uint64_t seed = seed_argument(argc, argv, 2);
    size_t at_least = argument(argc, argv, 3, 0) * MIB;
    size_t at_most = argument(argc, argv, 4, SIZE_MAX / MIB) * MIB;
    start_gpu();
    size_t before = settled_free_bytes();
    /* The scratch words of the sums are allocated now: later there is no room for them. */
    CUdeviceptr sum_at;
    OK(cuMemAlloc_v2(&sum_at, 8));

    size_t taken = 0;
    unsigned count = 0;
    for (size_t bytes = largest; bytes >= 2 * MIB; bytes /= 2) {
        CUresult result = CUDA_SUCCESS;
        while (count < MOST_BLOCKS) {
            struct block *block = &blocks[count];
            result = cuMemAlloc_v2(&block->at, bytes);
            if (result != CUDA_SUCCESS) break;
            block->count = bytes / 4;
            run_fill(block->at, block->count, (uint32_t)(seed + count));
            taken += bytes;
            count++;
        }
        CHECK(result == CUDA_ERROR_OUT_OF_MEMORY, "the refusal of %zu bytes is %d", bytes, result);
    }
    CHECK(taken >= at_least && taken <= at_most, "%zu bytes were to be had", taken);
    OK(cuCtxSynchronize());
    size_t left = free_bytes();
    CHECK(left <= before - taken + slack_bytes(), "%zu taken of %zu, yet %zu free", taken, before, left);

    /* A refusal disturbs nothing: each block, checked at both ends and summed. */
    for (unsigned i = 0; i < count; i++) {
        struct block *block = &blocks[i];
        check_ends(block, (uint32_t)(seed + i));
        OK(cuMemsetD32_v2(sum_at, 0, 2));
        void *parameters[] = {&sum_at, &block->at, &block->count};
        launch(gpu.reduce, block->count, NULL, parameters);
        OK(cuMemcpyDtoH_v2(&block->sum, sum_at, 8));
        if (i == 0 || i + 1 == count)
            CHECK(block->sum == reduce_filled((uint32_t)(seed + i), block->count), "the sum of block %u is wrong", i);
    }

    /* Half is freed, in random order; what is left keeps its sums; the half can be had again. */
    uint64_t random = seed;
    size_t freed = 0;
    for (unsigned i = 0; i < count; i++) {
        struct block *block = &blocks[i];
        if (next_random(&random) % 2 == 0) continue;
        OK(cuMemFree_v2(block->at));
        freed += block->count * 4;
        block->at = 0;
    }
    for (unsigned i = 0; i < count; i++) {
        struct block *block = &blocks[i];
        if (!block->at) {
            OK(cuMemAlloc_v2(&block->at, block->count * 4));
            run_fill(block->at, block->count, (uint32_t)(seed + i));
        }
    }
    for (unsigned i = 0; i < count; i++) {
        uint64_t sum = 0;
        OK(cuMemsetD32_v2(sum_at, 0, 2));
        void *parameters[] = {&sum_at, &blocks[i].at, &blocks[i].count};
        launch(gpu.reduce, blocks[i].count, NULL, parameters);
        OK(cuMemcpyDtoH_v2(&sum, sum_at, 8));
        CHECK(sum == blocks[i].sum, "block %u changed", i);
    }
    for (unsigned i = 0; i < count; i++) OK(cuMemFree_v2(blocks[i].at));
    OK(cuMemFree_v2(sum_at));
    check_free_is(before);
    printf("oom: ok, %zu MiB in %u blocks, %zu MiB freed and taken again\n", taken / MIB, count, freed / MIB);
    return 0;
}
