"""A local server of files: plain paths, and the part of the hub's file API that downloads use."""

import hashlib
import re
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

#: The revision that the server reports for every repository.
COMMIT = "0123456789abcdef0123456789abcdef01234567"


class FileServer:
    """Serves ``files`` (path -> bytes). The next ``cuts`` answers end after that many bytes, as a lost connection does.

    ``asked`` lists the method, path and range of every request. ``ranges`` off ignores the header Range.
    """

    def __init__(self, port):
        self.address = f"http://127.0.0.1:{port}"
        self.files, self.cuts, self.asked, self.ranges = {}, [], [], True

    def bytes_sent(self, path):
        return sum(sent for _, asked, _, sent in self.asked if asked == path)


class Handler(BaseHTTPRequestHandler):
    def do_HEAD(self):
        self.answer(False)

    def do_GET(self):
        self.answer(True)

    def answer(self, body):
        served, path = self.server.files, self.path
        content = served.files.get(path)
        span = self.headers.get("Range")
        if content is None:
            served.asked.append((self.command, path, span, 0))
            self.send_response(404)
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        tag = hashlib.sha256(content).hexdigest()
        start = int(re.fullmatch(r"bytes=(\d+)-", span)[1]) if span and served.ranges else 0
        if start and self.headers.get("If-Range") not in (None, f'"{tag}"'):
            start = 0
        if start >= len(content) and start:
            self.send_response(416)
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        rest = content[start:]
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(rest)))
        self.send_header("ETag", f'"{tag}"')
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        if "/resolve/" in path:
            self.send_header("X-Repo-Commit", COMMIT)
            self.send_header("X-Linked-Etag", f'"{tag}"')
            self.send_header("X-Linked-Size", str(len(content)))
        self.end_headers()
        if not body:
            served.asked.append((self.command, path, span, 0))
            return
        sent = rest[: served.cuts.pop(0)] if served.cuts else rest
        served.asked.append((self.command, path, span, len(sent)))
        self.wfile.write(sent)
        self.close_connection = True

    def log_message(self, *_):
        pass


@contextmanager
def serving():
    """Context: a `FileServer` on a free port of this machine."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.files = FileServer(server.server_port)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield server.files
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
