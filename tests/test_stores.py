"""The places in cloud-files and CloudVolume that `curation.stores` puts its own into: an upgrade must not move them.

What stores mean by their answers is tested with the volumes that are read from them, in test_volumes.py.
"""

import inspect
from pathlib import Path
from typing import Any

import cloudfiles.cloudfiles
import cloudfiles.compression
import cloudfiles.interfaces
import cloudfiles.secrets
import cloudvolume.compression
import cloudvolume.secrets
import pytest
import requests
from cloudfiles import CloudFiles, connectionpools
from cloudfiles.interfaces import FileInterface, GoogleCloudStorageInterface, HttpInterface, S3Interface
from cloudfiles.paths import extract
from cloudvolume import CloudVolume
from cloudvolume.datasource.precomputed import sharding
from cloudvolume.datasource.precomputed.image import rx
from layers_served import Answer, Server, served
from small_jobs import image_layer, made_folder
from volumes_made import chunk_file

from curation import stores

stores.install()

TABLE = cloudfiles.cloudfiles.INTERFACES


# The table of interfaces


@pytest.mark.parametrize("protocol", ["http", "https", "file", "gs", "s3", "mem"])
def test_the_table_has_a_strict_interface_for_each_protocol(protocol: str) -> None:
    assert TABLE[protocol].__name__.startswith("Strict")
    assert issubclass(TABLE[protocol], cloudfiles.interfaces.StorageInterface)


def test_every_other_protocol_is_strict_too() -> None:
    assert [name for name, interface in TABLE.items() if not interface.__name__.startswith("Strict")] == []


def test_installed_again_nothing_changes() -> None:
    before = dict(TABLE)
    stores.install()
    assert before == TABLE


def test_what_stands_in_the_table_is_what_reads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a").write_bytes(b"content")
    asked: list[str] = []

    class Noting(TABLE["file"]):  # type: ignore[name-defined,misc]
        def get_file(self, file_path: str, *args: Any, **kwargs: Any) -> Any:
            asked.append(file_path)
            return super().get_file(file_path, *args, **kwargs)

    monkeypatch.setitem(TABLE, "file", Noting)
    assert CloudFiles(f"file://{tmp_path}", progress=False).get("a") == b"content"
    assert asked == ["a"]


# What an interface gives


@pytest.mark.parametrize("interface", [HttpInterface, FileInterface, GoogleCloudStorageInterface, S3Interface])
def test_get_file_takes_what_it_is_called_with(interface: type) -> None:
    assert list(inspect.signature(interface.get_file).parameters)[:4] == ["self", "file_path", "start", "end"]


@pytest.mark.parametrize("interface", [HttpInterface, GoogleCloudStorageInterface, S3Interface])
def test_get_file_that_retries_has_the_plain_one_below(interface: type) -> None:
    """Retried inside as well, a store that is away would be asked 6 times 7 times."""
    assert hasattr(interface.get_file, "retry")  # as tenacity marks what it wraps
    assert inspect.isfunction(interface.get_file.__wrapped__)
    assert not hasattr(interface.get_file.__wrapped__, "retry")


def test_get_file_of_a_file_does_not_retry() -> None:
    assert not hasattr(FileInterface.get_file, "__wrapped__")


def test_get_file_gives_the_content_and_its_encoding_first(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"content")
    interface = FileInterface(extract(f"file://{tmp_path}"))
    content, encoding, *rest = interface.get_file("a")
    assert (content, encoding, len(rest)) == (b"content", None, 2)
    assert interface.get_file("b") == (None, None, None, None)


def test_a_range_of_another_length_is_damaged(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"content")
    interface = TABLE["file"](extract(f"file://{tmp_path}"))
    assert interface.get_file("a", start=1, end=4)[0] == b"ont"
    with pytest.raises(stores.DamagedError, match="a: 3 bytes came back for bytes 4 to 9"):
        interface.get_file("a", start=4, end=9)


# What is compressed


@pytest.mark.parametrize("module", [cloudfiles.compression, cloudvolume.compression])
def test_what_decompresses_is_ours(module: Any) -> None:
    assert module.decompress is stores.decompress


@pytest.mark.parametrize(
    "compression", [name for name in cloudfiles.compression.COMPRESSION_TYPES if isinstance(name, str) and name]
)
def test_it_knows_every_compression_that_is_known(compression: str) -> None:
    packed = cloudfiles.compression.compress(b"content", compression)
    assert stores.decompress(packed, compression) == b"content"


