"""How long a store is asked again, and what is said of it meanwhile."""

import random
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from email.utils import formatdate
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import requests
from cloudvolume.exceptions import EmptyVolumeException
from commands import ROOT, Script
from layers_served import Answer, Server, served
from small_jobs import OF_THE_SPEC, dataset_arguments, differing, image_layer, made_folder, pair, put_json, spec_of

from curation import stores
from curation.stores import ATTEMPTS, DamagedError, Patience, is_denied, is_outage, retry_after

# Of the clients that cloud-files brings.
boto = import_module("botocore.exceptions")
google = import_module("google.api_core.exceptions")
google_auth = import_module("google.auth.exceptions")
urllib3 = import_module("urllib3.exceptions")


class Clock:
    """A clock that only waits move."""

    def __init__(self) -> None:
        self.waits: list[float] = []

    def now(self) -> float:
        return 1000 + sum(self.waits)


@pytest.fixture
def clock() -> Clock:
    return Clock()


def patience(clock: Clock, retry_for: float = 600, **more: Any) -> Patience:
    return Patience(retry_for, sleep=clock.waits.append, clock=clock.now, **more)


def answered(status: int, **headers: str) -> requests.HTTPError:
    response = requests.Response()
    response.status_code = status
    response.headers.update({name.replace("_", "-"): value for name, value in headers.items()})
    return requests.HTTPError(f"{status}", response=response)


def botos(status: int, **headers: str) -> Any:
    meta = {"HTTPStatusCode": status, "HTTPHeaders": {name.replace("_", "-"): each for name, each in headers.items()}}
    return boto.ClientError({"ResponseMetadata": meta}, "GetObject")


def after(*errors: Exception) -> Callable[[], str]:
    """A question that is answered after these errors."""
    left = list(errors)

    def question() -> str:
        if left:
            raise left.pop(0)
        return "answer"

    return question


def always(error: Exception) -> Callable[[], str]:
    """A question that is never answered."""

    def question() -> str:
        raise error

    return question


@pytest.mark.parametrize("away", [1, 5, 30, 300, 599])
def test_an_outage_shorter_than_that_is_survived(away: float, clock: Clock) -> None:
    def question() -> str:
        if clock.now() < 1000 + away:
            raise answered(503)
        return "answer"

    assert patience(clock).ask(question) == "answer"
    assert sum(clock.waits) >= away


def test_an_outage_that_lasts_is_given_up_on_to_the_second(clock: Clock) -> None:
    with pytest.raises(requests.HTTPError):
        patience(clock, retry_for=600).ask(always(answered(503)))
    assert sum(clock.waits) == pytest.approx(600)


