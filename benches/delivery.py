#!/usr/bin/env python3
"""Whether every exit gets every snapshot, and whether clients notice when one cannot.

Starts simulated pods, a gateway with store, JSON log and OTLP, and a receiver made of OpenTelemetry's own messages that
misbehaves as it is told to; sends requests at a fixed rate with wrk (Debian has it). Time goes in windows: in every other one
the receiver misbehaves. Each second the gateway's books are read from /metrics, and must balance. In the end, once no exit has
anything left, the IDs of the receiver's spans, of the JSON log's lines and of the store's rows are held against each other.

It fails (exit code 1, with each reason) when
  - the books of an exit do not balance, at rest or under way,
  - an ID is in one place and not in another, unless the receiver refused it for good,
  - an exit has not delivered everything within a minute after the receiver is well again,
  - wrk counts socket errors or answers other than 2xx.

Needs what tests/requirements.txt names: target/python/bin/python benches/delivery.py.
"""

import argparse
import json
import os
import re
import signal
import sqlite3
import statistics
import sys
import threading
import time
import urllib.request
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path += [str(ROOT / "tests" / "otlp")]

from opentelemetry.proto.trace.v1.trace_pb2 import Span  # noqa: E402
from receiver import Answer, Receiver, free_port, receiving  # noqa: E402
from soak import port_of, resident_mib, run  # noqa: E402

FAULTS = {
    "none": Answer(),
    "dead": None,
    "slow": Answer(after=1.0),
    "429": Answer(status=429, retry_after=1),
    "503": Answer(status=503),
    "400": Answer(status=400),
    "partial": Answer(rejected=1),
    "closing": Answer(close=True),
}
"""What the receiver does in every other window."""
REFUSED_FOR_GOOD = {"400", "partial"}
PATIENCE = 60.0
"""Seconds that exits have to deliver the rest once the receiver is well."""
CONNECTIONS = 64
BODY = '{"model":"llama-3.1-8b","messages":[{"role":"user","content":"delivery"}],"max_tokens":1}'
# Requests are due at fixed times, whatever the answers do; each connection takes the next that is due.
LOAD = """local ffi = require("ffi")
ffi.cdef("typedef struct { long s; long ns; } span; int clock_gettime(int, span*);")
local now_is = ffi.new("span")
local function now() ffi.C.clock_gettime(1, now_is); return tonumber(now_is.s) * 1e3 + tonumber(now_is.ns) / 1e6 end
local due, every = nil, 1000 / RATE
wrk.method, wrk.path = "POST", "/v1/chat/completions"
wrk.headers["content-type"] = "application/json"
wrk.body = 'BODY'
function delay()
   local at = now()
   due = math.max((due or at) + every, at - 1000)
   return math.max(0, math.floor(due - at + 0.5))
end
function done(summary, latency)
   local errors = summary.errors
   io.write(string.format('RESULT %d %d %d %d\\n', summary.requests, latency:percentile(50), latency:percentile(99),
      errors.connect + errors.read + errors.write + errors.timeout + errors.status))
end
"""


def options():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--fault", choices=FAULTS, default="none", help="what the receiver does (default: %(default)s)")
    parser.add_argument("--kill", action="store_true", help="kill the gateway in the middle of every other window, and start it again")
    parser.add_argument("--rate", type=int, default=5_000, metavar="N", help="requests per second (default: %(default)s)")
    parser.add_argument("--window", type=int, default=30, metavar="S", help="seconds of a window (default: %(default)s)")
    parser.add_argument("--windows", type=int, default=2, metavar="N", help="how many windows (default: %(default)s)")
    default = os.environ.get("SNAPGATE_BIN", ROOT / "target/release/snapgate")
    parser.add_argument("--binary", type=Path, default=default, metavar="FILE",
                        help="the program (default: the release build, or what SNAPGATE_BIN names)")
    return parser.parse_args()


