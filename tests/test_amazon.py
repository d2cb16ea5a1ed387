"""Shards in S3, made by workers of a queue of SQS, both served by moto on this machine."""

import hashlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import boto3
import pytest
from commands import ROOT
from moto.server import ThreadedMotoServer
from test_box_shards import arguments, hashes, made, spec

from curation.steps.concat_fields import concat_fields

__all__ = ["made", "spec"]

BUCKET = "datasets"
QUEUE = "pairs"


@pytest.fixture(scope="module")
def amazon() -> Iterator[Mapping[str, str]]:
    """The environment by which processes find it. Its keys have no token, as those of a person."""
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    environment = {name: value for name, value in os.environ.items() if not name.startswith("AWS_")}
    environment |= {
        "AWS_ENDPOINT_URL": f"http://{host}:{port}",
        "AWS_ACCESS_KEY_ID": "somebody",
        "AWS_SECRET_ACCESS_KEY": "something",
        "AWS_DEFAULT_REGION": "us-east-1",
        "OMP_NUM_THREADS": "1",
    }
    client(environment, "s3").create_bucket(Bucket=BUCKET)
    yield environment
    server.stop()


@pytest.fixture
def queue(amazon: Mapping[str, str]) -> Iterator[str]:
    sqs = client(amazon, "sqs")
    url = sqs.create_queue(QueueName=QUEUE)["QueueUrl"]
    yield f"sqs://{QUEUE}"
    sqs.delete_queue(QueueUrl=url)


def client(environment: Mapping[str, str], service: str) -> Any:
    return boto3.client(
        service,
        endpoint_url=environment["AWS_ENDPOINT_URL"],
        aws_access_key_id=environment["AWS_ACCESS_KEY_ID"],
        aws_secret_access_key=environment["AWS_SECRET_ACCESS_KEY"],
        region_name=environment["AWS_DEFAULT_REGION"],
    )


def stored(environment: Mapping[str, str], prefix: str) -> dict[str, str]:
    """The hashes of the shards below a prefix of the bucket."""
    s3 = client(environment, "s3")
    keys = [each["Key"] for each in s3.list_objects_v2(Bucket=BUCKET, Prefix=prefix).get("Contents", [])]
    bodies = {key: s3.get_object(Bucket=BUCKET, Key=key)["Body"].read() for key in keys if key.endswith(".h5")}
    return {key.removeprefix(prefix): hashlib.sha256(body).hexdigest() for key, body in bodies.items()}


def started(
    environment: Mapping[str, str], name: str, *more: object, machine: Path | None = None
) -> "subprocess.Popen[str]":
    """Start a script. machine: a folder in which it works, and where alone it has temporary files."""
    command = [sys.executable, ROOT / name, *more]
    pipe = subprocess.PIPE
    if machine is not None:
        machine.mkdir()
        environment = {**environment, "TMPDIR": str(machine)}
    return subprocess.Popen(
        list(map(str, command)),
        cwd=machine,
        env=environment,
        stdout=pipe,
        stderr=pipe,
        text=True,
        start_new_session=True,
    )


def run(environment: Mapping[str, str], name: str, *more: object) -> str:
    process = started(environment, name, *more)
    stdout, stderr = process.communicate(timeout=120)
    assert process.returncode == 0, stderr
    return stdout


def test_three_workers_two_of_them_killed_make_all_shards(
    amazon: Mapping[str, str], queue: str, spec: Path, made: Path, tmp_path: Path
) -> None:
    """They share the queue and the store alone. The third goes on when the leases of the others have run out."""
    given = arguments(spec, Path("out"), "--shards", 4)
    given[given.index(Path("out"))] = f"s3://{BUCKET}/killed"
    assert "3, of 9 pairs" in run(amazon, "make_dataset.py", *given, "--queue", queue)
    worker = ("run_worker.py", "--queue", queue, "--parallel", 1, "--lease", 5)
    killed = [started(amazon, *worker, machine=tmp_path / name) for name in ("first", "second")]
    time.sleep(2.5)
    for process in killed:
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
    last = started(amazon, *worker, "--exit_when_empty", machine=tmp_path / "third")
    assert last.communicate(timeout=120)[1] == ""
    assert stored(amazon, "killed/") == hashes(made)
    status = run(amazon, "make_dataset.py", *given, "--status")
    assert "9 of 9 are there" in status
    assert "none: all shards are there" in run(amazon, "make_dataset.py", *given, "--queue", queue)


