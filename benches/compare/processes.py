"""Processes that the comparison starts: each is ended again, and its CPU time is known."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

STOP_SECONDS = 15.0
"""How long a process may take to end by itself: snapgate drains its queue."""

LOG_TAIL_BYTES = 3000
"""How much of a process's output is shown when it failed."""


class Failure(Exception):
    """Something that makes a measurement impossible or worthless; the text says what to do."""


class Signals:
    """SIGINT, SIGTERM and SIGHUP end the program, but not between starting something and remembering it."""

    def __init__(self) -> None:
        self._depth = 0
        self._pending: int | None = None

    def install(self) -> None:
        """From now on a signal raises SystemExit in the main thread."""
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, self._came)

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """A signal that comes in this block takes effect after it."""
        self._depth += 1
        try:
            yield
        finally:
            self._depth -= 1
            self._act()

    def _came(self, number: int, _frame: object) -> None:
        self._pending = number
        self._act()

    def _act(self) -> None:
        if self._depth == 0 and self._pending is not None:
            number, self._pending = self._pending, None
            raise SystemExit(128 + number)


signals = Signals()
"""There is one for the process, as there is one set of handlers."""


class Process:
    """A process in a session of its own, with its output in a file of its own directory."""

    def __init__(self, name: str, command: list[str], directory: Path, environment: dict[str, str] | None = None):
        self.name = name
        self.output = directory / "output.log"
        with open(self.output, "wb") as output:
            self._child = subprocess.Popen(
                command,
                cwd=directory,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self.pid = self._child.pid

    def check(self) -> None:
        """Fails if the process has ended."""
        if self._has_ended():
            raise Failure(f"{self.name} has ended by itself; its last words:\n{self.last_words()}")

    def last_words(self) -> str:
        """The end of its output."""
        with open(self.output, "rb") as output:
            output.seek(max(0, self.output.stat().st_size - LOG_TAIL_BYTES))
            return output.read().decode(errors="replace").strip() or "(none)"

    def stop(self) -> None:
        """Ends it and whatever it has started, first politely."""
        if self._child.returncode is not None:
            return
        if not self._has_ended():
            os.kill(self.pid, signal.SIGTERM)
        deadline = time.monotonic() + STOP_SECONDS
        while not self._has_ended() and time.monotonic() < deadline:
            time.sleep(0.02)
        # Until it is waited for, its number cannot belong to anybody else: this reaches its own session only.
        with contextlib.suppress(ProcessLookupError):  # nobody left in it
            os.killpg(self.pid, signal.SIGKILL)
        self._child.wait()

    def _has_ended(self) -> bool:
        """Whether it has ended. Leaves it to be waited for, so that its number stays reserved."""
        if self._child.returncode is not None:
            return True
        return os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None


def run_bounded(command: list[str], seconds: float, environment: dict[str, str] | None = None) -> tuple[int, str]:
    """Runs a command to its end, or to ours. Answers its exit code and all it printed."""
    child = None
    try:
        with signals.held():
            child = subprocess.Popen(
                command,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                errors="replace",
            )
        output, _ = child.communicate(timeout=seconds)
        return child.returncode, output
    except subprocess.TimeoutExpired:
        raise Failure(f"{command[0]} did not end within {seconds:.0f} s") from None
    finally:
        if child is not None and child.returncode is None:
            child.kill()
            child.wait()


def cpu_seconds(roots: list[int]) -> dict[int, float]:
    """CPU time so far, user and system, of each of these processes with all threads and descendants.

    Children that have ended count where they were waited for. The kernel's resolution is a tick, mostly 10 ms.
    """
    tick = os.sysconf("SC_CLK_TCK")
    used: dict[int, float] = {}
    parents: dict[int, int] = {}
    for entry in os.listdir("/proc"):
        if not entry.isdigit():
            continue
        try:
            stat = Path("/proc", entry, "stat").read_bytes()
        except (FileNotFoundError, ProcessLookupError):
            continue  # it ended while we looked
        # The name in parentheses may hold anything; fields are counted after it, from the third.
        fields = stat[stat.rindex(b")") + 2 :].split()
        parents[int(entry)] = int(fields[1])
        used[int(entry)] = sum(int(field) for field in fields[11:15]) / tick
    totals = dict.fromkeys(roots, 0.0)
    for pid, seconds in used.items():
        ancestor = pid
        while ancestor in parents and ancestor not in totals:
            ancestor = parents[ancestor]
        if ancestor in totals:
            totals[ancestor] += seconds
    return totals


def machine_cpu_seconds() -> float:
    """CPU time the whole machine has used so far, without idle, waiting and stolen time."""
    fields = [int(field) for field in Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:]]
    user, nice, system, _idle, _iowait, irq, softirq = fields[:7]
    return (user + nice + system + irq + softirq) / os.sysconf("SC_CLK_TCK")


def free_ports(count: int) -> list[int]:
    """Loopback ports nobody listens on. All are held until all are known, so that they differ."""
    sockets = [socket.socket() for _ in range(count)]
    try:
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]
    finally:
        for each in sockets:
            each.close()


def render(template: Path, values: dict[str, str]) -> str:
    """The template with each @NAME@ replaced. Every value must have its place."""
    text = template.read_text()
    for name, value in values.items():
        if f"@{name}@" not in text:
            raise ValueError(f"{template.name} has no @{name}@")
        text = text.replace(f"@{name}@", value)
    return text


def start_nginx(name: str, program: str, directory: Path, configuration: str) -> Process:
    """nginx with everything it writes in `directory`."""
    path = directory / "nginx.conf"
    path.write_text(configuration)
    return Process(name, [program, "-p", str(directory), "-c", str(path), "-e", "stderr"], directory)


def nginx_user() -> str:
    """Workers of an nginx started by root would be nobody, who may not read our directory."""
    return "user root;" if os.geteuid() == 0 else "# workers run as whoever runs this"
