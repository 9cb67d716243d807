/* A process that uses the GPU starts itself anew, by exec and by posix_spawn: the new process gets the
 * same driver library and sees the same amount of memory. */
#include "program.h"

#include <spawn.h>
#include <sys/wait.h>
#include <unistd.h>

extern char **environ;

static size_t total_bytes(void) {
    size_t available, total;
    OK(cuMemGetInfo_v2(&available, &total));
    return total;
}

static void check_child(pid_t pid, const char *how) {
    int status;
    CHECK(waitpid(pid, &status, 0) == pid, "waitpid failed");
    CHECK(WIFEXITED(status) && WEXITSTATUS(status) == 0, "the child by %s ended with status 0x%x", how, status);
}

int main(int argc, char **argv) {
    start_gpu();
    check_compute(4 * MIB);
    const char *role = argc > 1 ? argv[1] : "parent";
    if (strcmp(role, "parent") != 0) {
        size_t expected = argument(argc, argv, 2, 0);
        CHECK(total_bytes() == expected, "the parent saw %zu bytes, this process %zu", expected, total_bytes());
    }
    if (!strcmp(role, "child")) return 0;

    char total[32];
    snprintf(total, sizeof total, "%zu", total_bytes());
    if (!strcmp(role, "becomes")) {
        execl(argv[0], argv[0], "child", total, (char *)NULL);
        CHECK(0, "exec failed");
    }

    fflush(stdout);
    pid_t pid;
    char *spawned[] = {argv[0], "child", total, NULL};
    CHECK(posix_spawn(&pid, argv[0], NULL, NULL, spawned, environ) == 0, "posix_spawn failed");
    check_child(pid, "posix_spawn");
    /* This one starts the GPU first and execs then. */
    char *becoming[] = {argv[0], "becomes", total, NULL};
    CHECK(posix_spawn(&pid, argv[0], NULL, NULL, becoming, environ) == 0, "posix_spawn failed");
    check_child(pid, "exec");
    check_compute(4 * MIB);
    printf("exec_child: ok, total %s\n", total);
    return 0;
}
