#!/usr/bin/env python3
"""Whether the gateway's memory stays where it is: the machine's limit, 1,000 targets and 500 long streams.

Starts simulated pods that listen on every loopback address, and the gateway with 1,000 targets, each an address of its own
and all pods with equally many of them. Opens the streams, which last longer than the run, and asks for short answers with
wrk (Debian has it) until the time is up. The store is kept so small that retention works within the first minute. Every ten
seconds it asks for a few answers itself, looks their IDs up, and prints a line; at the end it looks up the IDs of the streams
that are still open, stops the gateway, and prints a line with the verdict.

It fails (exit code 1, with each reason) when
  - resident memory in the last minute is not within 10 % of what it was in the second one, in medians, as single readings
    vary by about as much (of a shorter run: in the last quarter, and in the second),
  - a stream is refused or breaks off before the time is up,
  - wrk counts socket errors or answers other than 2xx, or none at all,
  - an ID does not resolve, an ended request's as complete and an open stream's as in flight,
  - the gateway's books do not balance when it stops.
"""

import argparse
import json
import os
import re
import selectors
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path

STEP = 10.0
"""Seconds from line to line."""
SPAN = 60.0
"""Memory has to be in the last so many seconds what it was in the second so many."""
GROWTH_MAX = 0.10
ASKED = 20
"""Answers that are asked for and looked up for each line."""
PATIENCE = 60.0
"""Seconds that a single answer, or the pods' first probe, may take on a machine at its limit."""
TOKENS_PER_SECOND = 10
ROOT = Path(__file__).resolve().parent.parent
BODY = '{"model":"llama-3.1-8b","prompt":"soak","max_tokens":1}'
LOAD = f"""wrk.method = "POST"
wrk.path = "/v1/completions"
wrk.headers["content-type"] = "application/json"
wrk.body = '{BODY}'
"""


def options():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)

    def number(name, default, help):
        parser.add_argument(name, type=type(default), default=default, metavar="N", help=f"{help} (default: %(default)s)")

    number("--seconds", 600.0, "how long it takes, 20 at least; an answer that says something takes minutes")
    number("--streams", 500, "streams that are open all the time")
    number("--connections", 64, "connections over which wrk asks for short answers")
    number("--targets", 1_000, "targets of the gateway, each an address of its own")
    number("--pods", 8, "processes behind these addresses")
    default = os.environ.get("SNAPGATE_BIN", ROOT / "target/release/snapgate")
    parser.add_argument("--binary", type=Path, default=default, metavar="FILE",
                        help="the program (default: the release build, or what SNAPGATE_BIN names)")
    chosen = parser.parse_args()
    if chosen.seconds < 2 * STEP or min(chosen.streams, chosen.connections, chosen.pods) < 1 or chosen.targets < chosen.pods:
        parser.error("it takes 20 seconds, a stream, a connection, a pod and a target for each pod at least")
    return chosen


class Processes:
    """Programs that write to one log, and that end with the run."""

    def __init__(self, binary, log):
        self.binary, self.log, self.started = binary, log, []

    def run(self, *command, **pipes):
        process = subprocess.Popen(command, **pipes)
        self.started.append(process)
        return process

    def snapgate(self, *arguments, **variables):
        """Starts it, and answers the process and the line that says which addresses were bound."""
        environment = {name: value for name, value in os.environ.items() if not name.startswith("SNAPGATE_")}
        process = self.run(self.binary, *arguments, stderr=subprocess.PIPE, text=True, env={**environment, **variables})
        for line in process.stderr:
            self.log.write(line)
            if line.startswith("{") and (event := json.loads(line)).get("event") == "listening":
                self.log.flush()
                # Whoever writes on must not be stopped by a pipe that is full.
                self.run("cat", stdin=process.stderr, stdout=self.log)
                return process, event
        self.log.flush()
        sys.exit(f"snapgate {arguments[0]} ended before it listened: {Path(self.log.name).read_text()}")

    def kill(self):
        for process in self.started:
            if process.poll() is None:
                process.kill()
                process.wait()


def port_of(address):
    return int(address.rsplit(":", 1)[1])


def resident_mib(pid):
    return int(re.search(r"VmRSS:\s+(\d+)", Path(f"/proc/{pid}/status").read_text())[1]) / 1024


