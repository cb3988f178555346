"""An HTTP server on loopback that serves a folder, and fails as it is told to."""

from __future__ import annotations

import gzip
import threading
import time
from collections import Counter
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class FlakyServer(ThreadingHTTPServer):
    """Serves `folder`, files only.

    Attributes:
        faults: name of a file → what happens to the next requests for it, one each: a status,
            "drop" (the connection), "truncate" (half of it, then the end of the connection),
            "stall" (half of it, then nothing until the test ends), "endless" (zeros without an
            end), "gzip" (compressed), or an address to be redirected to.
        always: the same for every request of a file.
        content: name of a file → bytes that are served in its place.
        served: how often each file was asked for.
        sent: bytes of endless answers.
        seconds: that each answer takes.
    """

    daemon_threads = True

    def __init__(self, folder):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.folder = folder
        self.faults, self.always, self.content = {}, {}, {}
        self.served = Counter()
        self.sent = 0
        self.seconds = 0.0
        self.lock = threading.Lock()
        self.ended = threading.Event()

    @property
    def address(self):
        return f"http://127.0.0.1:{self.server_port}"

    def handle_error(self, request, client_address):
        """Clients that left are no news."""


class _Handler(BaseHTTPRequestHandler):
    def do_GET(self):  # the name that http.server looks for
        name = self.path.rsplit("/", 1)[-1]
        with self.server.lock:
            self.server.served[name] += 1
            waiting = self.server.faults.get(name)
            fault = waiting.pop(0) if waiting else self.server.always.get(name)
        time.sleep(self.server.seconds)
        path = self.server.folder / self.path.lstrip("/")
        if fault == "drop":
            self.connection.close()
        elif isinstance(fault, int):
            self.send_error(fault)
        elif fault is not None and "://" in fault:
            self.send_response(302)
            self.send_header("Location", fault)
            self.end_headers()
        elif fault == "endless":
            self._send_endlessly()
        elif path.is_dir():
            self._send(self._listing(path).encode(), None)
        elif not path.is_file():
            self.send_error(404)
        else:
            self._send(self.server.content.get(name, path.read_bytes()), fault)

    def _listing(self, folder):
        links = "".join(f'<a href="{p.name}/">{p.name}</a>' for p in sorted(folder.iterdir()))
        return f"<html>{links}</html>"

    def _send(self, content, fault):
        self.send_response(200)
        self.send_header("Content-Type", "text/html" if b"<html>" in content[:6] else "tar")
        if fault == "gzip":
            content = gzip.compress(content)
            self.send_header("Content-Encoding", "gzip")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if fault in (None, "gzip"):
            self.wfile.write(content)
            return
        self.wfile.write(content[: len(content) // 2])
        self.wfile.flush()
        if fault == "stall":
            self.server.ended.wait(60)

    def _send_endlessly(self):
        self.send_response(200)
        self.end_headers()
        with suppress(ConnectionError):
            while not self.server.ended.is_set():
                self.server.sent += self.wfile.write(bytes(2**20))

    def log_message(self, *args):
        pass


@contextmanager
def serving(folder):
    server = FlakyServer(folder)
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.ended.set()
        server.shutdown()
        server.server_close()