def test_a_compression_that_is_not_known_is_said() -> None:
    with pytest.raises(ValueError, match=r"^a is compressed as 'lz4': want one of br, bz2"):
        stores.decompress(b"content", "lz4", "a")


def test_an_unsharded_chunk_and_an_index_of_shards_are_decompressed_by_name() -> None:
    assert rx.compression is cloudfiles.compression
    assert sharding.compression is cloudvolume.compression


# HTTP


@pytest.fixture
def files(tmp_path: Path) -> Path:
    folder = made_folder(tmp_path / "files")
    (folder / "a").write_bytes(b"0123456789")
    return folder


def http_interface(server: Server, kind: type = HttpInterface) -> Any:
    return kind(extract(server.url.removeprefix("precomputed://")))


def test_http_has_a_session_headers_and_a_url(files: Path) -> None:
    with served(files) as server:
        interface = http_interface(server)
        url = interface.get_path_to_file("a")
        assert url == f"{server.url.removeprefix('precomputed://')}/a"
        assert interface.default_headers() == {}
        assert isinstance(interface.session, requests.Session)
        assert interface.session.get_adapter(url) is HttpInterface.adaptor


def test_http_takes_its_adaptor_from_its_class(files: Path) -> None:
    with served(files) as server:
        interface = http_interface(server, stores.StrictHttpInterface)
        assert interface.session.get_adapter(interface.get_path_to_file("a")) is stores.StrictHttpInterface.adaptor
    assert stores.StrictHttpInterface.adaptor is not HttpInterface.adaptor


def test_http_answers_as_the_original_does(files: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with served(files) as server:
        server.answers["b"] = [Answer(404)] * 2
        original, strict = http_interface(server), http_interface(server, stores.StrictHttpInterface)
        assert strict.get_file("a") == original.get_file("a") == (b"0123456789", None, None, None)
        assert strict.get_file("b") == original.get_file("b") == (None, None, None, None)


HTTP_LIKE = sorted(name for name, interface in TABLE.items() if issubclass(interface, HttpInterface))


@pytest.mark.parametrize("protocol", HTTP_LIKE)
def test_http_of_every_kind_takes_403_for_a_refusal(
    protocol: str, files: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with served(files) as server:
        server.answers["a"] = [Answer(403)]
        with pytest.raises(requests.HTTPError):
            http_interface(server, TABLE[protocol]).get_file("a")


# What they print


@pytest.mark.parametrize("module", [cloudfiles.secrets, cloudvolume.secrets])
def test_what_is_said_of_credentials_is_printed_where_it_can_be_turned(
    module: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    said: list[Any] = []
    monkeypatch.setattr(module, "print", lambda *words, **_: said.append(words))
    monkeypatch.setattr(module, "secretpath", lambda *names, **_: str(tmp_path / names[-1]))
    module.google_credentials("nobodys-bucket")
    assert said
    assert capsys.readouterr() == ("", "")


def test_what_is_said_of_a_chunk_that_cannot_be_decoded_is_printed_where_it_can_be_turned(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    said: list[Any] = []
    monkeypatch.setattr(rx, "print", lambda *words: said.append(words), raising=False)
    path = image_layer(tmp_path, compress=False)
    file = chunk_file(tmp_path / "image", 0, (0, 0, 5))
    file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(Exception, match=r".*"):
        CloudVolume(path, progress=False)[0:64, 0:64, 5]
    assert said
    assert capsys.readouterr().out == ""


# Credentials


def test_the_pools_of_connections_do_not_ask_again_for_credentials() -> None:
    for pool in (connectionpools.GCloudBucketPool, connectionpools.S3ConnectionPool):
        assert inspect.unwrap(pool._create_connection) is pool._create_connection
        assert not hasattr(pool._create_connection, "retry")


@pytest.mark.parametrize("name", ["DefaultCredentialsError", "NoCredentialsError"])  # of google.auth, and botocore
def test_a_store_without_credentials_is_asked_once(name: str) -> None:
    error: Exception = type(name, (Exception,), {})("none")
    asked = []

    def question() -> None:
        asked.append(1)
        raise error

    with pytest.raises(type(error)):
        stores.Patience(sleep=lambda seconds: None).ask(question)
    assert len(asked) == 1
    assert stores.reason(error).startswith("no credentials were found: want those of Google in ")
