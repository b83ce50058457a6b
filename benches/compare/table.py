"""Rounds, what follows from them, and how it is shown."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from statistics import median
from typing import Any, Callable

from load import Load
from subjects import KINDS, Books

SATURATED = 0.95
"""A single-threaded load generator this busy is the limit, not what it measures."""

LATE_SECONDS = 1.0
"""A subject that writes this long after the load has put off work that its requests per second do not show."""

FOREIGN_CORES = 0.2
"""More cores than this used by others in a typical round, and the numbers are not to be trusted."""


@dataclass(frozen=True)
class Round:
    """One subject under load once. CPU times are of the whole process tree, in seconds, until all was written."""

    subject: str
    number: int
    load: Load
    books: Books
    proxy_cpu_seconds: float
    backend_cpu_seconds: float
    foreign_cores: float
    """Cores that were busy with neither the subject, the backend nor the load: idle subjects, the kernel, others."""

    @property
    def cpu_us(self) -> float:
        """The proxy's CPU time per request."""
        return self.proxy_cpu_seconds / self.load.requests * 1e6


@dataclass(frozen=True)
class FailedRound:
    """A round without numbers. Number 0 is the one to warm up."""

    subject: str
    number: int
    reason: str


@dataclass(frozen=True)
class Row:
    """One subject's line of the table. Threes are median, least and most over the rounds."""

    subject: str
    rounds: int
    failed: int
    per_second: tuple[float, float, float]
    ratio: tuple[float, float, float] | None
    """Of requests per second to the baseline's in the same round."""
    p50_us: float
    p99_us: float
    cpu_us: float
    cpu_ratio: float | None
    backend_cpu_us: float
    load_cpu_us: float
    load_busy: float
    foreign_cores: float
    settle_seconds: float
    dropped: dict[str, int]


def summarise(rounds: list[Round], failed: list[FailedRound], subjects: list[str]) -> list[Row]:
    """One row for each subject that has a good round."""
    baseline = baseline_of(subjects)
    base = {each.number: each for each in rounds if each.subject == baseline}
    rows = []
    for subject in subjects:
        if good := [each for each in rounds if each.subject == subject]:
            rows.append(_row(subject, good, sum(each.subject == subject for each in failed), base))
    return rows


def baseline_of(subjects: list[str]) -> str:
    """What the others are divided by: nginx, or without it the first."""
    return "nginx" if "nginx" in subjects else subjects[0]


def _row(subject: str, good: list[Round], failed: int, base: dict[int, Round]) -> Row:
    pairs = [(each, base[each.number]) for each in good if each.number in base]
    speed = [mine.load.per_second / other.load.per_second for mine, other in pairs]
    cost = [mine.cpu_us / other.cpu_us for mine, other in pairs if other.cpu_us > 0]
    dropped: dict[str, int] = {}
    for each in good:
        for reason, count in each.books.dropped.items():
            dropped[reason] = dropped.get(reason, 0) + count

    def middle(value: Callable[[Round], float]) -> float:
        return median(value(each) for each in good)

    return Row(
        subject=subject,
        rounds=len(good),
        failed=failed,
        per_second=_spread([each.load.per_second for each in good]),
        ratio=_spread(speed) if speed else None,
        p50_us=middle(lambda each: each.load.p50_us),
        p99_us=middle(lambda each: each.load.p99_us),
        cpu_us=middle(lambda each: each.cpu_us),
        cpu_ratio=median(cost) if cost else None,
        backend_cpu_us=middle(lambda each: each.backend_cpu_seconds / each.load.requests * 1e6),
        load_cpu_us=middle(lambda each: each.load.cpu_seconds / each.load.requests * 1e6),
        load_busy=middle(lambda each: each.load.cpu_seconds / each.load.seconds),
        foreign_cores=middle(lambda each: each.foreign_cores),
        settle_seconds=middle(lambda each: each.books.settle_seconds),
        dropped=dropped,
    )


def _spread(values: list[float]) -> tuple[float, float, float]:
    return median(values), min(values), max(values)


def markdown(rows: list[Row], baseline: str) -> str:
    """The two tables: what was measured, and what it cost around it."""
    lines = [
        f"| subject | requests/s (min–max) | ratio to {baseline} (min–max) | p50 | p99 | CPU/request | ratio of CPU |",
        "|---|---:|---:|---:|---:|---:|---:|",
    ]
    for row in rows:
        ratio = "–" if row.ratio is None else f"{row.ratio[0]:.2f} ({row.ratio[1]:.2f}–{row.ratio[2]:.2f})"
        cpu_ratio = "–" if not row.cpu_ratio else f"{row.cpu_ratio:.2f}"
        speed = f"{row.per_second[0]:,.0f} ({row.per_second[1]:,.0f}–{row.per_second[2]:,.0f})"
        times = f"{row.p50_us / 1000:.2f} ms | {row.p99_us / 1000:.2f} ms"
        cpu = f"{row.cpu_us:.1f} µs" if row.cpu_us else "–"
        lines.append(f"| {row.subject} | {speed} | {ratio} | {times} | {cpu} | {cpu_ratio} |")
    lines += [
        "",
        "| around it | rounds | backend CPU/request | wrk CPU/request | wrk's core busy | other cores busy | settled after |",
        "|---|---:|---:|---:|---:|---:|---:|",
    ]
    for row in rows:
        costs = (
            f"{row.backend_cpu_us:.1f} µs | {row.load_cpu_us:.1f} µs | {row.load_busy:.0%} | {row.foreign_cores:.2f}"
        )
        lines.append(f"| {row.subject} | {row.rounds} | {costs} | {row.settle_seconds:.1f} s |")
    return "\n".join(lines)


def remarks(rows: list[Row], failed: list[FailedRound], baseline: str) -> list[str]:
    """What a reader must know before believing the table, and whether the goals are met."""
    said = [f"FAILED: {each.subject}, round {each.number}: {each.reason}" for each in failed]
    for row in rows:
        for reason, count in row.dropped.items():
            said.append(f"{row.subject} dropped {count:,} records over all rounds: {reason}")
        if row.load_busy > SATURATED:
            said.append(f"{row.subject}: wrk used {row.load_busy:.0%} of its one core and was itself the limit")
        if row.settle_seconds > LATE_SECONDS:
            said.append(
                f"{row.subject} wrote for {row.settle_seconds:.1f} s after the load: its requests/s flatter it; "
                "its CPU per request does not; use longer rounds"
            )
        if row.foreign_cores > FOREIGN_CORES:
            said.append(
                f"{row.subject}: {row.foreign_cores:.2f} cores were busy with something else; make the machine quiet"
            )
    if baseline != "nginx":
        return said
    for row in rows:
        goal = KINDS[row.subject].goal
        if goal is not None and row.ratio is not None:
            met = row.ratio[0] >= goal and not row.dropped and not row.failed
            said.append(f"goal: {row.subject} at {goal} of nginx: {row.ratio[0]:.2f}, {'met' if met else 'NOT MET'}")
    return said


def as_json(rows: list[Row], rounds: list[Round], failed: list[FailedRound]) -> dict[str, list[dict[str, Any]]]:
    """Everything, for later."""
    return {
        name: [asdict(each) for each in some]
        for name, some in (("summary", rows), ("rounds", rounds), ("failed", failed))
    }
