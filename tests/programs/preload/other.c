/* Another library that a program preloads: it interposes dlsym and the allocator's entry as profilers and
 * jemalloc do, and hands everything on. Both it and emuV must work, whichever comes first. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stddef.h>

static unsigned long looked_up, allocated;

void *dlsym(void *handle, const char *name) {
    static void *(*next)(void *, const char *);
    if (!next) next = (void *(*)(void *, const char *))dlvsym(RTLD_NEXT, "dlsym", "GLIBC_2.34");
    if (!next) next = (void *(*)(void *, const char *))dlvsym(RTLD_NEXT, "dlsym", "GLIBC_2.2.5");
    looked_up++;
    return next(handle, name);
}

extern void *__libc_malloc(size_t bytes);

void *malloc(size_t bytes) {
    allocated++;
    return __libc_malloc(bytes);
}
