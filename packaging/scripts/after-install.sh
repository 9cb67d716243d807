# A user of its own, for the server and the nodes of emuv.ko.
if command -v systemd-sysusers >/dev/null; then
    systemd-sysusers emuv.conf >/dev/null 2>&1 || true
fi
if ! getent passwd emuv >/dev/null && command -v useradd >/dev/null; then
    useradd --system --user-group --no-create-home --home-dir / --shell /usr/sbin/nologin emuv
fi
if [ -d /run/systemd/system ]; then
    systemctl daemon-reload || true
fi
if [ -S /run/udev/control ]; then
    udevadm control --reload || true
fi
