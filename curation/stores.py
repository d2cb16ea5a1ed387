"""What a store's answers mean: "not found", refused, damaged, or worth another attempt; and making that attempt.

CloudFiles takes HTTP 403 and empty answers for missing objects, and CloudVolume takes those for black; here only a
true "not found" is one. CloudFiles also retries inside, for minutes and whatever the fault: here it asks once, and who
calls decides. `install` puts these meanings in CloudFiles' place, for this process. (cloudfiles/interfaces.py 6.4,
`HttpInterface.get_file` and its neighbours; tests/test_stores.py holds the patched places against the pinned version.)

Nothing that is stored is empty, and every compressed stream ends where its object ends. An object that a crash has
torn (zeros at its end, or a part of it) may break either rule and still decompress: CloudFiles' gzip takes the size of
what comes out from the last 4 bytes, and gives nothing where they are 0.
"""

import bz2
import lzma
import os
import random
import sys
import threading
import time
from collections.abc import Callable
from email.utils import parsedate_to_datetime
from functools import partial
from typing import Any, TypeVar

# Where there are no credentials, google.auth looks for Google's own machines, for nine seconds and more by itself; it
# reads this as it is imported (google/auth/compute_engine/_metadata.py 2.x).
os.environ.setdefault("GCE_METADATA_TIMEOUT", "1")
os.environ.setdefault("GCE_METADATA_DETECT_RETRIES", "1")
# CloudFiles raises KeyError for keys of Amazon in the environment that have no token: those that do not run out.
if "AWS_ACCESS_KEY_ID" in os.environ:
    os.environ.setdefault("AWS_SESSION_TOKEN", "")

import brotli
import cloudfiles.cloudfiles
import cloudfiles.compression
import cloudfiles.connectionpools
import cloudfiles.interfaces
import cloudfiles.secrets
import cloudvolume.compression
import cloudvolume.secrets
import numpy as np
import requests
import zstandard
from cloudvolume.datasource.precomputed.image import rx
from cloudvolume.datasource.precomputed.sharding import ShardReader
from cloudvolume.exceptions import EmptyVolumeException
from isal import isal_zlib

CONNECTIONS = 32  # kept open to a server
TIMEOUT_S = (10, 60)  # to connect, and between two bytes of an answer

Answer = TypeVar("Answer")


class DamagedError(OSError):
    """An answer that cannot be what was stored."""


class StrictHttpInterface(cloudfiles.interfaces.HttpInterface):  # type: ignore[misc]
    """HTTP where only 404 and 410 mean "not found", and a silent server is not waited for forever."""

    adaptor = requests.adapters.HTTPAdapter(pool_maxsize=CONNECTIONS)

    def get_file(self, file_path: str, start: Any = None, end: Any = None, part_size: Any = None) -> tuple[Any, ...]:
        headers = self.default_headers()
        if start is not None or end is not None:
            headers["Range"] = f"bytes={int(start or 0)}-{int(end - 1) if end is not None else ''}"
        url = self.get_path_to_file(file_path)
        with self.session.get(url, headers=headers, stream=True, timeout=TIMEOUT_S) as response:
            if response.status_code in (404, 410):
                return None, None, None, None
            response.raise_for_status()
            response.raw.decode_content = False
            content = response.raw.read()
            return _whole(content, url, start, end), response.headers.get("Content-Encoding"), None, None


def _strict_http(interface: Any) -> Any:
    """The interface, of a protocol that builds on HTTP (CAVE's adds a token), with `StrictHttpInterface`'s meanings."""
    return type(f"Strict{interface.__name__}", (StrictHttpInterface, interface), {})


def _strict(interface: Any) -> Any:
    """The interface with each file read once (retries are made here, not in it) and never empty."""
    read_once = getattr(interface.get_file, "__wrapped__", interface.get_file)

    def get_file(
        self: Any, file_path: str, start: Any = None, end: Any = None, *args: Any, **kwargs: Any
    ) -> tuple[Any, ...]:
        content, *rest = read_once(self, file_path, start, end, *args, **kwargs)
        return _whole(content, file_path, start, end), *rest

    return type(f"Strict{interface.__name__}", (interface,), {"get_file": get_file})


def _whole(content: Any, name: str, start: int | None, end: int | None) -> Any:
    """What was read of an object, unless it is empty, or not the range of bytes that was asked for."""
    if content is None:
        return None
    if len(content) == 0:
        raise DamagedError(f"{name} came back empty")
    if start is not None and end is not None and len(content) != end - start:
        raise DamagedError(f"{name}: {len(content)} bytes came back for bytes {start} to {end}")
    return content


# What is compressed


def decompress(content: Any, encoding: str | None, filename: str = "it") -> Any:
    """As `cloudfiles.compression.decompress`, of the whole content, and never to nothing; else `DamagedError`."""
    if content is None:
        return None
    decoded = _decoded(content, encoding.lower(), filename) if encoding else content
    if len(decoded) == 0:
        raise DamagedError(f"{filename} holds nothing")
    return decoded


