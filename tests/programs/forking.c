/* A process that uses the GPU forks. The driver does not work in the child (every call is an error, none
 * hangs or crashes), the child may leave by _exit or by exit, and may become another program that uses
 * the GPU; the parent notices nothing.
 * Arguments: [MiB that the parent holds, default 48] */
#include "program.h"

#include <sys/wait.h>
#include <unistd.h>

enum child_way { LEAVE_BY__EXIT, LEAVE_BY_EXIT, EXEC_SELF };

static int child(enum child_way way, const char *self, CUdeviceptr parents_block) {
    if (way == EXEC_SELF) {
        execl(self, self, "after-exec", (char *)NULL);
        return 9;
    }
    CUdeviceptr block = 0;
    uint32_t word = 0;
    int errors = (cuMemAlloc_v2(&block, 4 * MIB) != CUDA_SUCCESS) + (cuMemcpyDtoH_v2(&word, parents_block, 4) != CUDA_SUCCESS);
    /* What the parent owns must stay the parent's: this free may fail, not take effect. */
    (void)cuMemFree_v2(parents_block);
    int code = errors == 2 ? 0 : 8;
    if (way == LEAVE_BY__EXIT) _exit(code);
    exit(code);
}

int main(int argc, char **argv) {
    size_t held = argument(argc, argv, 1, 48) * MIB;
    if (argc > 1 && !strcmp(argv[1], "after-exec")) {
        start_gpu();
        check_compute(2 * MIB);
        return 0;
    }
    start_gpu();
    size_t before = settled_free_bytes();
    CUdeviceptr block;
    uint64_t count = held / 4;
    OK(cuMemAlloc_v2(&block, count * 4));
    run_fill(block, count, 5);
    OK(cuCtxSynchronize());

    static const enum child_way ways[] = {LEAVE_BY__EXIT, LEAVE_BY_EXIT, EXEC_SELF};
    for (size_t i = 0; i < sizeof ways / sizeof *ways; i++) {
        fflush(stdout);
        pid_t pid = fork();
        CHECK(pid >= 0, "fork failed");
        if (pid == 0) exit(child(ways[i], argv[0], block));
        int status;
        CHECK(waitpid(pid, &status, 0) == pid, "waitpid failed");
        CHECK(WIFEXITED(status) && WEXITSTATUS(status) == 0, "child %zu ended with status 0x%x", i, status);
        /* The parent's memory and the parent's driver are as they were. */
        CHECK(run_reduce(block, count) == reduce_filled(5, count), "the parent's data changed after child %zu", i);
        run_mix(block, 4096, (uint32_t)i);
        run_fill(block, 4096, 5);
    }
    OK(cuMemFree_v2(block));
    check_free_is(before);
    printf("forking: ok\n");
    return 0;
}