class Ids(Receiver):
    """Keeps the snapshot IDs of the spans of requests that it took, and no spans."""

    dead = False

    def traces(self, request, size, headers):
        if self.dead:
            # Ends the thread of a connection that is still open, and with it the connection.
            sys.exit()
        spans = [span for of_resource in request.resource_spans for scope in of_resource.scope_spans for span in scope.spans]
        answer = self.answer(spans, size, headers)
        if answer.status == 200:
            # Each attempt's span names the snapshot, too.
            for span in (span for span in spans if span.kind == Span.SPAN_KIND_SERVER):
                for pair in span.attributes:
                    if pair.key == "snapgate.snapshot.id":
                        self.seen[pair.value.string_value] += 1
                        break
        return answer


class Gateway:
    """Its process, which may be another one later on the same data."""

    def __init__(self, processes, directory, targets, endpoint):
        self.processes, self.directory, self.listen = processes, directory, f"127.0.0.1:{free_port()}"
        self.arguments = ["serve", "--listen", self.listen, "--admin", "127.0.0.1:0", "--data-dir", str(directory / "data"),
                          "--json-log", str(directory / "snapshots.jsonl"), "--otlp", endpoint]
        self.targets = ",".join(targets)
        self.start()

    def start(self):
        self.process, event = self.processes.snapgate(*self.arguments, SNAPGATE_TARGETS=self.targets,
                                                      SNAPGATE_OTLP_PROTOCOL="http/protobuf", SNAPGATE_JSON_LOG_KEEP="100")
        self.admin = event["admin"]

    def kill(self):
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()

    def books(self):
        """Of each exit what came in, what went out, and what is still to go."""
        with urllib.request.urlopen(f"http://{self.admin}/metrics", timeout=PATIENCE) as page:
            samples = re.findall(r'^snapgate_snapshots_(\w+)\{exit="(\w+)"[^}]*\} (\S+)', page.read().decode(), re.M)
        exits = {}
        for name, exit, value in samples:
            sums = exits.setdefault(exit, {})
            sums[name] = sums.get(name, 0) + int(float(value))
        return exits

    def unbalanced(self):
        def gap(of):
            come = of.get("offered_total", 0) + of.get("recovered_total", 0)
            gone = sum(of.get(f"{word}_total", 0) for word in ["delivered", "rejected", "dropped", "skipped"])
            return come - gone - of.get("pending", 0)
        return {exit: of for exit, of in self.books().items() if gap(of) != 0}

    def pending(self):
        return sum(of.get("pending", 0) for of in self.books().values())

    def settled(self):
        """Waits until nothing is pending and nothing more comes; answers what is pending when the patience ends."""
        deadline, before = time.monotonic() + PATIENCE, None
        while time.monotonic() < deadline:
            books = self.books()
            if books == before and not any(of.get("pending", 0) for of in books.values()):
                return 0
            before = books
            time.sleep(0.5)
        return self.pending()


class Watch(threading.Thread):
    """Looks at the books and the memory of the gateway each second."""

    def __init__(self, gateway):
        super().__init__(daemon=True)
        self.gateway, self.faults, self.looks, self.most, self.over = gateway, [], 0, 0.0, threading.Event()

    def run(self):
        while not self.over.wait(1):
            try:
                unbalanced = self.gateway.unbalanced()
                self.most = max(self.most, resident_mib(self.gateway.process.pid))
            except (OSError, TypeError):
                # It was killed and is not there again yet.
                continue
            self.looks += 1
            if unbalanced:
                self.faults.append(f"books under way: {unbalanced}")


def window(processes, directory, gateway, chosen, kill):
    """One window of load; answers requests, p50 and p99 in microseconds, and errors."""
    script, report = directory / "load.lua", directory / "wrk"
    script.write_text(LOAD.replace("RATE", str(chosen.rate)).replace("BODY", BODY))
    with open(report, "w") as out:
        wrk = processes.run("wrk", "-t1", f"-c{CONNECTIONS}", f"-d{chosen.window}s", "-s", str(script),
                            f"http://{gateway.listen}", stdout=out, stderr=out)
        if kill:
            time.sleep(chosen.window / 2)
            gateway.kill()
            gateway.start()
        wrk.wait()
    found = re.search(r"^RESULT (\d+) (\d+) (\d+) (\d+)$", report.read_text(), re.M)
    if not found:
        sys.exit(f"wrk: {report.read_text()}")
    return [int(number) for number in found.groups()]


