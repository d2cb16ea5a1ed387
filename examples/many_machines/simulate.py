"""How long do many machines take for a queue of units, if some of them are taken away, and some stall?

    python examples/many_machines/simulate.py --workers 100 --units 62500 --unit_seconds 16 --preemptions 0.05

A worker leases a unit, renews the lease after every third of it while it works, and takes the next unit in the end. A
worker that is taken away says nothing: its unit can be had again when the lease has run out. The same happens if a
worker stalls for longer than its lease lasts. But that worker goes on later, and then the unit may be done twice.
"""

import argparse
import heapq
import math
import random
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from statistics import fmean

STRAGGLER = 10.0  # a straggler takes so many times as long
HOUR = 3600.0


@dataclass(frozen=True)
class Options:
    """What is simulated. Times are in seconds, rates are per hour in which one worker works.

    unit_s: a unit takes so long in the mean. spread: the sigma of the lognormal distribution around it, 0 for none.
    stragglers: the fraction of attempts that take ten times as long. preemptions: how often a worker is taken away.
    replace_s: the time until another machine takes its place; start_s: the time until a new worker takes a unit.
    stalls, stall_s: how often a worker stops for a while and does not even renew, and for how long in the mean.
    """

    workers: int = 100
    units: int = 1000
    unit_s: float = 60.0
    lease_s: float = 120.0
    spread: float = 0.0
    stragglers: float = 0.0
    preemptions: float = 0.0
    replace_s: float = 0.0
    start_s: float = 0.0
    stalls: float = 0.0
    stall_s: float = 0.0


@dataclass(frozen=True)
class Attempt:
    """What becomes of a unit in the hands of one worker. Times count from when it took the unit.

    work_s: how long it works, the stalls not counted. expires: when the lease runs out while nobody has finished.
    """

    end: float
    is_finished: bool
    work_s: float
    expires: float | None
    renewals: int


@dataclass(frozen=True)
class Outcome:
    """How a job went.

    lost: the fraction of the machines' time in which no unit was made for the first time. twice: how often a worker
    began a unit that another one was still at. requests: those that leased, renewed and deleted units.
    """

    seconds: float
    lost: float
    twice: int
    preempted: int
    requests: int


def attempt(options: Options, rng: random.Random) -> Attempt:
    """One worker's try at one unit."""
    mu = math.log(options.unit_s) - options.spread**2 / 2  # the mean of the lognormal is then unit_s
    work_s = rng.lognormvariate(mu, options.spread) * (STRAGGLER if rng.random() < options.stragglers else 1)
    stalls, end = [], work_s
    begin = _wait(options.stalls, rng)
    while begin < end:
        length = rng.expovariate(1 / options.stall_s) if options.stall_s else 0.0
        stalls.append((begin, begin + length))
        end += length
        begin += length + _wait(options.stalls, rng)
    taken_away = _wait(options.preemptions, rng)
    is_finished = end <= taken_away
    end = min(end, taken_away)
    renewed, renewals = 0.0, 0
    while (at := _after_stalls(renewed + options.lease_s / 3, stalls)) < min(end, renewed + options.lease_s):
        renewed, renewals = at, renewals + 1
    expires = renewed + options.lease_s
    return Attempt(end, is_finished, work_s, expires if expires < end or not is_finished else None, renewals)


def _wait(rate: float, rng: random.Random) -> float:
    """The seconds until what happens at this rate an hour happens next."""
    return rng.expovariate(rate / HOUR) if rate else math.inf


def _after_stalls(at: float, stalls: Sequence[tuple[float, float]]) -> float:
    return next((end for begin, end in stalls if begin <= at < end), at)


