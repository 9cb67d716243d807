# Before the library goes: a preloaded library that is not there is complained of by every program.
/usr/bin/emuv install --uninstall >/dev/null || true
if [ -d /run/systemd/system ]; then
    systemctl disable --now emuv-serve.service emuv-vgpu.service emuv-cdi.path >/dev/null 2>&1 || true
fi
