"""What a store's answers mean: "not found", refused, damaged, or worth another attempt; and making that attempt.

CloudFiles takes HTTP 403 and empty answers for missing objects, and CloudVolume takes those for black; here only a
true "not found" is one. CloudFiles also retries inside, for minutes and whatever the fault: here it asks once, and who
calls decides. `install` puts these meanings in CloudFiles' place, for this process. (cloudfiles/interfaces.py 6.4,
`HttpInterface.get_file` and its neighbours; tests/test_stores.py holds the patched places against the pinned version.)
"""

import sys
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import cloudfiles.cloudfiles
import cloudfiles.interfaces
import cloudfiles.secrets
import cloudvolume.secrets
import requests
import tenacity
from cloudfiles.compression import decompress
from cloudvolume.datasource.precomputed.image import rx
from cloudvolume.exceptions import EmptyVolumeException

LONGEST_NOTHING = 64  # bytes: no compression makes more of nothing
CONNECTIONS = 32  # kept open to a server
TIMEOUT_S = (10, 60)  # to connect, and between two bytes of an answer
ATTEMPTS = 6


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
            encoding = response.headers.get("Content-Encoding")
            return _not_empty(content, encoding, url), encoding, None, None


def _strict_http(interface: Any) -> Any:
    """The interface, of a protocol that builds on HTTP (CAVE's adds a token), with `StrictHttpInterface`'s meanings."""
    return type(f"Strict{interface.__name__}", (StrictHttpInterface, interface), {})


def _strict(interface: Any) -> Any:
    """The interface with each file read once (retries are made here, not in it) and never empty."""
    read_once = getattr(interface.get_file, "__wrapped__", interface.get_file)

    def get_file(self: Any, file_path: str, *args: Any, **kwargs: Any) -> tuple[Any, ...]:
        content, encoding, *rest = read_once(self, file_path, *args, **kwargs)
        return _not_empty(content, encoding, file_path), encoding, *rest

    return type(f"Strict{interface.__name__}", (interface,), {"get_file": get_file})


def _not_empty(content: bytes | None, encoding: str | None, name: str) -> bytes | None:
    """What was read, unless there is nothing in it, compressed or not: nothing that is stored is empty."""
    if content is not None and len(content) < LONGEST_NOTHING and not decompress(content, encoding, name):
        raise DamagedError(f"{name} came back empty")
    return content


def install() -> None:
    """Make every CloudFiles of this process answer so; more than once is the same as once."""
    table = cloudfiles.cloudfiles.INTERFACES
    for protocol, interface in table.items():
        if interface.__name__.startswith("Strict"):
            continue
        is_http = issubclass(interface, cloudfiles.interfaces.HttpInterface)
        table[protocol] = _strict_http(interface) if is_http else _strict(interface)
    # CloudVolume prints each failure to decode to stdout, where results go; the failure itself is raised as well.
    rx.print = lambda *words: None
    # What they say of credentials is for people too, but no result.
    cloudfiles.secrets.print = cloudvolume.secrets.print = partial(print, file=sys.stderr)


def is_denied(error: BaseException) -> bool:
    """Whether a store, or the file system, refused access: 401 or 403 in any of the clients' spellings."""
    if isinstance(error, PermissionError):
        return True
    response = getattr(error, "response", None)
    if isinstance(response, dict):  # botocore
        status = response.get("ResponseMetadata", {}).get("HTTPStatusCode")
    else:  # requests; google.api_core
        status = getattr(response, "status_code", None) or getattr(error, "code", None)
    return status in (401, 403)


def is_from_store(error: BaseException) -> bool:
    """Whether an error comes from asking a store, not from what it answered."""
    clients = {"requests", "urllib3", "google", "botocore", "boto3"}
    return isinstance(error, OSError) or type(error).__module__.partition(".")[0] in clients


def is_transient(error: BaseException) -> bool:
    """Whether another attempt may succeed: anything but a refusal and a true "not found"."""
    return isinstance(error, Exception) and not is_denied(error) and not isinstance(error, EmptyVolumeException)


def reason(error: BaseException) -> str:
    """Why a store did not give what it was asked for, for messages."""
    return "access was denied" if is_denied(error) else f"{type(error).__name__}: {error}"


def retrying(
    attempts: int = ATTEMPTS,
    sleep: Callable[[float], None] = time.sleep,
    on_retry: Callable[[], None] = lambda: None,
) -> tenacity.Retrying:
    """Calls a function until it succeeds, with growing waits between its attempts; the last error is raised.

    Only errors that may pass are met with another attempt. on_retry: called before each wait.
    """
    return tenacity.Retrying(
        stop=tenacity.stop_after_attempt(attempts),
        wait=tenacity.wait_random_exponential(multiplier=0.5, max=20),
        retry=tenacity.retry_if_exception(is_transient),
        before_sleep=lambda state: on_retry(),
        reraise=True,
        sleep=sleep,
    )
