#!/usr/bin/env python3
"""Whether the gateway's memory stays where it is: the machine's limit, 1,000 targets and 500 long streams.

    python3 benches/soak.py [SECONDS]          600 by default; SNAPGATE_BIN names another binary than the release build

Starts one simulated pod that listens on every loopback address, and the gateway with 1,000 of these as targets. Opens 500
streams that last longer than the run, and asks for short answers over 64 connections with wrk (Debian has it) until the
time is up. The store is kept so small that retention works within the first minute. Prints a line a minute, or six in a
shorter run, and then the balance. Exit code 1: memory at the end is more than 10 % over that after the first minute (in a
shorter run: after the first sixth), a stream broke off, or the books do not balance.
"""

import json
import os
import re
import selectors
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path

TARGETS = 1_000
STREAMS = 500
CONNECTIONS = 64
GROWTH_MAX = 1.10
ROOT = Path(__file__).resolve().parent.parent
BINARY = os.environ.get("SNAPGATE_BIN", str(ROOT / "target/release/snapgate"))
BODY = '{"model":"llama-3.1-8b","prompt":"soak","max_tokens":1}'
LOAD = f"""wrk.method = "POST"
wrk.path = "/v1/completions"
wrk.headers["content-type"] = "application/json"
wrk.body = '{BODY}'
"""


def listening(process):
    """The line that says which addresses were bound."""
    for line in process.stderr:
        if line.startswith("{"):
            event = json.loads(line)
            if event.get("event") == "listening":
                return event
    sys.exit("a process ended before it listened")


def start(log, *arguments, **variables):
    environment = {name: value for name, value in os.environ.items() if not name.startswith("SNAPGATE_")}
    process = subprocess.Popen([BINARY, *arguments], stderr=subprocess.PIPE, text=True, env={**environment, **variables})
    event = listening(process)
    # Whoever writes on must not be stopped by a pipe that is full.
    drain = subprocess.Popen(["cat"], stdin=process.stderr, stdout=log)
    return process, event, drain


def port_of(address):
    return int(address.rsplit(":", 1)[1])


def resident_mib(pid):
    return int(re.search(r"VmRSS:\s+(\d+)", Path(f"/proc/{pid}/status").read_text())[1]) / 1024


class Admin:
    """The gateway's own numbers."""

    def __init__(self, address):
        self.address = address

    def samples(self):
        with urllib.request.urlopen(f"http://{self.address}/metrics", timeout=30) as page:
            lines = page.read().decode().splitlines()
        return {name: float(value) for name, value in (line.rsplit(" ", 1) for line in lines if not line.startswith("#"))}

    def requests(self):
        return self.samples().get('snapgate_snapshots_offered_total{exit="store"}', 0.0)

    def healthy(self):
        with urllib.request.urlopen(f"http://{self.address}/v1/fleet", timeout=30) as page:
            return sum(target["health"] == "healthy" for target in json.load(page)["targets"])


class Streams:
    """Streams that are read as they come; what was read is forgotten."""

    def __init__(self, address, tokens):
        self.selector, self.ended = selectors.DefaultSelector(), 0
        head = f"POST /v1/completions HTTP/1.1\r\nhost: soak\r\ncontent-type: application/json\r\nx-sim-tokens: {tokens}\r\n"
        body = BODY.replace('"max_tokens":1', f'"max_tokens":{tokens},"stream":true')
        for _ in range(STREAMS):
            connection = socket.create_connection(address)
            connection.sendall(f"{head}content-length: {len(body)}\r\n\r\n{body}".encode())
            connection.setblocking(False)
            self.selector.register(connection, selectors.EVENT_READ)

    def open(self):
        return len(self.selector.get_map())

    def read_for(self, seconds):
        end = time.monotonic() + seconds
        while (left := end - time.monotonic()) > 0:
            for key, _ in self.selector.select(min(left, 0.2)):
                try:
                    alive = key.fileobj.recv(1 << 16)
                except OSError:
                    alive = b""
                if not alive:
                    self.selector.unregister(key.fileobj)
                    key.fileobj.close()
                    self.ended += 1


