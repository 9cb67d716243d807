/* Way in: linked with -lcuda. */
#include "program.h"

int main(void) {
    start_gpu();
    check_compute(3 * MIB + 4096);
    printf("linked: ok\n");
    return 0;
}
