"""A layer served over HTTP from this process, for tests: it answers as it is told to, and remembers what was asked."""

import socket
import struct
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

PATIENCE_S = 60  # that a silent answer takes at the most


@dataclass(frozen=True)
class Answer:
    """Given instead of a file. body: None for the file's own. sent: the fraction of the body before the line is cut.

    headers: to send too. reset: the connection is reset instead. silent: nothing is said at all, until the server ends.
    delay: seconds before it.
    """

    status: int = 200
    body: bytes | None = None
    sent: float = 1.0
    headers: Mapping[str, str] = field(default_factory=dict)
    reset: bool = False
    silent: bool = False
    delay: float = 0


@dataclass
class Server:
    """url: the layer's cloud path. answers: by file, one a request, then what `otherwise` says, the file itself unless
    told, for a file's n-th request. asked: files, in order.
    """

    url: str
    answers: dict[str, Sequence[Answer]] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)
    otherwise: Callable[[str, int], Answer] = lambda file, nth: Answer()

    def times_asked(self, file: str) -> int:
        return self.asked.count(file)


@contextmanager
def served(folder: Path) -> Iterator[Server]:
    """Serve the files below `folder` on a free port of this machine alone, until the block ends."""
    given: dict[str, int] = defaultdict(int)
    ended = threading.Event()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            file = self.path.lstrip("/")
            server.asked.append(file)
            answers = server.answers.get(file, ())
            given[file] += 1
            nth = given[file]
            answer = answers[nth - 1] if nth <= len(answers) else server.otherwise(file, nth)
            time.sleep(answer.delay)
            if answer.silent:
                ended.wait(PATIENCE_S)
            elif answer.reset:
                self._reset()
            else:
                self._give(folder / file, answer)

        def _give(self, path: Path, answer: Answer) -> None:
            there = path.is_file()
            body = answer.body if answer.body is not None else path.read_bytes() if there else b""
            self.send_response(answer.status if there else 404)
            for name, value in {"Content-Length": str(len(body)), **answer.headers}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body[: int(len(body) * answer.sent)])

        def _reset(self) -> None:
            """Close the connection as if the machine had gone: with RST, not FIN."""
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.rfile.close()
            self.connection.close()

        def log_message(self, format: str, *args: object) -> None:
            pass

    class Http(ThreadingHTTPServer):
        request_queue_size = 128  # of connections not taken yet: beyond it the system would drop them

        def handle_error(self, *_: object) -> None:
            """A client that was killed has nothing to be told."""

    with Http(("127.0.0.1", 0), Handler) as http:
        server = Server(f"precomputed://http://127.0.0.1:{http.server_port}")
        thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield server
        finally:
            ended.set()
            http.shutdown()
            thread.join()