def watch(gateway, admin, streams, seconds):
    """Prints a line a minute, and answers resident memory after the first and the last."""
    step = min(60.0, seconds / 6)
    begun, before, asked, sizes = time.monotonic(), time.monotonic(), admin.requests(), []
    print(f"{'seconds':>8} {'resident MiB':>13} {'requests/s':>11} {'streams':>8} {'store MiB':>10} {'records deleted':>16}")
    while time.monotonic() - begun < seconds - 0.5:
        streams.read_for(step)
        samples, now, resident = admin.samples(), time.monotonic(), resident_mib(gateway.pid)
        offered = samples.get('snapgate_snapshots_offered_total{exit="store"}', 0.0)
        store, deleted = samples["snapgate_store_bytes"] / 2**20, samples.get("snapgate_snapshots_expired_total", 0)
        rate = (offered - asked) / (now - before)
        print(f"{now - begun:8.0f} {resident:13.1f} {rate:11.0f} {streams.open():8} {store:10.1f} {deleted:16.0f}", flush=True)
        sizes.append(resident)
        before, asked = now, offered
    return sizes[0], sizes[-1]


def soak(directory, seconds, started):
    log = open(directory / "log", "w")
    tokens = int(seconds * 10 + 1_200)
    sim, event, drain = start(log, "sim", "--listen", "0.0.0.0:0", "--ttft", "1ms", "--token-time", "100ms",
                              "--capacity", "1000000", "--kv-blocks", str(1 << 24))
    started += [sim, drain]
    port = port_of(event["listen"])
    addresses = (f"127.0.{1 + number // 250}.{1 + number % 250}" for number in range(TARGETS))
    targets = ",".join(f"t{number}=http://{address}:{port}" for number, address in enumerate(addresses))
    gateway, event, drain = start(log, "serve", "--listen", "127.0.0.1:0", "--admin", "127.0.0.1:0",
                                  "--data-dir", str(directory / "data"), SNAPGATE_TARGETS=targets,
                                  SNAPGATE_STORE_RETENTION_BYTES="64MiB", SNAPGATE_STORE_BALLAST_BYTES="0")
    started += [gateway, drain]
    admin = Admin(event["admin"])
    while admin.healthy() < TARGETS:
        time.sleep(0.5)
    streams = Streams(("127.0.0.1", port_of(event["listen"])), tokens)
    script = directory / "load.lua"
    script.write_text(LOAD)
    wrk = subprocess.Popen(["wrk", "-t2", f"-c{CONNECTIONS}", f"-d{int(seconds) + 5}s", "-s", str(script),
                            f"http://{event['listen']}"], stdout=log)
    started.append(wrk)
    first, last = watch(gateway, admin, streams, seconds)
    wrk.wait()
    gateway.send_signal(signal.SIGTERM)
    streams.read_for(1)
    gateway.wait(timeout=120)
    drain.wait()
    log.flush()
    lines = [line for line in (directory / "log").read_text().splitlines() if '"event":"stopped"' in line]
    balance = json.loads(lines[-1])
    print(json.dumps(balance))
    print(f"resident memory: {first:.1f} MiB at first, {last:.1f} MiB at the end, {last / first:.3f} times that")
    balanced = balance["offered"] == balance["stored"] + balance["dropped"]
    return last <= first * GROWTH_MAX and balanced


def main():
    seconds = float(sys.argv[1]) if len(sys.argv) > 1 else 600.0
    started = []
    with tempfile.TemporaryDirectory(prefix="snapgate-soak-") as directory:
        try:
            return 0 if soak(Path(directory), seconds, started) else 1
        finally:
            for process in started:
                if process.poll() is None:
                    process.kill()


if __name__ == "__main__":
    sys.exit(main())
