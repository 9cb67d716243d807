if [ -d /run/systemd/system ]; then
    systemctl daemon-reload || true
fi
rm -f /var/run/cdi/emuv.dev-vgpu.json
rmdir /run/emuv /tmp/emuv-* 2>/dev/null || true
