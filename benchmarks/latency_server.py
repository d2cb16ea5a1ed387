"""Serve a folder on 127.0.0.1 with a fixed delay a request, as a distant object store answers.

    python benchmarks/latency_server.py FOLDER SECONDS

Prints its port, and serves until it is ended. A stored FILE.gz answers for FILE, with Content-Encoding: gzip.
"""

import sys
import time
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"  # connections are kept, as object stores keep them

    def do_GET(self) -> None:
        time.sleep(float(sys.argv[2]))
        plain = Path(sys.argv[1]) / self.path.lstrip("/")
        packed = plain.with_name(f"{plain.name}.gz")
        found = next((path for path in (plain, packed) if path.is_file()), None)
        body = found.read_bytes() if found else b""
        self.send_response(HTTPStatus.OK if found else HTTPStatus.NOT_FOUND)
        if found == packed:
            self.send_header("Content-Encoding", "gzip")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        pass


class Server(ThreadingHTTPServer):
    request_queue_size = 256


if __name__ == "__main__":
    server = Server(("127.0.0.1", 0), Handler)
    print(server.server_address[1], flush=True)
    server.serve_forever()
