# Sourced by the scripts here: the driver that programs are built with and run plainly with.
# Needs EMUV (the binary), WORK (a folder of the script's own), and SIM where the GPU is simulated.

# The real library, past any that a preload puts in front.
find_driver() {
    local path
    if [ -n "${SIM:-}" ]; then
        for path in "$(dirname "$EMUV")/deps/libemuv_simgpu.so" "$(dirname "$EMUV")/libemuv_simgpu.so"; do
            [ -f "$path" ] && { echo "$path"; return; }
        done
        return
    fi
    path=$( { ldconfig -p || /sbin/ldconfig -p; } 2> /dev/null | awk '$1 == "libcuda.so.1" && /x86-64/ { print $NF; exit }')
    for path in "$path" /usr/local/nvidia/lib64/libcuda.so.1 /usr/local/nvidia/lib/libcuda.so.1 \
        /usr/lib/x86_64-linux-gnu/libcuda.so.1 /usr/lib64/libcuda.so.1 /usr/lib/libcuda.so.1; do
        [ -n "$path" ] && [ -f "$path" ] && { echo "$path"; return; }
    done
}

# A folder that holds the driver under its names, to link with and to run plain programs with: sets DRIVER.
prepare_driver() {
    local nvml
    DRIVER=$(find_driver)
    [ -n "$DRIVER" ] || { echo "$(basename "$0"): no libcuda.so.1 found" >&2; exit 1; }
    DRIVER=$(cd "$(dirname "$DRIVER")" && pwd)/$(basename "$DRIVER")
    mkdir -p "$WORK/driver"
    ln -sf "$DRIVER" "$WORK/driver/libcuda.so"
    ln -sf "$DRIVER" "$WORK/driver/libcuda.so.1"
    if [ -n "${SIM:-}" ]; then nvml=$DRIVER; else nvml=$(dirname "$DRIVER")/libnvidia-ml.so.1; fi
    [ -f "$nvml" ] && ln -sf "$nvml" "$WORK/driver/libnvidia-ml.so.1"
    return 0
}
