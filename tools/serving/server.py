"""`bitnet serve` as a process under test."""

import os
import re
import signal
import subprocess
import tempfile
import time
import urllib.error
import urllib.request
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def program():
    """The program to test: what was built last of the release and the development build."""
    built = [p for p in (ROOT / "target/release/bitnet", ROOT / "target/debug/bitnet") if p.exists()]
    if not built:
        raise SystemExit("error: there is no target/release/bitnet and no target/debug/bitnet: build one with cargo build -p bitnet-cli")
    return str(max(built, key=lambda p: p.stat().st_mtime))


class Server:
    """A server on a free port of this machine, with the demo model unless flags name another; what it says goes to `log`."""

    def __init__(self, binary, *flags, port=0):
        environment = {k: v for k, v in os.environ.items() if not k.startswith("BITNET_")}
        self.log = tempfile.NamedTemporaryFile("r", suffix=".log", prefix="bitnet-serve-")
        with open(self.log.name, "w") as out:
            self.process = subprocess.Popen([binary, "serve", "--port", str(port), *flags], stdout=out, stderr=out, env=environment)
        self.url = self._wait(lambda: (m := re.search(r"http://[\w.]+:\d+", self.said())) and m[0], "address")
        self._wait(self.is_ready, "readiness")

    def _wait(self, get, what, seconds=90):
        end = time.monotonic() + seconds
        while not (value := get()):
            if self.process.poll() is not None or time.monotonic() > end:
                raise AssertionError(f"no {what} of the server: {self.said()[-2000:]}")
            time.sleep(0.05)
        return value

    def said(self):
        return Path(self.log.name).read_text()

    def is_ready(self):
        try:
            return urllib.request.urlopen(self.url + "/readyz", timeout=5).status == 200
        except (OSError, urllib.error.URLError):
            return False

    def gauge(self, name):
        """The sum of a metric over its labels."""
        text = urllib.request.urlopen(self.url + "/metrics", timeout=5).read().decode()
        return sum(float(line.split()[-1]) for line in text.splitlines() if line.startswith((name + "{", name + " ")))

    def memory(self):
        """Bytes of memory that the process has."""
        return int(re.search(r"VmRSS:\s+(\d+) kB", Path(f"/proc/{self.process.pid}/status").read_text())[1]) * 1024

    def send(self, number):
        self.process.send_signal(number)

    def stop(self, seconds=60):
        """Asks it to end; its exit status."""
        if self.process.poll() is None:
            self.send(signal.SIGTERM)
        try:
            return self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            self.process.kill()
            raise AssertionError(f"the server did not end within {seconds} s of SIGTERM") from None

    def __enter__(self):
        return self

    def __exit__(self, kind, *_):
        if kind is not None:
            self.process.kill()
            self.process.wait()
        else:
            status = self.stop()
            assert status in (0, -signal.SIGKILL), f"the server ended with {status}: {self.said()[-2000:]}"