def test_shards_go_to_a_store_without_a_queue_too(amazon: Mapping[str, str], spec: Path, made: Path) -> None:
    given = arguments(spec, Path("out"), "--shards", 4)
    given[given.index(Path("out"))] = f"s3://{BUCKET}/local"
    assert "9 of 9 are there" in run(amazon, "make_dataset.py", *given)
    assert stored(amazon, "local/") == hashes(made)


def test_what_fails_is_set_aside_in_a_queue_beside(amazon: Mapping[str, str], queue: str, spec: Path) -> None:
    given = arguments(spec, Path("out"), "--shards", 9)
    given[given.index(Path("out"))] = f"s3://{BUCKET}/gone"
    client(amazon, "sqs").create_queue(QueueName=f"{QUEUE}-failed-before")  # whose name begins like that of the other
    run(amazon, "make_dataset.py", *given, "--queue", queue)
    client(amazon, "s3").delete_object(Bucket=BUCKET, Key="gone/a/spec.json")
    text = run(amazon, "run_worker.py", "--queue", queue, "--parallel", 1, "--exit_when_empty")
    assert "1 units that failed" in text
    listed = run(amazon, "run_worker.py", "--queue", queue, "--failed")
    assert listed.startswith(f"pairs 0 to 8 of s3://{BUCKET}/gone/a: s3://{BUCKET}/gone/a: no spec.json there")
    assert run(amazon, "run_worker.py", "--queue", queue, "--failed") == listed  # to list them changes nothing


def test_a_queue_that_is_not_there_is_told_with_what_makes_it(amazon: Mapping[str, str]) -> None:
    process = started(amazon, "run_worker.py", "--queue", "sqs://nowhere", "--parallel", 1)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 2
    assert "aws sqs create-queue --queue-name nowhere" in stderr
    assert "Traceback" not in stderr


def test_shards_of_a_store_are_joined(amazon: Mapping[str, str], spec: Path, made: Path, tmp_path: Path) -> None:
    given = arguments(spec, Path("out"), "--shards", 4)
    given[given.index(Path("out"))] = f"s3://{BUCKET}/joined"
    run(amazon, "make_dataset.py", *given)
    for name in ("a", "field_0_a"):
        ours = tmp_path / "from_store" / f"{name}.h5"
        ours.parent.mkdir(exist_ok=True)
        (ours.parent / f".{name}.h5.shards").mkdir()
        (ours.parent / f".{name}.h5.shards" / "0_4.h5").write_text("torn: of a run that was killed")
        source = f"s3://{BUCKET}/joined/{name}"
        assert "9 pairs from 3 shards" in run(amazon, "concat_fields.py", "--temp_dir", source, "--dst_path", ours)
        concat_fields(str(made / name), str(tmp_path / f"{name}.h5"))
        assert ours.read_bytes() == (tmp_path / f"{name}.h5").read_bytes()
    assert sorted(path.name for path in (tmp_path / "from_store").iterdir()) == ["a.h5", "field_0_a.h5"]


def test_a_path_without_shards_is_told(amazon: Mapping[str, str], tmp_path: Path) -> None:
    source = f"s3://{BUCKET}/nothing"
    process = started(amazon, "concat_fields.py", "--temp_dir", source, "--dst_path", tmp_path / "a.h5")
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 2
    assert "nothing: no shards there" in stderr
    assert list(tmp_path.iterdir()) == []