def test_waits_are_random_and_grow_up_to_half_a_minute(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(random, "uniform", lambda low, high: (low, high)[1])
    with pytest.raises(requests.HTTPError):
        patience(clock, retry_for=100).ask(always(answered(503)))
    assert clock.waits == [0.5, 1, 2, 4, 8, 16, 30, 30, 8.5]


def test_an_outage_of_days_is_waited_out(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(random, "uniform", lambda low, high: high)
    with pytest.raises(requests.HTTPError):
        patience(clock, retry_for=100_000).ask(always(answered(503)))
    assert sum(clock.waits) == pytest.approx(100_000)


def test_no_time_is_one_attempt(clock: Clock) -> None:
    with pytest.raises(requests.HTTPError):
        patience(clock, retry_for=0).ask(always(answered(503)))
    assert clock.waits == []


def test_damage_is_given_a_few_attempts_however_long_an_outage_is_waited_out(clock: Clock) -> None:
    with pytest.raises(DamagedError):
        patience(clock).ask(always(DamagedError("torn")))
    assert len(clock.waits) == ATTEMPTS - 1


def test_an_outage_is_no_attempt_at_what_is_damaged(clock: Clock) -> None:
    errors: list[Exception] = [answered(503), DamagedError("torn")] * (ATTEMPTS - 1)
    assert patience(clock).ask(after(*errors)) == "answer"
    assert len(clock.waits) == 2 * (ATTEMPTS - 1)


@pytest.mark.parametrize("error", [answered(401), answered(403), EmptyVolumeException(), PermissionError()])
def test_a_refusal_and_what_is_not_there_are_final(error: Exception, clock: Clock) -> None:
    with pytest.raises(type(error)):
        patience(clock).ask(always(error))
    assert clock.waits == []


# What an outage is


@pytest.mark.parametrize(
    "error",
    [
        *(answered(status) for status in (408, 425, 429, 500, 502, 503, 504)),
        requests.ConnectionError(),
        requests.ReadTimeout(),
        requests.exceptions.ChunkedEncodingError(),
        urllib3.ProtocolError(),
        urllib3.IncompleteRead(1, 2),
        urllib3.ReadTimeoutError(None, "url", "late"),
        botos(503),
        boto.EndpointConnectionError(endpoint_url="url"),
        boto.ReadTimeoutError(endpoint_url="url"),
        google.ServiceUnavailable("busy"),
        google.TooManyRequests("busy"),
        google_auth.TransportError(),
        ConnectionResetError(),
        TimeoutError(),
    ],
    ids=lambda error: f"{type(error).__name__} {error}"[:40],
)
def test_no_answer_or_one_that_says_that_it_passes_is_an_outage(error: Exception) -> None:
    assert is_outage(error)
    assert not is_denied(error)


@pytest.mark.parametrize(
    "error",
    [
        *(answered(status) for status in (400, 401, 403, 416)),
        botos(403),
        google.Forbidden("no"),
        requests.exceptions.InvalidURL(),
        requests.exceptions.SSLError(),
        boto.NoCredentialsError(),
        google_auth.DefaultCredentialsError(),
        DamagedError("torn"),
        ValueError("torn"),
        OSError("torn"),
        EmptyVolumeException(),
    ],
    ids=lambda error: f"{type(error).__name__} {error}"[:40],
)
def test_everything_else_is_none(error: Exception) -> None:
    assert not is_outage(error)


# When a store says how long


@pytest.mark.parametrize("make", [answered, botos])
def test_retry_after_in_seconds_or_as_a_date(make: Callable[..., Exception]) -> None:
    assert retry_after(make(503, retry_after="120")) == 120
    assert retry_after(make(503, retry_after=formatdate(time.time() + 90, usegmt=True))) == pytest.approx(90, abs=2)
    assert retry_after(make(503, retry_after=formatdate(time.time() - 90, usegmt=True))) == 0


@pytest.mark.parametrize("error", [answered(503), answered(503, retry_after="soon"), ConnectionError(), botos(503)])
def test_retry_after_that_is_not_said(error: Exception) -> None:
    assert retry_after(error) == 0


def test_it_is_obeyed_and_capped_by_what_is_left(clock: Clock) -> None:
    with pytest.raises(requests.HTTPError):
        patience(clock, retry_for=100).ask(always(answered(503, retry_after="70")))
    assert clock.waits == [70, 30]


# What is said meanwhile


def test_it_is_said_since_when_the_first_question_waits_and_that_none_does_any_more(
    clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stores, "time", SimpleNamespace(time=iter([10.0, 20.0, 30.0]).__next__))
    said: list[float | None] = []
    steps = {name: threading.Event() for name in ("first waits", "second waits", "first goes on", "second goes on")}

    def sleep(seconds: float) -> None:
        name = threading.current_thread().name
        steps[f"{name} waits"].set()
        steps[f"{name} goes on"].wait(10)

    asks = Patience(sleep=sleep, clock=clock.now, on_wait=said.append)

    threads = {
        name: threading.Thread(target=asks.ask, args=[after(answered(503))], name=name) for name in ("first", "second")
    }
    for name, thread in threads.items():
        thread.start()
        assert steps[f"{name} waits"].wait(10)
    assert said == [10]
    for name, thread in threads.items():
        steps[f"{name} goes on"].set()
        thread.join(10)
    assert said == [10, 20, None]


def test_nothing_is_said_of_damage(clock: Clock) -> None:
    said: list[float | None] = []
    assert patience(clock, on_wait=said.append).ask(after(DamagedError("torn"), DamagedError("torn"))) == "answer"
    assert said == []


def test_it_can_be_ended(clock: Clock) -> None:
    asks = Patience()
    threading.Timer(0.05, asks.end).start()
    began = time.monotonic()
    with pytest.raises(InterruptedError):
        asks.ask(always(answered(503, retry_after="25")))
    assert time.monotonic() - began < 5


# A store that is away, over HTTP


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    image_layer(tmp_path, compress=False)
    with served(tmp_path / "image") as server:
        yield server


def arguments(folder: Path, image: str, name: str, *more: object) -> list[object]:
    pairs = [pair(x, y, z) for x in (0, 64) for y in (0, 64) for z in range(1, 6)]
    return dataset_arguments(put_json(folder / f"{name}.json", spec_of(image, None, pairs)), folder / name, *more)


def is_chunk(file: str) -> bool:
    return file.startswith("4_4_40/")


@pytest.mark.parametrize("parallel", [1, 2])
def test_a_store_that_is_away_for_seconds_is_waited_for_and_the_bar_says_so(
    parallel: int, server: Server, tmp_path: Path, script: Script
) -> None:
    back: list[float] = []

    def away(file: str, nth: int) -> Answer:
        if not is_chunk(file):
            return Answer()
        back[:] = back or [time.monotonic() + 3]
        return Answer(503 if time.monotonic() < back[0] else 200)

    for name, image in (("undisturbed", f"file://{tmp_path}/image"), ("disturbed", server.url)):
        made_folder(tmp_path / name)
        server.otherwise = away
        done = script("make_dataset.py", *arguments(tmp_path, image, name, "--parallel", parallel))
        assert done.returncode == 0, done.stderr
    assert re.search(r"waiting for the store since \d\d:\d\d:\d\d", done.stderr)
    assert "waiting" not in done.stderr.replace("\r", "\n").strip().splitlines()[-1]
    assert time.monotonic() > back[0]
    file = "x0_y0_z1_MIP0.h5"
    assert differing(tmp_path / "disturbed" / file, tmp_path / "undisturbed" / file, OF_THE_SPEC) == []


@pytest.mark.parametrize("parallel", [1, 2])
def test_a_run_that_waits_for_a_store_ends_at_once_when_it_is_interrupted(
    parallel: int, server: Server, tmp_path: Path
) -> None:
    server.otherwise = lambda file, nth: Answer(503 if is_chunk(file) else 200, headers={"Retry-After": "30"})
    made_folder(tmp_path / "out")
    command = [*map(str, [ROOT / "make_dataset.py", *arguments(tmp_path, server.url, "out", "--parallel", parallel)])]
    process = subprocess.Popen([sys.executable, *command], stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    while not any(map(is_chunk, server.asked)):
        time.sleep(0.05)
    time.sleep(1)
    process.send_signal(signal.SIGINT)
    began = time.monotonic()
    _, said = process.communicate(timeout=60)
    assert process.returncode == 130, said
    assert time.monotonic() - began < 5
