/* Way in: linked with -lcuda and a DT_RPATH that names the driver's own folder, which the dynamic loader
 * searches before LD_LIBRARY_PATH. PyTorch's libraries are built like this. */
#include "program.h"

int main(void) {
    start_gpu();
    check_compute(5 * MIB);
    printf("rpath: ok\n");
    return 0;
}