class Gateway:
    """Its process, its numbers, its answers and its lookups."""

    def __init__(self, processes, directory, targets):
        self.process, event = processes.snapgate(
            "serve", "--listen", "127.0.0.1:0", "--admin", "127.0.0.1:0", "--data-dir", str(directory / "data"),
            SNAPGATE_TARGETS=",".join(targets), SNAPGATE_STORE_RETENTION_BYTES="64MiB", SNAPGATE_STORE_BALLAST_BYTES="0")
        self.listen, self.admin = event["listen"], event["admin"]
        deadline = time.monotonic() + PATIENCE
        while self.healthy() < len(targets):
            if time.monotonic() > deadline:
                sys.exit(f"{self.healthy()} of {len(targets)} targets are healthy after {PATIENCE:.0f} s")
            time.sleep(0.5)

    def healthy(self):
        with urllib.request.urlopen(f"http://{self.admin}/v1/fleet", timeout=PATIENCE) as page:
            return sum(target["health"] == "healthy" for target in json.load(page)["targets"])

    def samples(self):
        with urllib.request.urlopen(f"http://{self.admin}/metrics", timeout=PATIENCE) as page:
            lines = page.read().decode().splitlines()
        return {name: float(value) for name, value in (line.rsplit(" ", 1) for line in lines if not line.startswith("#"))}

    def ask(self):
        """Asks for a short answer, and answers its ID."""
        headers = {"content-type": "application/json"}
        request = urllib.request.Request(f"http://{self.listen}/v1/completions", BODY.encode(), headers)
        with urllib.request.urlopen(request, timeout=PATIENCE) as answer:
            answer.read()
            return answer.headers["x-snapshot-id"]

    def unresolved(self, ids, phase):
        """How many of these IDs do not resolve to a record in this phase, which ended ones get a second to reach."""
        wait = "1s" if phase == "complete" else "0s"
        url = f"http://{self.admin}/v1/snapshots/resolve?format=ndjson&shape=flat&wait={wait}"
        request = urllib.request.Request(url, "\n".join(ids).encode(), {"content-type": "text/plain"})
        with urllib.request.urlopen(request, timeout=PATIENCE) as answer:
            rows = [json.loads(line) for line in answer]
        resolved = {row["key"] for row in rows if row["state"] == "found" and row["phase"] == phase}
        return len(set(ids) - resolved)

    def stop(self):
        self.process.send_signal(signal.SIGTERM)


class Streams:
    """Streams that are read as they come; of what was read only the IDs are kept."""

    def __init__(self, address, count, seconds):
        self.selector, self.ids, self.heads, self.broken = selectors.DefaultSelector(), [], {}, 0
        tokens = int((seconds + 4 * PATIENCE) * TOKENS_PER_SECOND)
        head = f"POST /v1/completions HTTP/1.1\r\nhost: soak\r\ncontent-type: application/json\r\nx-sim-tokens: {tokens}\r\n"
        body = BODY.replace('"max_tokens":1', f'"max_tokens":{tokens},"stream":true')
        for _ in range(count):
            connection = socket.create_connection(address)
            connection.sendall(f"{head}content-length: {len(body)}\r\n\r\n{body}".encode())
            connection.setblocking(False)
            self.selector.register(connection, selectors.EVENT_READ)
            self.heads[connection] = b""
        deadline = time.monotonic() + PATIENCE
        while self.heads and time.monotonic() < deadline:
            self.read_for(0.2)
        # One without a head by now is none.
        self.broken += len(self.heads)

    def open(self):
        return len(self.selector.get_map())

    def read_for(self, seconds):
        end = time.monotonic() + seconds
        while (left := end - time.monotonic()) > 0:
            for key, _ in self.selector.select(min(left, 0.2)):
                self.read(key.fileobj)

    def read(self, connection):
        try:
            piece = connection.recv(1 << 16)
        except OSError:
            piece = b""
        if connection in self.heads:
            self.heads[connection] += piece
            head, end, _ = self.heads[connection].partition(b"\r\n\r\n")
            if end:
                del self.heads[connection]
                found = re.search(rb"(?i)\r\nx-snapshot-id: *([0-9a-f]{32})", head)
                if found and head.startswith(b"HTTP/1.1 200"):
                    self.ids.append(found[1].decode())
                else:
                    piece = b""
        if not piece:
            self.heads.pop(connection, None)
            self.selector.unregister(connection)
            connection.close()
            self.broken += 1


class Wrk:
    """wrk, and what it says in the end."""

    def __init__(self, processes, directory, listen, chosen):
        script, self.report = directory / "load.lua", directory / "wrk"
        script.write_text(LOAD)
        with open(self.report, "w") as report:
            self.process = processes.run(
                "wrk", "-t2", f"-c{chosen.connections}", f"-d{int(chosen.seconds) + 5}s", f"--timeout={PATIENCE:.0f}s",
                "-s", str(script), f"http://{listen}", stdout=report, stderr=report)

    def faults(self):
        """What it counted that must not be; waits for its end."""
        status, report = self.process.wait(), self.report.read_text()
        total = re.search(r"(\d+) requests in", report)
        faults = [line.strip() for line in report.splitlines() if re.match(r"\s*(Socket errors|Non-2xx)", line)]
        if status != 0 or not total or int(total[1]) == 0:
            faults.append(f"it ended with {status}: {report.strip()}")
        return [f"wrk: {fault}" for fault in faults]