def _decoded(content: bytes, encoding: str, filename: str) -> bytes:
    if encoding not in _DECODERS:
        raise ValueError(f"{filename} is compressed as {encoding!r}: want one of {', '.join(_DECODERS)}")
    try:
        return _DECODERS[encoding](content)
    except Exception as error:  # each library has its own
        raise DamagedError(f"{filename} is no whole {encoding}: {error}") from error


def _of_streams(begin: Callable[[], Any], content: bytes) -> bytes:
    """What the streams hold that the content is made of. `begin` makes a decoder of one."""
    decoded = []
    while content:
        stream = begin()
        decoded.append(stream.decompress(content))
        if not stream.eof:
            raise ValueError("it ends too soon")
        content = stream.unused_data
    return b"".join(decoded)


_GZIP = partial(_of_streams, partial(isal_zlib.decompressobj, wbits=16 + 15))  # RFC 1952
_BZ2 = partial(_of_streams, bz2.BZ2Decompressor)
_XZ = partial(_of_streams, lzma.LZMADecompressor)
_ZSTD = partial(_of_streams, lambda: zstandard.ZstdDecompressor().decompressobj())  # RFC 8878
_DECODERS: dict[str, Callable[[bytes], bytes]] = {
    "br": brotli.decompress,
    "bz2": _BZ2,
    "bzip2": _BZ2,
    "gzip": _GZIP,
    "lzma": _XZ,
    "xz": _XZ,
    "zstd": _ZSTD,
}


# Shards: many chunks in one object, with indices that say where each is. One that an index lacks is not there, so an
# index must not be torn.
# https://github.com/google/neuroglancer/blob/master/src/datasource/precomputed/sharded.md


_read_index, _read_minishard_index = ShardReader.decode_index, ShardReader.decode_minishard_index


def _decode_index(reader: ShardReader, binary: bytes | None, filename: str = "Shard") -> Any:
    """(M, 2): where each minishard's index begins and ends; never all empty, as no shard is without chunks."""
    index = _read_index(reader, binary, filename)
    if (index[:, 0] == index[:, 1]).all():
        raise DamagedError(f"{filename}: an index of nothing")
    return index


def _decode_minishard_index(reader: ShardReader, binary: bytes, filename: str = "") -> Any:
    """(N, 3): each chunk's number, where it begins, and its length; each chunk once, and none empty."""
    index = _read_minishard_index(reader, binary, filename)
    if not len(index) or not index[:, 2].all() or len(np.unique(index[:, 0])) < len(index):
        raise DamagedError(f"{filename}: an index that names chunks twice, or empty ones")
    return index


def install() -> None:
    """Make every CloudFiles of this process answer so; more than once is the same as once."""
    table = cloudfiles.cloudfiles.INTERFACES
    for protocol, interface in table.items():
        if interface.__name__.startswith("Strict"):
            continue
        is_http = issubclass(interface, cloudfiles.interfaces.HttpInterface)
        table[protocol] = _strict_http(interface) if is_http else _strict(interface)
    # CloudVolume has the name from CloudFiles, and calls it by its own.
    cloudfiles.compression.decompress = cloudvolume.compression.decompress = decompress
    # CloudFiles asks for credentials seven times, for a minute and more: they do not come by being asked for.
    for pool in (cloudfiles.connectionpools.GCloudBucketPool, cloudfiles.connectionpools.S3ConnectionPool):
        pool._create_connection = getattr(pool._create_connection, "__wrapped__", pool._create_connection)
    ShardReader.decode_index = _decode_index
    ShardReader.decode_minishard_index = _decode_minishard_index
    # CloudVolume prints each failure to decode to stdout, where results go; the failure itself is raised as well.
    rx.print = lambda *words: None
    # What they say of credentials is for people too, but no result.
    cloudfiles.secrets.print = cloudvolume.secrets.print = partial(print, file=sys.stderr)


def is_denied(error: BaseException) -> bool:
    """Whether a store, or the file system, refused access: 401 or 403 in any of the clients' spellings."""
    return isinstance(error, PermissionError) or _status(error) in (401, 403)


def lacks_credentials(error: BaseException) -> bool:
    """Whether a client of Google's or Amazon's stores found no credentials to ask with."""
    return type(error).__name__ in ("DefaultCredentialsError", "NoCredentialsError")


def is_from_store(error: BaseException) -> bool:
    """Whether an error comes from asking a store, not from what it answered."""
    clients = {"requests", "urllib3", "google", "botocore", "boto3"}
    return isinstance(error, OSError) or type(error).__module__.partition(".")[0] in clients


def is_outage(error: BaseException) -> bool:
    """Whether a store is away or asks for time: it gave no answer, or half of one, or one that says so."""
    status = _status(error)
    if status is not None:
        return status >= 500 or status in (408, 425, 429)  # RFC 9110 and 8470; RFC 6585
    kinds = {kind.__name__ for kind in type(error).__mro__}
    return bool(kinds & _AWAY) and "SSLError" not in kinds  # of a certificate that is not trusted