@dataclass
class _Job:
    """A job on its way. An event is a time, a number that orders events of the same time, and what happens."""

    options: Options
    rng: random.Random
    waiting: list[int] = field(default_factory=list)
    at_work: set[int] = field(default_factory=set)
    idle: int = 0
    done: set[int] = field(default_factory=set)
    events: list[tuple[float, int, str, int, float]] = field(default_factory=list)
    count: int = 0
    useful_s: float = 0.0
    twice: int = 0
    preempted: int = 0
    requests: int = 0

    def put(self, time: float, what: str, unit: int = -1, work_s: float = 0.0) -> None:
        self.count += 1
        heapq.heappush(self.events, (time, self.count, what, unit, work_s))

    def run(self) -> Outcome:
        """Let one event after the other happen, until the last unit is done."""
        self.waiting.extend(range(self.options.units))
        for _ in range(self.options.workers):
            self.put(self.options.start_s, "free")
        now = 0.0
        while len(self.done) < self.options.units:
            now, _, what, unit, work_s = heapq.heappop(self.events)
            if what == "finished":
                self.finish(unit, work_s)
            elif what == "expired" and unit not in self.done:
                self.waiting.append(unit)
            self.idle += what in ("free", "finished")
            while self.idle and self.waiting:
                self.idle -= 1
                self.take(now, self.pick())
        lost = 1 - self.useful_s / (now * self.options.workers)
        return Outcome(now, lost, self.twice, self.preempted, self.requests)

    def finish(self, unit: int, work_s: float) -> None:
        self.useful_s += 0.0 if unit in self.done else work_s
        self.done.add(unit)
        self.requests += 1  # the unit is deleted from the queue

    def pick(self) -> int:
        """Any unit that waits: these queues keep no order."""
        place = self.rng.randrange(len(self.waiting))
        self.waiting[place], self.waiting[-1] = self.waiting[-1], self.waiting[place]
        return self.waiting.pop()

    def take(self, now: float, unit: int) -> None:
        """A worker leases a unit, and looks whether its shard is there already."""
        self.requests += 1
        if unit in self.done:
            self.put(now, "free")
            return
        tried = attempt(self.options, self.rng)
        self.requests += tried.renewals
        self.twice += unit in self.at_work
        if tried.expires is not None:
            self.put(now + tried.expires, "expired", unit)
        if tried.is_finished:
            self.at_work.add(unit)
            self.put(now + tried.end, "finished", unit, tried.work_s)
        else:
            self.preempted += 1
            self.put(now + tried.end + self.options.replace_s + self.options.start_s, "free")


def simulate(options: Options, seed: int = 0) -> Outcome:
    """One job, from the first lease to the last unit. The same seed gives the same job."""
    return _Job(options, random.Random(seed)).run()


def table(options: Options, leases: Sequence[float], runs: int) -> Iterator[str]:
    """A line for each length of the lease, with the means of some jobs, and the longest of them."""
    yield "  lease   hours  longest   lost  taken away  twice  requests a unit"
    for lease in leases:
        done = [simulate(replace(options, lease_s=lease), seed) for seed in range(runs)]
        hours = [each.seconds / HOUR for each in done]
        yield (
            f"{lease:>5.0f} s {fmean(hours):>7.2f} {max(hours):>8.2f} {fmean(each.lost for each in done):>6.1%}"
            f" {fmean(each.preempted for each in done):>11.1f} {fmean(each.twice for each in done):>6.1f}"
            f" {fmean(each.requests for each in done) / options.units:>16.2f}"
        )


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--workers", type=int, default=100, help="machines, or GPUs (100)")
    made.add_argument("--units", type=int, default=1000, help="shards to make (1000)")
    made.add_argument("--unit_seconds", type=float, default=60, help="mean time of a unit (60)")
    made.add_argument("--spread", type=float, default=0.3, help="sigma of its lognormal distribution (0.3)")
    made.add_argument("--stragglers", type=float, default=0.001, help="fraction that takes ten times as long (0.001)")
    made.add_argument("--preemptions", type=float, default=0.05, help="per worker and hour (0.05)")
    made.add_argument("--replace_seconds", type=float, default=120, help="until another machine is there (120)")
    made.add_argument("--start_seconds", type=float, default=30, help="until its worker takes a unit (30)")
    made.add_argument("--stalls", type=float, default=0.05, help="per worker and hour (0.05)")
    made.add_argument("--stall_seconds", type=float, default=60, help="mean time of a stall (60)")
    made.add_argument("--leases", type=float, nargs="+", default=[15, 60, 300, 1800, 7200], help="seconds")
    made.add_argument("--runs", type=int, default=10, help="jobs for each line (10)")
    return made


def main(arguments: Sequence[str] | None = None) -> int:
    args = parser().parse_args(arguments)
    options = Options(
        workers=args.workers,
        units=args.units,
        unit_s=args.unit_seconds,
        spread=args.spread,
        stragglers=args.stragglers,
        preemptions=args.preemptions,
        replace_s=args.replace_seconds,
        start_s=args.start_seconds,
        stalls=args.stalls,
        stall_s=args.stall_seconds,
    )
    for line in table(options, args.leases, args.runs):
        print(line)
    return 0


if __name__ == "__main__":
    sys.exit(main())
