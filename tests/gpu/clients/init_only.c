/* The cheapest CUDA program: starts the driver and ends. */
extern int cuInit(unsigned flags);

int main(void) {
    return cuInit(0) != 0;
}
