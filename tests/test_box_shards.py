"""make_dataset.py --shards: they hold what one file would; however they are made, they are the same byte for byte."""

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from commands import ROOT, Command, Script
from small_jobs import dataset_arguments, field_layer, image_layer, pair, put_json, spec_of

from curation.datasets.shard_store import CloudStore, LocalStore
from curation.datasets.shards import Shard
from curation.errors import UsageError
from curation.files import process_name
from curation.spec import read_spec
from curation.steps import box_shards, make_dataset
from curation.steps.make_dataset import MakeDatasetOptions
from curation.steps.shard_job import ShardJob, claim, note_failure, status_of

PAIRS = [pair(16 * (n % 4), 16 * (n % 5), 5 - n % 3) for n in range(9)]
RANGES = ["0_4.h5", "4_8.h5", "8_9.h5"]


@pytest.fixture(scope="module")
def spec(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("volumes")
    pairs: list[dict[str, Any]] = [dict(each) for each in PAIRS]
    pairs[5]["note"] = {"tags": ["fold"]}
    return put_json(folder / "spec.json", spec_of(image_layer(folder), field_layer(folder), pairs))


def arguments(spec: Path, out: Path, *more: object) -> list[object]:
    return dataset_arguments(spec, out, "--name", "a", *more)


def hashes(folder: Path) -> dict[str, str]:
    """Of every shard below a folder."""
    paths = sorted(folder.rglob("*.h5"))
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in paths}


def left(folder: Path) -> set[str]:
    """The names of all files below a folder that are no shards."""
    return {path.name for path in folder.rglob("*") if path.is_file() and path.suffix != ".h5"} | {
        path.name for path in folder.rglob(".*.h5")
    }


