#!/usr/bin/env python3
"""Whether every exit gets every snapshot, and whether clients notice when one cannot.

Starts simulated pods, a gateway with store, JSON log and OTLP, and a receiver made of OpenTelemetry's own messages that
misbehaves as it is told to; sends requests at a fixed rate with wrk (Debian has it). Time goes in windows: in every other one
the receiver misbehaves. Each second the gateway's books are read from /metrics, and must balance. In the end, once no exit has
anything left, the IDs of the receiver's spans, of the JSON log's lines and of the store's rows are held against each other.

It fails (exit code 1, with each reason) when
  - the books of an exit do not balance, at rest or under way, or nobody got to look at them,
  - a snapshot was dropped, or the store has fewer than wrk counts answers (a killed gateway may owe what it had in hand),
  - an ID is in one place and not in another, unless the receiver refused it for good,
  - an exit has not delivered everything in time after the receiver is well again: a minute, and a second for each thousand
    that wait,
  - clients notice the fault: each window of it is held against the one before, and both the median ratio of their p99 is above
    1.05 and the median difference above 200 us (not with --kill, whose windows have no answers for a while),
  - memory rises more than 128 MiB above what it was in the first window,
  - wrk counts socket errors or answers other than 2xx, where nothing was killed.

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
RATIO_MAX, APART_US_MAX = 1.05, 200
"""Clients notice when the p99 of neighbouring windows, in the median, differs by more than both."""
MEMORY_MIB_MAX = 128
"""What an exit that is behind may take on top: its queue (16,384 records of some 2 KiB), its lot (32 MiB), its requests on
their way (otlp.in_flight times otlp.batch_bytes: 12 MiB), and what an allocator makes of that."""
PATIENCE = 60.0
"""Seconds that exits have to deliver the rest once the receiver is well, whatever waits."""
CAUGHT_UP_PER_SECOND = 1_000
"""What they must deliver besides, receivers in Python included."""
IN_HAND_SECONDS = 1.0
"""A killed gateway may not have stored what it has answered for so long: commits are every 25 ms on a machine that has time."""
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
    parser.add_argument("--windows", type=int, metavar="N", help="how many windows (default: 2 without a fault, else 10)")
    parser.add_argument("--settle", action="store_true", help="wait before each window until nothing is pending, so that no window "
                        "has to catch up for another; without it, catching up is part of what a receiver that is well is held to")
    default = os.environ.get("SNAPGATE_BIN", ROOT / "target/release/snapgate")
    parser.add_argument("--binary", type=Path, default=default, metavar="FILE",
                        help="the program (default: the release build, or what SNAPGATE_BIN names)")
    chosen = parser.parse_args()
    if chosen.windows is None:
        chosen.windows = 10 if chosen.kill or chosen.fault != "none" else 2
    return chosen


class Ids(Receiver):
    """Keeps the snapshot IDs of the spans of requests that it took, and no spans; of what it refused for good it keeps count."""

    dead = False
    refused = 0

    def traces(self, request, size, headers):
        if self.dead:
            # Ends the thread of a connection that is still open, and with it the connection.
            sys.exit()
        spans = [span for of_resource in request.resource_spans for scope in of_resource.scope_spans for span in scope.spans]
        answer = self.answer(spans, size, headers)
        # Each attempt's span names the snapshot, too.
        servers = [span for span in spans if span.kind == Span.SPAN_KIND_SERVER]
        with self.lock:
            self.refused += len(servers) if answer.status == 400 else answer.rejected
        if answer.status == 200:
            for span in servers:
                for pair in span.attributes:
                    if pair.key == "snapgate.snapshot.id":
                        self.seen[pair.value.string_value] += 1
                        break
        return answer


class Gateway:
    """Its process, which may be another one later on the same data."""

    def __init__(self, processes, directory, targets, endpoint):
        self.processes, self.directory, self.listen = processes, directory, f"127.0.0.1:{free_port()}"
        self.kills, self.before, self.unseen = 0, {}, 0
        self.arguments = ["serve", "--listen", self.listen, "--admin", "127.0.0.1:0", "--data-dir", str(directory / "data"),
                          "--json-log", str(directory / "snapshots.jsonl"), "--otlp", endpoint]
        self.targets = ",".join(targets)
        self.start()

    def start(self):
        self.process, event = self.processes.snapgate(*self.arguments, SNAPGATE_TARGETS=self.targets,
                                                      SNAPGATE_OTLP_PROTOCOL="http/protobuf", SNAPGATE_JSON_LOG_KEEP="100")
        self.admin = event["admin"]

    def kill(self, receiver):
        """Its books go with it: what they said last is kept, and what the receiver has refused for good since then."""
        refused = receiver.refused
        self.before = self.in_all()
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()
        self.kills += 1
        self.unseen += receiver.refused - refused

    def in_all(self):
        """The books of each exit, with those of the processes that were killed."""
        books = self.books()
        for exit, words in self.before.items():
            for word, count in words.items():
                if word != "pending":
                    books.setdefault(exit, {})[word] = books.get(exit, {}).get(word, 0) + count
        return books

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
        """Waits until nothing is pending and nothing more comes; answers what is pending when the patience ends, and its seconds."""
        patience = PATIENCE + self.pending() / CAUGHT_UP_PER_SECOND
        deadline, before = time.monotonic() + patience, None
        while time.monotonic() < deadline:
            books = self.books()
            if books == before and not any(of.get("pending", 0) for of in books.values()):
                return 0, patience
            before = books
            time.sleep(0.5)
        return self.pending(), patience


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


def window(processes, directory, gateway, chosen, killed_for):
    """One window of load; answers requests, p50 and p99 in microseconds, and errors. `killed_for` is the receiver, if any."""
    script, report = directory / "load.lua", directory / "wrk"
    script.write_text(LOAD.replace("RATE", str(chosen.rate)).replace("BODY", BODY))
    with open(report, "w") as out:
        wrk = processes.run("wrk", "-t1", f"-c{CONNECTIONS}", f"-d{chosen.window}s", "-s", str(script),
                            f"http://{gateway.listen}", stdout=out, stderr=out)
        if killed_for:
            time.sleep(chosen.window / 2)
            gateway.kill(killed_for)
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
    watch, p99, answers, errors, first_most = Watch(gateway), {False: [], True: []}, 0, 0, None
    watch.start()
    print(f"{'window':>7} {'receiver':>9} {'requests/s':>11} {'p50 us':>7} {'p99 us':>7} {'pending':>8} {'resident MiB':>13}")
    for number in range(chosen.windows):
        faulty = number % 2 == 1 and (chosen.fault != "none" or chosen.kill)
        if chosen.settle:
            left, patience = gateway.settled()
            faults += [f"{left} are pending after {patience:.0f} s, before window {number + 1}"] if left else []
        receiver.dead = faulty and FAULTS[chosen.fault] is None
        if receiver.dead:
            serving.__exit__(None, None, None)
        receiver.rule = lambda spans, answer=FAULTS[chosen.fault] if faulty else None: answer or Answer()
        requests, middle, slow, wrong = window(processes, directory, gateway, chosen, receiver if faulty and chosen.kill else None)
        p99[faulty].append(slow)
        answers += requests
        first_most = watch.most if first_most is None else first_most
        errors += 0 if faulty and chosen.kill else wrong
        print(f"{number + 1:7} {chosen.fault if faulty else 'well':>9} {requests / chosen.window:11.0f} {middle:7} {slow:7} "
              f"{gateway.pending():8} {resident_mib(gateway.process.pid):13.1f}", flush=True)
        receiver.rule = lambda spans: Answer()
        if receiver.dead:
            receiver.dead = False
            serving = receiving(receiver, "http/protobuf", port)
            serving.__enter__()
    left, patience = gateway.settled()
    watch.over.set()
    watch.join()
    faults += watch.faults[:3] + [f"books at rest: {exits}" for exits in [gateway.unbalanced()] if exits]
    faults += [] if watch.looks else ["nobody got to look at the books while there was load"]
    faults += [f"{left} are pending after {patience:.0f} s"] if left else []
    faults += [f"wrk: {errors} errors"] if errors else []
    books = gateway.in_all()
    gateway.process.send_signal(signal.SIGTERM)
    gateway.process.wait()
    dropped = {exit: of["dropped_total"] for exit, of in books.items() if of.get("dropped_total", 0)}
    faults += [f"snapshots were dropped: {dropped}"] if dropped else []
    faults += compared(directory, receiver, chosen, gateway, books, answers)
    grown = watch.most - (first_most or watch.most)
    faults += [f"memory rose {grown:.0f} MiB above the first window's, of {MEMORY_MIB_MAX} at most"] if grown > MEMORY_MIB_MAX else []
    latency, noticed = judged(p99)
    faults += [f"clients notice: {latency}"] if noticed and not chosen.kill else []
    for fault in faults:
        print(f"failed: {fault}")
    print(f"{'failed' if faults else 'passed'}: {answers} answers, {watch.looks} looks at the books, {watch.most:.0f} MiB at most, "
          f"{grown:.0f} more than in the first window; {latency}")
    return faults


def judged(p99):
    """What p99 was, by pairs of neighbouring windows, and whether clients notice the fault."""
    pairs = list(zip(p99[False], p99[True]))
    if not pairs:
        return f"median p99 {statistics.median(p99[False]):.0f} us", False
    ratio = statistics.median(other / live for live, other in pairs)
    apart = statistics.median(other - live for live, other in pairs)
    said = (f"of {len(pairs)} pairs of windows, one with a receiver that is well and one with one that is not, the median ratio "
            f"of p99 is {ratio:.3f} and they are {apart:+.0f} us apart")
    return said, ratio > RATIO_MAX and apart > APART_US_MAX


def compared(directory, receiver, chosen, gateway, books, answers):
    """How the three places differ, and whether they have everything."""
    lines, torn, again = set(), 0, 0
    for file in directory.glob("snapshots*.jsonl"):
        with open(file) as log:
            for line in log:
                # Of a line that a kill has torn, the snapshot is written anew by the next process.
                found = re.search(r'"id":"([0-9a-f]{32})"', line) if line.endswith("}\n") else None
                torn += found is None
                again += found is not None and found[1] in lines
                if found:
                    lines.add(found[1])
    store = sqlite3.connect(directory / "data" / "snapshots.db")
    rows = {bytes(row[0]).hex() for row in store.execute("SELECT id FROM records")}
    spans, faults = set(receiver.seen), []
    print(f"IDs: {len(rows)} in the store, {len(lines)} in the JSON log, {len(spans)} with the receiver; "
          f"{sum(receiver.seen.values()) - len(spans)} spans and {again} lines came again, {torn} lines are torn")
    if torn > gateway.kills:
        faults.append(f"{torn} lines of the JSON log are torn, by {gateway.kills} kills")
    owed = answers - int(gateway.kills * chosen.rate * IN_HAND_SECONDS)
    if not answers or len(rows) < owed:
        faults.append(f"{len(rows)} IDs are in the store, and wrk has {answers} answers ({gateway.kills} kills)")
    if rows != lines:
        faults.append(f"{len(rows - lines)} IDs are only in the store, {len(lines - rows)} only in the JSON log")
    refused = sum(of.get("rejected_total", 0) for exit, of in books.items() if exit.startswith("otlp")) + gateway.unseen
    missing = len(rows - spans)
    if spans - rows or missing > (refused if chosen.fault in REFUSED_FOR_GOOD else 0):
        faults.append(f"{missing} IDs of the store did not come, of which the books call {refused} refused; {len(spans - rows)} came that are not in the store")
    return faults


if __name__ == "__main__":
    chosen = options()
    sys.exit(run("delivery", chosen.binary, lambda directory, processes: deliver(directory, chosen, processes)))
