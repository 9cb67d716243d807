"""What the dashboard must do, seen in a browser. Waits for what is to come, never for a time."""

import json
import os
import pathlib
import re
import subprocess
import sys
import tempfile
import urllib.error
import urllib.request

from browser import Browser

ROOT = pathlib.Path(__file__).resolve().parents[2]
BUILT = ROOT / "target" / "debug"
HOSTILE = "<img src=x onerror=document.title=1>"
LIVE = "document.getElementById('link').dataset.state === 'live'"


class Place:
    """A state directory of its own, a server, and programs that do what they are told."""

    def __init__(self, folder):
        self.folder, self.started = pathlib.Path(folder), []
        self.environment = {name: value for name, value in os.environ.items()
                            if not name.startswith(("EMUV_", "CUDA_", "LD_"))}
        (self.folder / "emuv.toml").write_text("")
        self.environment |= {"EMUV_STATE_DIR": str(self.folder / "state"), "EMUV_CONFIG": str(self.folder / "emuv.toml"),
                             "EMUV_RAM_FLOOR": "16M", "EMUV_TEST_PTX": str(ROOT / "crates/emuv/kernels/emuv.ptx")}
        (self.folder / "driver").mkdir()
        simulated = next(path for path in [BUILT / "deps/libemuv_simgpu.so", BUILT / "libemuv_simgpu.so"] if path.exists())
        (self.folder / "driver/libcuda.so").symlink_to(simulated)
        self.program = self.folder / "obedient"
        subprocess.run(["cc", "-std=gnu11", "-O1", "-o", self.program, ROOT / "tests/programs/on_command.c",
                        "-L", self.folder / "driver", "-lcuda", "-ldl", "-lpthread"], check=True)
        self.token = self.folder / "token"
        self.token.write_text("0123456789abcdef0123456789abcdef\n")
        self.token.chmod(0o600)

    def emuv(self, *arguments):
        return subprocess.run([BUILT / "emuv", *arguments], env=self.environment, check=True, capture_output=True, text=True)

    def start(self, *arguments):
        process = subprocess.Popen([BUILT / "emuv", *arguments], env=self.environment, text=True, bufsize=1,
                                   stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        self.started.append(process)
        return process

    def serve(self, address="127.0.0.1:0"):
        server = self.start("serve", "--listen", address, "--admin", "--token-file", str(self.token))
        line = server.stdout.readline()
        return server, re.search(r"http://(\S+)/", line).group(1)

    def change(self, address, path, body):
        """Asks for a change with the token; gives the status and what is wrong."""
        headers = {"Authorization": f"Bearer {self.token.read_text().strip()}", "Content-Type": "application/json"}
        request = urllib.request.Request(f"http://{address}/api/v1/slices/{path}", body.encode(), headers, method="POST")
        try:
            return urllib.request.urlopen(request).status, ""
        except urllib.error.HTTPError as refused:
            return refused.code, json.load(refused)["error"]

    def run(self, program, *flags):
        """Starts a program; gives what tells it something and waits for its answer."""
        process = self.start("run", "-q", *flags, "--", str(program))
        assert process.stdout.readline().startswith("ready")

        def tell(order):
            process.stdin.write(order + "\n")
            process.stdin.flush()
            return process.stdout.readline().strip()

        return tell

    def end(self):
        for process in self.started:
            process.stdin.close()
            process.terminate()
            process.wait()


def row(table, name, label):
    """The text of a cell, by the name of its row and the label of its column."""
    return (f"[...document.querySelectorAll('#{table} tbody tr')].filter(r => r.cells[0].firstChild.textContent === "
            f"'{name}' || r.cells[0].textContent === '{name}').map(r => r.querySelector('[data-label=\"{label}\"]').innerText)[0]")


def check(place, browser, shots):
    place.emuv("vgpu", "create", "ml-1", "--vram", "64M", "--ram", "128M", "--sim=vram=256M")
    place.emuv("vgpu", "create", "ml-2", "--vram", "32M", "--ram", "0", "--sim=vram=256M")
    server, address = place.serve()
    browser.look(1280, 900)
    browser.open(f"http://{address}/")
    browser.until("it loads", f"document.getElementById('link') && {LIVE}")
    browser.until("slices are listed", "document.querySelectorAll('#slices tbody tr').length === 2")

    # A program that starts to spill.
    tell = place.run(place.program, "--vgpu", "ml-1")
    assert tell("alloc 40") == "ok 0"
    browser.until("the program is shown", f"/^40 of|^4\\d.* of 64/.test({row('processes', 'obedient', 'VRAM')})")
    assert browser.value(row("processes", "obedient", "RAM")).startswith("0 of")
    assert tell("alloc 60") == "ok 1"
    browser.until("it spills", f"parseFloat({row('processes', 'obedient', 'RAM')}) >= 32")
    browser.until("the slice shows it too", f"parseFloat({row('slices', 'ml-1', 'RAM')}) >= 32")
    browser.until("so does the GPU", "/RAM [1-9]/.test(document.querySelector('.chart figcaption').innerText)")
    browser.until("a line is drawn", "document.querySelector('.line-ram').getAttribute('d').includes('L')")

    # A name that would be markup.
    hostile = place.folder / HOSTILE.replace("/", "")
    hostile.write_bytes(place.program.read_bytes())
    hostile.chmod(0o755)
    place.run(hostile, "--sim=vram=256M")
    browser.until("its name is text", "document.getElementById('processes').innerText.includes('<img src=x')")
    assert browser.value("document.querySelectorAll('img').length") == 0
    assert browser.value("document.title") == "emuV"

    # By keyboard and for screen readers.
    browser.value("document.body.focus()")
    browser.press("Tab")
    assert browser.value("document.activeElement.className") == "skip"
    browser.value("document.querySelector('#processes thead button').focus()")
    browser.press("Enter")
    assert browser.value("document.querySelector('#processes thead th').getAttribute('aria-sort')") == "ascending"
    unnamed = "[...document.querySelectorAll('button, input, svg[role=img]')].filter(e => !(e.textContent.trim() || e.ariaLabel || e.labels?.length)).length"
    assert browser.value(unnamed) == 0

    # Changes: not without the token, then by it.
    assert browser.value("document.querySelectorAll('.actions').length") == 0
    browser.value("document.getElementById('unlock').focus()")
    browser.press("Enter")
    browser.until("it asks for the token", "document.activeElement.id === 'token'")
    browser.type("wrong-wrong-wrong-wrong")
    browser.press("Enter")
    browser.until("a wrong one is said", "document.getElementById('token-error').textContent.includes('not the token')")
    browser.value("document.getElementById('token').value = ''")
    browser.value("document.getElementById('token').focus()")
    browser.type(place.token.read_text().strip())
    browser.press("Enter")
    browser.until("it is unlocked", "document.querySelectorAll('.actions').length === 2")
    browser.value("document.querySelector('[aria-label=\"Resize ml-2\"]').click()")
    browser.until("it asks for shares", "document.getElementById('resize-dialog').open")
    if shots:
        browser.screenshot(shots / "resize.png", whole=False)
    browser.value("document.getElementById('resize-vram').value = '9999999999999T'")
    browser.value("document.getElementById('resize-form').requestSubmit()")
    browser.until("an absurd size is refused", "document.getElementById('resize-error').textContent.includes('vram')")
    browser.value("document.getElementById('resize-vram').value = '48M'")
    browser.value("document.getElementById('resize-form').requestSubmit()")
    browser.until("a share has changed", f"/of 48/.test({row('slices', 'ml-2', 'VRAM')})")
    assert "49152" not in place.emuv("vgpu", "show", "ml-2").stdout and "48 MiB" in place.emuv("vgpu", "show", "ml-2").stdout
    browser.value("document.querySelector('[aria-label=\"Disable ml-2\"]').click()")
    browser.value("document.getElementById('disable-form').requestSubmit()")
    browser.until("it is disabled", f"{row('slices', 'ml-2', 'State')} === 'disabled'")
    assert "disabled" in place.emuv("vgpu", "show", "ml-2").stdout
    # The browser itself notes that a token was refused.
    refused = [("network", text) for source, text in browser.complaints() if "401" in text or "400" in text]
    assert browser.complaints() == refused and len(refused) == 2, browser.complaints()

    # What no definition may say is refused, and nothing is lost.
    before = (place.folder / "state/vgpu/ml-2/slice").read_bytes()
    for body in ['{"weight": 0}', '{"weight": 10001}', '{"cap_percent": 0}', '{"cap_percent": 101}', '{"vram": 0}', "{}",
                 '{"vram": "257M"}', '{"ram": "900T"}', '{"vram": "18446744073709551615"}', '{"vram": "-1"}']:
        status, words = place.change(address, "ml-2/resize", body)
        assert status in (400, 409) and words, (body, status, words)
    assert place.change(address, "ml-3/enable", "")[0] == 404
    assert place.change(address, "..%2fml-2/enable", "")[0] == 400
    assert (place.folder / "state/vgpu/ml-2/slice").read_bytes() == before

    # A file that is damaged.
    damaged = place.folder / "state/vgpu/ml-2/slice"
    sound = damaged.read_bytes()
    damaged.write_bytes(b"rubbish")
    browser.until("it is said what cannot be read", "document.getElementById('problem-list').textContent.includes('ml-2/slice')")
    browser.until("the rest is shown", "document.querySelectorAll('#slices tbody tr').length === 1")
    damaged.write_bytes(sound)
    browser.until("it is sound again", "document.getElementById('problems').hidden")

    if shots:
        sizes = {"desktop": (1280, 900, False), "phone": (390, 844, True)}
        for name, (width, height, mobile) in sizes.items():
            for scheme in ["light", "dark"]:
                browser.look(width, height, scheme, mobile)
                tall = int(browser.call("Page.getLayoutMetrics")["cssContentSize"]["height"])
                browser.look(width, tall, scheme, mobile)
                browser.until("it is drawn", LIVE)
                browser.screenshot(shots / f"{name}-{scheme}.png", whole=False)
    for width in [1280, 820, 390, 320]:
        browser.look(width, 844)
        assert browser.value("document.documentElement.scrollWidth <= innerWidth"), f"wider than {width}"
    browser.look(1280, 900)

    # The server goes away, and comes back.
    server.terminate()
    assert server.wait() == 0
    browser.until("it says that there is no answer", "!document.getElementById('alert').hidden && document.getElementById('alert').textContent.includes('does not answer')")
    assert browser.value("document.body.classList.contains('stale')")
    if shots:
        browser.screenshot(shots / "gone.png", whole=False)
    place.serve(address)
    browser.until("it goes on by itself", f"document.getElementById('alert').hidden && {LIVE}")
    assert not browser.value("document.body.classList.contains('stale')")
    assert not [text for source, text in browser.complaints() if source != "network"], browser.complaints()
    foreign = {url for url in browser.requests() if not url.startswith((f"http://{address}/", "about:", "data:"))}
    assert not foreign, foreign


def main():
    shots = pathlib.Path(sys.argv[1]) if len(sys.argv) > 1 else None
    if shots:
        shots.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="emuv-dashboard-") as folder:
        place, browser = Place(folder), Browser()
        try:
            check(place, browser, shots)
        finally:
            browser.close()
            place.end()
    print("tests/dashboard: the page does what it should")


main()
