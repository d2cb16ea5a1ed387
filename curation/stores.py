"""What a store's answers mean: "not found", refused, damaged, or worth another attempt.

CloudFiles takes HTTP 403 and empty answers for missing objects, and CloudVolume takes those for black; here only a
true "not found" is one. CloudFiles also retries inside, for minutes and whatever the fault: here it asks once, and who
calls decides. `install` puts these meanings in CloudFiles' place, for this process.
"""

from typing import Any

import cloudfiles.cloudfiles
import cloudfiles.interfaces
import requests
from cloudvolume.exceptions import EmptyVolumeException

CONNECTIONS = 32  # kept open to a server
TIMEOUT_S = (10, 60)  # to connect, and between two bytes of an answer


class DamagedError(OSError):
    """An answer that cannot be what was stored."""


class StrictHttpInterface(cloudfiles.interfaces.HttpInterface):
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
            return _not_empty(content, url), response.headers.get("Content-Encoding"), None, None


def _strict(interface: Any) -> Any:
    """The interface with each file read once (retries are made here, not in it) and never empty."""
    read_once = getattr(interface.get_file, "__wrapped__", interface.get_file)

    def get_file(self: Any, file_path: str, *args: Any, **kwargs: Any) -> tuple[Any, ...]:
        content, *rest = read_once(self, file_path, *args, **kwargs)
        return _not_empty(content, file_path), *rest

    return type(f"Strict{interface.__name__}", (interface,), {"get_file": get_file})


def _not_empty(content: bytes | None, name: str) -> bytes | None:
    if content is not None and len(content) == 0:
        raise DamagedError(f"{name} came back empty")
    return content


def install() -> None:
    """Make every CloudFiles of this process answer so; more than once is the same as once."""
    table = cloudfiles.cloudfiles.INTERFACES
    for protocol, interface in table.items():
        if interface.__name__.startswith("Strict"):
            continue
        table[protocol] = StrictHttpInterface if protocol in ("http", "https") else _strict(interface)


def is_denied(error: BaseException) -> bool:
    """Whether a store, or the file system, refused access: 401 or 403 in any of the clients' spellings."""
    if isinstance(error, PermissionError):
        return True
    status = getattr(getattr(error, "response", None), "status_code", None)  # requests
    if isinstance(getattr(error, "response", None), dict):  # botocore
        status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode")  # type: ignore[attr-defined]
    return (status or getattr(error, "code", None)) in (401, 403)  # code: google.api_core


def is_transient(error: BaseException) -> bool:
    """Whether another attempt may succeed: anything but a refusal and a true "not found"."""
    return isinstance(error, Exception) and not is_denied(error) and not isinstance(error, EmptyVolumeException)