def deliver(directory, chosen, processes):
    """Runs it all; answers the reasons to fail."""
    ports = [port_of(processes.snapgate("sim", "--listen", "127.0.0.1:0", "--name", f"pod-{pod}", "--ttft", "1ms", "--token-time",
                                        "1ms", "--capacity", "1000000", "--kv-blocks", str(1 << 24))[1]["listen"]) for pod in range(3)]
    receiver, port, faults = Ids(), free_port(), []
    serving = receiving(receiver, "http/protobuf", port)
    endpoint = serving.__enter__()
    gateway = Gateway(processes, directory, [f"pod-{n}=http://127.0.0.1:{port}" for n, port in enumerate(ports)], endpoint)
    watch, p99, errors = Watch(gateway), {False: [], True: []}, 0
    watch.start()
    print(f"{'window':>7} {'receiver':>9} {'requests/s':>11} {'p50 us':>7} {'p99 us':>7} {'pending':>8} {'resident MiB':>13}")
    for number in range(chosen.windows):
        faulty = number % 2 == 1 and (chosen.fault != "none" or chosen.kill)
        receiver.dead = faulty and FAULTS[chosen.fault] is None
        if receiver.dead:
            serving.__exit__(None, None, None)
        receiver.rule = lambda spans, answer=FAULTS[chosen.fault] if faulty else None: answer or Answer()
        requests, middle, slow, wrong = window(processes, directory, gateway, chosen, faulty and chosen.kill)
        p99[faulty].append(slow)
        errors += 0 if faulty and chosen.kill else wrong
        print(f"{number + 1:7} {chosen.fault if faulty else 'well':>9} {requests / chosen.window:11.0f} {middle:7} {slow:7} "
              f"{gateway.pending():8} {resident_mib(gateway.process.pid):13.1f}", flush=True)
        receiver.rule = lambda spans: Answer()
        if receiver.dead:
            receiver.dead = False
            serving = receiving(receiver, "http/protobuf", port)
            serving.__enter__()
    left = gateway.settled()
    watch.over.set()
    watch.join()
    faults += watch.faults[:3] + [f"books at rest: {exits}" for exits in [gateway.unbalanced()] if exits]
    faults += [f"{left} are pending after {PATIENCE:.0f} s"] if left else []
    faults += [f"wrk: {errors} errors"] if errors else []
    books = gateway.books()
    gateway.process.send_signal(signal.SIGTERM)
    gateway.process.wait()
    faults += compared(directory, receiver, chosen, books)
    live, other = statistics.median(p99[False]), statistics.median(p99[True] or p99[False])
    for fault in faults:
        print(f"failed: {fault}")
    print(f"{'failed' if faults else 'passed'}: {watch.looks} looks at the books, {watch.most:.0f} MiB at most; median p99 "
          f"{live} us with a receiver that is well, {other} us with one that is not ({other / live:.2f})")
    return faults


def compared(directory, receiver, chosen, books):
    """How the three places differ."""
    lines = set()
    for file in directory.glob("snapshots*.jsonl"):
        with open(file) as log:
            lines |= {re.search(r'"id":"([0-9a-f]{32})"', line)[1] for line in log}
    store = sqlite3.connect(directory / "data" / "snapshots.db")
    rows = {bytes(row[0]).hex() for row in store.execute("SELECT id FROM records")}
    spans, faults = set(receiver.seen), []
    print(f"IDs: {len(rows)} in the store, {len(lines)} in the JSON log, {len(spans)} with the receiver; "
          f"{sum(receiver.seen.values()) - len(spans)} spans came again")
    if rows != lines:
        faults.append(f"{len(rows - lines)} IDs are only in the store, {len(lines - rows)} only in the JSON log")
    refused = sum(of.get("rejected_total", 0) for exit, of in books.items() if exit.startswith("otlp"))
    missing = len(rows - spans)
    if spans - rows or missing > (refused if chosen.fault in REFUSED_FOR_GOOD else 0):
        faults.append(f"{missing} IDs of the store did not come, of which the books call {refused} refused; {len(spans - rows)} came that are not in the store")
    return faults


if __name__ == "__main__":
    chosen = options()
    sys.exit(run("delivery", chosen.binary, lambda directory, processes: deliver(directory, chosen, processes)))