def watch(gateway, streams, seconds):
    """Prints a line every ten seconds; answers resident memory by time, and how many IDs did not resolve."""
    begun = before = time.monotonic()
    asked, unresolved, sizes = None, 0, []
    print(f"{'seconds':>8} {'resident MiB':>13} {'requests/s':>11} {'streams':>8} {'store MiB':>10} {'records deleted':>16} "
          f"{'IDs unresolved':>15}")
    while (left := begun + seconds - time.monotonic()) > STEP / 2 or not sizes:
        streams.read_for(min(STEP, left))
        unresolved += gateway.unresolved([gateway.ask() for _ in range(ASKED)], "complete")
        samples, now, resident = gateway.samples(), time.monotonic(), resident_mib(gateway.process.pid)
        offered = samples.get('snapgate_snapshots_offered_total{exit="store"}', 0.0)
        store, deleted = samples["snapgate_store_bytes"] / 2**20, samples.get("snapgate_snapshots_expired_total", 0)
        rate = (offered - (asked or 0.0)) / (now - before)
        print(f"{now - begun:8.0f} {resident:13.1f} {rate:11.0f} {streams.open():8} {store:10.1f} {deleted:16.0f} "
              f"{unresolved:15}", flush=True)
        sizes.append((now - begun, resident))
        before, asked = now, offered
    return sizes, unresolved


def unbalanced(log):
    """What is wrong with the closing line of the gateway."""
    lines = [line for line in log.read_text().splitlines() if '"event":"stopped"' in line]
    if not lines:
        return ["the gateway did not say that it stopped"]
    balance = json.loads(lines[-1])
    print(json.dumps(balance))
    return [] if balance["offered"] == balance["stored"] + balance["dropped"] else ["the books do not balance"]


def soak(directory, chosen, processes):
    """Runs it all; answers the reasons to fail."""
    ports = [port_of(processes.snapgate("sim", "--listen", "0.0.0.0:0", "--name", f"pod-{pod}", "--ttft", "1ms", "--token-time",
                                        f"{1000 // TOKENS_PER_SECOND}ms", "--capacity", "1000000", "--kv-blocks", str(1 << 24))
                     [1]["listen"]) for pod in range(chosen.pods)]
    gateway = Gateway(processes, directory, [
        f"t{number}=http://127.0.{1 + number // 250}.{1 + number % 250}:{ports[number % chosen.pods]}"
        for number in range(chosen.targets)])
    streams = Streams(("127.0.0.1", port_of(gateway.listen)), chosen.streams, chosen.seconds)
    wrk = Wrk(processes, directory, gateway.listen, chosen)
    sizes, unresolved = watch(gateway, streams, chosen.seconds)
    faults = wrk.faults()
    streams.read_for(1)
    broken = streams.broken
    if broken:
        faults.append(f"{broken} of {chosen.streams} streams were refused or broke off")
    unresolved += gateway.unresolved(streams.ids, "in_flight")
    if unresolved:
        faults.append(f"{unresolved} IDs did not resolve")
    gateway.stop()
    while gateway.process.poll() is None:
        streams.read_for(1)
    faults += unbalanced(directory / "log")
    span = min(SPAN, chosen.seconds / 4)
    later, readings = [size for at, size in sizes if at >= span], max(1, round(span / STEP))
    first, last = statistics.median(later[:readings]), statistics.median(later[-readings:])
    if abs(last / first - 1) > GROWTH_MAX:
        faults.append(f"resident memory in the last {span:.0f} s is not within {GROWTH_MAX:.0%} of that after {span:.0f} s")
    for fault in faults:
        print(f"failed: {fault}")
    print(f"{'failed' if faults else 'passed'}: resident memory {first:.1f} MiB after {span:.0f} s and {last:.1f} MiB at the end "
          f"({last / first - 1:+.1%}), {broken} of {chosen.streams} streams broken, {unresolved} IDs unresolved")
    return faults


def run(name, binary, work):
    """Does the work in a directory of its own, which goes with it as do the processes it has started; answers the exit code."""
    with tempfile.TemporaryDirectory(prefix=f"snapgate-{name}-") as directory, open(Path(directory) / "log", "a") as log:
        processes = Processes(binary, log)
        try:
            return 1 if work(Path(directory), processes) else 0
        finally:
            processes.kill()


if __name__ == "__main__":
    chosen = options()
    sys.exit(run("soak", chosen.binary, lambda directory, processes: soak(directory, chosen, processes)))
