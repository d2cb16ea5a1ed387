"""A layer served over HTTP from this process, for tests: it answers as it is told to, and remembers what was asked."""

import threading
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path


@dataclass(frozen=True)
class Answer:
    """Given instead of a file. body: None for the file's own. sent: the fraction of the body before the line is cut."""

    status: int = 200
    body: bytes | None = None
    sent: float = 1.0


@dataclass
class Server:
    """url: the layer's cloud path. answers: by file, one a request, then the file itself. asked: files, in order."""

    url: str
    answers: dict[str, Sequence[Answer]] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)

    def times_asked(self, file: str) -> int:
        return self.asked.count(file)


@contextmanager
def served(folder: Path) -> Iterator[Server]:
    """Serve the files below `folder` on a free port of this machine alone, until the block ends."""
    given: dict[str, int] = defaultdict(int)

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            file = self.path.lstrip("/")
            server.asked.append(file)
            answers = server.answers.get(file, ())
            given[file] += 1
            self._give(folder / file, answers[given[file] - 1] if given[file] <= len(answers) else Answer())

        def _give(self, path: Path, answer: Answer) -> None:
            there = path.is_file()
            body = answer.body if answer.body is not None else path.read_bytes() if there else b""
            self.send_response(answer.status if there else 404)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body[: int(len(body) * answer.sent)])

        def log_message(self, format: str, *args: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as http:
        server = Server(f"precomputed://http://127.0.0.1:{http.server_port}")
        thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield server
        finally:
            http.shutdown()
            thread.join()
