rmdir /etc/emuv 2>/dev/null || true
if getent passwd emuv >/dev/null && command -v userdel >/dev/null; then
    userdel emuv >/dev/null 2>&1 || true
fi
if getent group emuv >/dev/null && command -v groupdel >/dev/null; then
    groupdel emuv >/dev/null 2>&1 || true
fi