# In builtins, requests, urllib3, botocore and google.auth.
_AWAY = {"ConnectionError", "TimeoutError", "Timeout", "ChunkedEncodingError", "ProtocolError"}
_AWAY |= {"HTTPClientError", "IncompleteRead", "IncompleteReadError", "TransportError"}


def _status(error: BaseException) -> int | None:
    """The HTTP status that a store answered."""
    response = getattr(error, "response", None)
    if isinstance(response, dict):  # botocore
        status = response.get("ResponseMetadata", {}).get("HTTPStatusCode")
    else:  # requests; google.api_core
        status = getattr(response, "status_code", None) or getattr(error, "code", None)
    return int(status) if isinstance(status, int) else None


def reason(error: BaseException) -> str:
    """Why a store did not give what it was asked for, for messages."""
    if lacks_credentials(error):
        return (
            "no credentials were found: want those of Google in ~/.cloudvolume/secrets/google-secret.json or as "
            "GOOGLE_APPLICATION_CREDENTIALS, those of Amazon in ~/.cloudvolume/secrets/aws-secret.json"
        )
    return "access was denied" if is_denied(error) else f"{type(error).__name__}: {error}"


# Asking again

CHECK_FOR_S = 30.0  # that an outage is waited out before the work begins, when a person may be looking on
ATTEMPTS = 6  # for what is no outage, but may pass
_SHORTEST_S, _LONGEST_S = 0.5, 30.0  # that the first wait takes at the most, and that any takes


class Patience:
    """Asks a store until it gives what it was asked for, with waits between that grow and are random.

    An outage is waited out, each question's for `retry_for` seconds, and as long as the store says (`Retry-After`).
    Other errors are given `attempts` in all, and a refusal and a true "not found" one. on_retry: called before each
    wait. on_wait: told since when the store is waited for, in seconds since the epoch, whenever that changes; None:
    it is not. Both may be called from several threads.
    """

    def __init__(
        self,
        retry_for: float = CHECK_FOR_S,
        attempts: int = ATTEMPTS,
        sleep: Callable[[float], object] | None = None,
        clock: Callable[[], float] = time.monotonic,
        on_retry: Callable[[], None] = lambda: None,
        on_wait: Callable[[float | None], None] = lambda since: None,
    ) -> None:
        self._retry_for = retry_for
        self._attempts = attempts
        self._ended = threading.Event()
        self._sleep = sleep or self._ended.wait
        self._clock = clock
        self._on_retry = on_retry
        self._on_wait = on_wait
        self._waiting: list[float] = []  # since when, of each question that an outage meets, the first first
        self._lock = threading.Lock()

    def ask(self, question: Callable[[], Answer]) -> Answer:
        """What a question gives; its last error if that is not to be."""
        outage_ends = since = None
        failures = others = 0
        try:
            while True:
                try:
                    return question()
                except Exception as error:
                    wait = random.uniform(0, min(_SHORTEST_S * 2.0 ** min(failures, 16), _LONGEST_S))
                    failures += 1
                    if is_outage(error):
                        now = self._clock()
                        outage_ends = outage_ends or now + self._retry_for
                        if now >= outage_ends:
                            raise
                        since = since or self._begin_waiting()
                        wait = min(max(wait, retry_after(error)), outage_ends - now)
                    else:
                        others += 1
                        if others >= self._attempts or not _may_pass(error):
                            raise
                self._on_retry()
                self._sleep(wait)
                if self._ended.is_set():
                    raise InterruptedError("the work has ended")
        finally:
            if since is not None:
                self._end_waiting(since)

    def end(self) -> None:
        """Wait no more: who waits for an answer is given an error instead."""
        self._ended.set()

    def _begin_waiting(self) -> float:
        with self._lock:
            since = time.time()
            self._waiting.append(since)
            if len(self._waiting) == 1:
                self._on_wait(since)
        return since

    def _end_waiting(self, since: float) -> None:
        with self._lock:
            was_first = self._waiting[0] == since
            self._waiting.remove(since)
            if was_first:
                self._on_wait(self._waiting[0] if self._waiting else None)


def _may_pass(error: Exception) -> bool:
    """Whether another attempt may succeed: anything but a refusal, no credentials, and a true "not found"."""
    return not (is_denied(error) or lacks_credentials(error) or isinstance(error, EmptyVolumeException))


def retry_after(error: BaseException) -> float:
    """The seconds that a store asks to be left alone for; 0 if it does not say. RFC 9110, 10.2.3: seconds or a date."""
    response = getattr(error, "response", None)
    if isinstance(response, dict):  # botocore
        headers = response.get("ResponseMetadata", {}).get("HTTPHeaders", {})
    else:
        headers = getattr(response, "headers", None) or {}
    value = str(headers.get("Retry-After") or headers.get("retry-after") or "")
    if value.isdecimal():
        return float(value)
    try:
        return max(0.0, parsedate_to_datetime(value).timestamp() - time.time())
    except ValueError:
        return 0.0