@pytest.fixture(scope="module")
def made(spec: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All shards, made by one process."""
    out = tmp_path_factory.mktemp("made")
    options = MakeDatasetOptions(str(spec), str(out), parallel=1, name="a", shard_pairs=4)
    print(make_dataset.make_dataset(options))
    return out


def test_shards_hold_what_one_file_holds(spec: Path, made: Path, tmp_path: Path) -> None:
    make_dataset.make_dataset(MakeDatasetOptions(str(spec), str(tmp_path), parallel=1, name="a"))
    for name in ("a", "field_0_a"):
        assert sorted(path.name for path in (made / name).glob("*.h5")) == RANGES
        assert (made / name / "spec.json").read_text() == read_spec(str(spec)).text()
        with h5py.File(tmp_path / f"{name}.h5") as whole:
            for shard in (Shard(0, 4), Shard(4, 8), Shard(8, 9)):
                with h5py.File(made / name / shard.name) as part:
                    assert set(part) == set(whole)
                    assert "spec" not in part.attrs
                    assert part.attrs["spec_sha256"] == whole.attrs["spec_sha256"]
                    for sample in shard.pairs:
                        for role in range(2 if name == "a" else 1):
                            at, of = (sample - shard.first, role, 0, 0), (sample, role, 0, 0)
                            assert part["main"].id.read_direct_chunk(at) == whole["main"].id.read_direct_chunk(of)
                    for dataset in set(whole) - {"main"}:
                        ours, theirs = part[dataset][:], whole[dataset][shard.first : shard.last]
                        np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize("more", [["--parallel", 2], ["--shard", "0/1"]])
def test_however_they_are_made_their_bytes_are_the_same(
    command: Command, spec: Path, made: Path, tmp_path: Path, more: list[object]
) -> None:
    assert command("make_dataset.py", *arguments(spec, tmp_path / "out", "--shards", 4, *more)).code == 0
    assert hashes(tmp_path / "out") == hashes(made)
    assert left(tmp_path / "out") == {"job.json", "spec.json"}


def test_the_tasks_of_an_array_make_all_of_them(command: Command, spec: Path, made: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    outcome = command("make_dataset.py", *arguments(spec, out, "--shards", 4, "--shard", "1/2"))
    assert "4 of 9 are there" in outcome.stdout
    assert "1 are there, 2 are missing" in outcome.stdout
    assert sorted(hashes(out)) == ["a/4_8.h5", "field_0_a/4_8.h5"]
    assert command("make_dataset.py", *arguments(spec, out, "--shard", "0/2")).code == 0  # the size is known by now
    assert hashes(out) == hashes(made)


def test_only_what_is_missing_is_made(command: Command, spec: Path, made: Path, tmp_path: Path) -> None:
    """A shard is there if all of its files are: a crash may come between them."""
    out = Path(shutil.copytree(made, tmp_path / "out"))
    (out / "field_0_a" / "4_8.h5").unlink()
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*.h5")}
    outcome = command("make_dataset.py", *arguments(spec, out, "--shards"))
    assert "1 shard\n" in outcome.stdout
    changed = {path.name for path, when in before.items() if path.stat().st_mtime_ns != when}
    assert changed == {"4_8.h5"}
    assert hashes(out) == hashes(made)


def test_excluded_pairs_are_in_no_shard(command: Command, spec: Path, made: Path, tmp_path: Path) -> None:
    rejected = put_json(tmp_path / "rejected.json", [PAIRS[0]])
    out = tmp_path / "out"
    assert command("make_dataset.py", *arguments(spec, out, "--shards", 4, "--exclude", rejected)).code == 0
    with h5py.File(out / "a" / "0_4.h5") as file:
        assert file["pair"][:].tolist() == [1, 2, 3, 4]
    assert json.loads((out / "a" / "job.json").read_text())["options"]["excluded"] == [0]


def test_the_numbers_of_pairs_are_those_of_one_file(command: Command, spec: Path, tmp_path: Path) -> None:
    for more in (["--shards", 4], []):
        out = tmp_path / f"out{len(more)}"
        assert command("make_dataset.py", *arguments(spec, out, "--quality", *more)).code == 0
    with h5py.File(tmp_path / "out0" / "field_0_a.h5") as whole:
        parts = [h5py.File(tmp_path / "out2" / "field_0_a" / name) for name in RANGES]
        for name in ("correlation_before", "correlation_after", "folded"):
            np.testing.assert_array_equal(np.concatenate([part[name][:] for part in parts]), whole[name][:])


def test_an_empty_path_is_this_folder(spec: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    options = MakeDatasetOptions(str(spec), "", parallel=1, name="a", shard_pairs=4, status=True)
    assert "output           ./a\n" in str(make_dataset.make_dataset(options))


def test_a_dry_run_makes_nothing(command: Command, spec: Path, tmp_path: Path) -> None:
    outcome = command("make_dataset.py", *arguments(spec, tmp_path / "out", "--shards", "--dry_run"))
    assert outcome.code == 0
    assert f"{tmp_path}/out/a, {tmp_path}/out/field_0_a" in outcome.stdout
    assert not (tmp_path / "out").exists()


# What is refused


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--shards", 4, "--field_decimals", 2], "made with another field_decimals"),
        (["--shards", 4, "--quality"], "made with another quality"),
        (["--shards", 3], "its shards have 4 pairs each, not 3"),
        (["--shards", "--min_valid", 0.5], "--min_valid"),
        (["--shards", "--update"], "--update"),
        (["--shard", "0/2", "--queue", "fq://q"], "not allowed with"),
        (["--shard", "0/2", "--overwrite"], "--overwrite would remove the shards of the other tasks too"),
        (["--shard", "2/2"], "from 0 to 1 of 2"),
        (["--status", "--overwrite"], "--status only looks"),
    ],
)
def test_what_cannot_be_is_refused(command: Command, spec: Path, made: Path, more: list[object], message: str) -> None:
    before = hashes(made)
    outcome = command("make_dataset.py", *arguments(spec, made, *more))
    assert outcome.code == 2
    assert message in outcome.line
    assert hashes(made) == before


def test_shards_of_nobody_knows_what_are_refused(command: Command, spec: Path, made: Path, tmp_path: Path) -> None:
    out = Path(shutil.copytree(made, tmp_path / "out"))
    (out / "a" / "job.json").unlink()
    outcome = command("make_dataset.py", *arguments(spec, out, "--shards", 4))
    assert outcome.code == 2
    assert "no job.json that says what made them" in outcome.line


def test_overwrite_begins_anew(command: Command, spec: Path, made: Path, tmp_path: Path) -> None:
    out = Path(shutil.copytree(made, tmp_path / "out"))
    outcome = command("make_dataset.py", *arguments(spec, out, "--shards", 5, "--overwrite"))
    assert outcome.code == 0
    assert sorted(path.name for path in (out / "a").glob("*.h5")) == ["0_5.h5", "5_9.h5"]


def test_overwrite_removes_nothing_where_the_volume_is_gone(
    command: Command, made: Path, spec: Path, tmp_path: Path
) -> None:
    out = Path(shutil.copytree(made, tmp_path / "out"))
    other = json.loads(spec.read_text())
    other["image"]["path"] = f"file://{tmp_path}/gone"
    given = arguments(put_json(tmp_path / "other.json", other), out, "--shards", 4, "--overwrite")
    assert command("make_dataset.py", *given).code == 2
    assert hashes(out) == hashes(made)


def test_a_folder_that_is_left_of_two_is_not_mixed_with_another_job(
    command: Command, spec: Path, made: Path, tmp_path: Path
) -> None:
    out = Path(shutil.copytree(made, tmp_path / "out"))
    shutil.rmtree(out / "a")
    before = hashes(out)
    outcome = command("make_dataset.py", *arguments(other_pairs(spec, tmp_path), out, "--shards", 5))
    assert outcome.code == 2
    assert outcome.line.startswith(f"make_dataset: error: {out}/field_0_a: its shards are made with another")
    assert hashes(out) == before


def test_a_spec_that_is_left_of_another_job_is_replaced(
    command: Command, spec: Path, made: Path, tmp_path: Path
) -> None:
    out = Path(shutil.copytree(made, tmp_path / "out"))
    for path in [*out.rglob("*.h5"), *out.rglob("job.json")]:
        path.unlink()
    other = other_pairs(spec, tmp_path)
    assert command("make_dataset.py", *arguments(other, out, "--shards", 4)).code == 0
    for name in ("a", "field_0_a"):
        assert (out / name / "spec.json").read_text() == read_spec(str(other)).text()


def test_two_jobs_that_begin_at_once_are_not_mixed(spec: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """To look at the volumes takes a while, and the folder is empty until then."""
    check = box_shards.ShardedBoxes.check

    def check_while_another_begins(self: Any, shards: Any) -> None:
        check(self, shards)
        claim(LocalStore(str(tmp_path / "a")), ShardJob("make_dataset", 9, 2, {}, {"of": "another"}))

    monkeypatch.setattr(box_shards.ShardedBoxes, "check", check_while_another_begins)
    options = MakeDatasetOptions(str(spec), str(tmp_path), parallel=1, name="a", shard_pairs=4)
    with pytest.raises(UsageError, match="made with another"):
        make_dataset.make_dataset(options)
    assert not list(tmp_path.rglob("*.h5"))
    assert json.loads((tmp_path / "a" / "job.json").read_text())["provenance"] == {"of": "another"}


@pytest.mark.parametrize("content", [b"", b"\xff\xfe", b"[]", b"{}"])
def test_a_damaged_claim_is_told(command: Command, spec: Path, made: Path, tmp_path: Path, content: bytes) -> None:
    out = Path(shutil.copytree(made, tmp_path / "out"))
    (out / "a" / "job.json").write_bytes(content)
    outcome = command("make_dataset.py", *arguments(spec, out, "--status"))
    assert outcome.code == 2
    assert "a/job.json: not what this version of the toolkit writes" in outcome.line


def other_pairs(spec: Path, folder: Path) -> Path:
    changed = json.loads(spec.read_text())
    changed["pairs"].reverse()
    return put_json(folder / "other.json", changed)


@pytest.mark.parametrize("taken_over", [True, False])
def test_a_folder_that_is_given_to_another_job_gets_no_more_shards_of_the_first(
    spec: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, taken_over: bool
) -> None:
    """As --overwrite does while the tasks of an array are at work."""
    make = box_shards.measured_numbers
    calls = []

    def amid_the_second(*given: Any) -> Any:
        calls.append(given)
        if len(calls) == 2:
            path = tmp_path / "a" / "job.json"
            job = json.loads(path.read_text())
            path.unlink()
            if taken_over:
                put_json(path, {**job, "provenance": {"of": "another"}})
        return make(*given)

    monkeypatch.setattr(box_shards, "measured_numbers", amid_the_second)
    options = MakeDatasetOptions(str(spec), str(tmp_path), parallel=1, name="a", shard_pairs=4)
    with pytest.raises(UsageError, match="belongs to another job than the shards"):
        make_dataset.make_dataset(options)
    assert sorted(path.name for path in tmp_path.rglob("*.h5")) == ["0_4.h5", "0_4.h5"]
    assert not list(tmp_path.rglob("*.failed.txt"))


# Failures


def test_a_shard_that_fails_keeps_no_other_from_being_made(
    command: Command, spec: Path, made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make = box_shards.BoxShardWork._make

    def fails(self: Any, shard: Shard, *rest: Any) -> int:
        if shard.first == 4:
            raise OSError("the disk is on fire")
        return make(self, shard, *rest)

    out = tmp_path / "out"
    with monkeypatch.context() as patch:
        patch.setattr(box_shards.BoxShardWork, "_make", fails)
        outcome = command("make_dataset.py", *arguments(spec, out, "--shards", 4))
    assert outcome.code == 1
    assert outcome.line.endswith("a shard could not be made; the first, of pairs 4 to 7: OSError: the disk is on fire")
    assert sorted(path.name for path in (out / "a").glob("*.h5")) == ["0_4.h5", "8_9.h5"]
    assert "Traceback" in (out / "a" / "4_8.failed.txt").read_text()
    status = command("make_dataset.py", *arguments(spec, out, "--status")).stdout
    assert "1 of the missing shards: 4_8" in status
    assert "OSError: the disk is on fire" in status
    assert command("make_dataset.py", *arguments(spec, out, "--shards")).code == 0
    assert hashes(out) == hashes(made)
    assert left(out) == {"job.json", "spec.json"}


def test_a_store_in_which_nothing_may_be_deleted_does_no_harm(
    spec: Path, made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def denied(self: LocalStore, name: str) -> None:
        raise UsageError(f"{name}: access was denied")

    monkeypatch.setattr(LocalStore, "delete", denied)
    make_dataset.make_dataset(MakeDatasetOptions(str(spec), str(tmp_path), parallel=1, name="a", shard_pairs=4))
    assert hashes(tmp_path) == hashes(made)


def test_what_a_killed_process_leaves_while_it_uploads_is_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    with subprocess.Popen(["true"]) as ended:
        pass
    host = process_name().partition(".")[0]
    for name in (f"shard-{host}.{ended.pid}-a1_b2", f"shard-{process_name()}-a1_b2", f"shard-other.{ended.pid}-a1_b2"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "0_4.h5").touch()
    CloudStore("s3://bucket/shards").tidy()
    assert {path.name.partition(".")[2] for path in tmp_path.iterdir()} == {
        f"{os.getpid()}-a1_b2",
        f"{ended.pid}-a1_b2",
    }
    assert not (tmp_path / f"shard-{host}.{ended.pid}-a1_b2").exists()


def test_texts_that_dead_processes_were_writing_are_removed(tmp_path: Path) -> None:
    with subprocess.Popen(["true"]) as ended:
        pass
    host = process_name().partition(".")[0]
    dead = [f".{name}.{host}.{ended.pid}.tmp" for name in ("spec.json", "job.json", "0_4.failed.txt")]
    others = [f".spec.json.{process_name()}.tmp", f".spec.json.other.{ended.pid}.tmp", "notes.tmp"]
    for name in (*dead, *others):
        (tmp_path / name).touch()
    LocalStore(str(tmp_path)).tidy()
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(others)


def test_what_a_killed_process_leaves_is_is_no_shard_and_is_removed(spec: Path, made: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    command = [sys.executable, ROOT / "make_dataset.py", *arguments(spec, out, "--shards", 4)]
    for delay in (0.3, 0.5, 0.7, 0.9, 1.1):
        with subprocess.Popen(list(map(str, command)), stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL) as process:
            time.sleep(delay)
            process.send_signal(signal.SIGKILL)
        for name, digest in hashes(out).items():
            if not Path(name).name.startswith("."):
                assert digest == hashes(made)[name]
    subprocess.run(list(map(str, command)), check=True, stdout=subprocess.DEVNULL)
    assert hashes(out) == hashes(made)
    assert left(out) == {"job.json", "spec.json"}


# Where a job stands


def test_the_rate_is_that_of_the_last_hour(tmp_path: Path) -> None:
    store = LocalStore(str(tmp_path / "shards"))
    job = ShardJob("make_dataset", 100, 10, {}, {})
    claim(store, job)
    now = time.time()
    for number, age_s in enumerate((90000, 1800, 900)):
        path = tmp_path / "shards" / Shard(10 * number, 10 * number + 10).name
        path.touch()
        os.utime(path, (now - age_s, now - age_s))
    note_failure(store, Shard(50, 60), "no memory", "Traceback")
    status = status_of([store], job)
    assert (status.pairs_there, status.shards, status.missing) == (30, 3, 7)
    assert status.rate == pytest.approx(20, rel=0.01)
    assert "20 pairs an hour in the last hour; about 3:30 h left" in str(status)
    assert "1 of the missing shards: 50_60" in str(status)


def test_the_first_shard_does_not_tell_a_rate(tmp_path: Path) -> None:
    store = LocalStore(str(tmp_path / "shards"))
    job = ShardJob("make_dataset", 20, 10, {}, {})
    claim(store, job)
    (tmp_path / "shards" / "0_10.h5").touch()
    status = status_of([store], job)
    assert status.rate is None
    assert "last hour" not in str(status)


def test_a_job_that_stands_still_has_no_time_left(tmp_path: Path) -> None:
    store = LocalStore(str(tmp_path / "shards"))
    job = ShardJob("make_dataset", 20, 10, {}, {})
    claim(store, job)
    path = tmp_path / "shards" / "0_10.h5"
    path.touch()
    os.utime(path, (time.time() - 7200,) * 2)
    assert "0 pairs an hour in the last hour; nothing was made in the last hour" in str(status_of([store], job))


def test_torchrun_runs_four_tasks(script: Script, spec: Path, made: Path, tmp_path: Path) -> None:
    """Each of four processes takes its part from what torchrun says."""
    run = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", 4]
    given = [ROOT / "make_dataset.py", *arguments(spec, tmp_path / "out", "--shards", 4, "--shard")]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(list(map(str, [*run, *given])), env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert hashes(tmp_path / "out") == hashes(made)
