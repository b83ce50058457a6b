#!/usr/bin/env python3
"""What a fleet costs the gateway by its size, and a request on disk by the rate of requests.

    python3 benches/scale.py [SECONDS]         20 by default for each row; SNAPGATE_BIN names another binary than the release build

First the gateway alone, with 10, 100 and 1,000 targets that nobody sends requests to: the share of a processor that polls,
probes and views take, with and without the start, and resident memory. The targets are one simulated pod on as many loopback
addresses, so its own work is not counted. Then 60 targets, and 10, 100 and 1,000 requests per second at a steady pace: bytes
in the store's files per request, samples counted in, once everything is checkpointed. Exit code 1: polling took more than
fleet.cpu_share and a fifth, a request failed, or the books do not balance.
"""

import json
import os
import re
import signal
import socket
import sqlite3
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from pathlib import Path

FLEETS = [10, 100, 1_000]
RATES = [10, 100, 1_000]
TARGETS_OF_RATES = 60
CPU_SHARE = 0.1
CONNECTIONS = 8
ROOT = Path(__file__).resolve().parent.parent
BINARY = os.environ.get("SNAPGATE_BIN", str(ROOT / "target/release/snapgate"))
BODY = b'{"model":"llama-3.1-8b","prompt":"scale","max_tokens":1}'
REQUEST = b"POST /v1/completions HTTP/1.1\r\nhost: scale\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n%b" % (
    len(BODY),
    BODY,
)


class Process:
    """One of ours, and the line that says where it listens."""

    def __init__(self, log, *arguments, **variables):
        environment = {name: value for name, value in os.environ.items() if not name.startswith("SNAPGATE_")}
        self.process = subprocess.Popen([BINARY, *arguments], stderr=subprocess.PIPE, text=True, env=environment | variables)
        self.event = self.listening()
        # Whoever writes on must not be stopped by a pipe that is full.
        self.drain = subprocess.Popen(["cat"], stdin=self.process.stderr, stdout=log)

    def listening(self):
        for line in self.process.stderr:
            if line.startswith("{") and (event := json.loads(line)).get("event") == "listening":
                return event
        sys.exit("a process ended before it listened")

    def cpu_seconds(self):
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rsplit(")", 1)[1].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def resident_mib(self):
        return int(re.search(r"VmRSS:\s+(\d+)", Path(f"/proc/{self.process.pid}/status").read_text())[1]) / 1024

    def stop(self):
        self.process.send_signal(signal.SIGTERM)
        self.process.wait(timeout=60)
        self.drain.wait()


def gateway(log, directory, port, targets):
    addresses = (f"127.0.{1 + number // 250}.{1 + number % 250}" for number in range(targets))
    named = ",".join(f"t{number}=http://{address}:{port}" for number, address in enumerate(addresses))
    return Process(log, "serve", "--listen", "127.0.0.1:0", "--admin", "127.0.0.1:0", "--data-dir", str(directory / "data"),
                   SNAPGATE_TARGETS=named, SNAPGATE_FLEET_CPU_SHARE=str(CPU_SHARE), SNAPGATE_STORE_BALLAST_BYTES="0")


def known(address):
    """Targets whose page was read."""
    with urllib.request.urlopen(f"http://{address}/v1/fleet", timeout=30) as page:
        return sum(target["state"]["waiting"] is not None for target in json.load(page)["targets"])


def measure_fleets(log, directory, port, seconds):
    print(f"{'targets':>8} {'known after s':>14} {'CPU % until then':>17} {'CPU % after':>12} {'resident MiB':>13}")
    within = True
    for targets in FLEETS:
        with tempfile.TemporaryDirectory(dir=directory) as own:
            begun = time.monotonic()
            process = gateway(log, Path(own), port, targets)
            while known(process.event["admin"]) < targets:
                time.sleep(0.2)
            took, used = time.monotonic() - begun, process.cpu_seconds()
            time.sleep(seconds)
            share = (process.cpu_seconds() - used) / seconds
            resident = process.resident_mib()
            process.stop()
        print(f"{targets:8} {took:14.1f} {100 * used / took:17.1f} {100 * share:12.1f} {resident:13.1f}", flush=True)
        within = within and share <= CPU_SHARE * 1.2
    return within


def ask(address, times, failed):
    """Sends a request at each of these moments, or as soon as the one before is answered."""
    connection = socket.create_connection(address)
    connection.settimeout(30)
    for moment in times:
        time.sleep(max(0.0, moment - time.monotonic()))
        connection.sendall(REQUEST)
        answer = b""
        while b"\r\n\r\n" not in answer:
            answer += connection.recv(1 << 16)
        head, body = answer.split(b"\r\n\r\n", 1)
        length = int(re.search(rb"content-length: (\d+)", head.lower())[1])
        while len(body) < length:
            body += connection.recv(1 << 16)
        if not head.startswith(b"HTTP/1.1 200"):
            failed.append(head)
    connection.close()


def send(address, rate, seconds):
    begin, failed = time.monotonic() + 0.1, []
    moments = [begin + number / rate for number in range(int(rate * seconds))]
    threads = [threading.Thread(target=ask, args=(address, moments[n::CONNECTIONS], failed)) for n in range(CONNECTIONS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return len(moments), time.monotonic() - begin, failed


def measure_rates(log, directory, port, seconds):
    print(f"\n{'requests/s':>11} {'sent':>8} {'bytes a request':>16} {'samples a request':>18}")
    good = True
    for rate in RATES:
        with tempfile.TemporaryDirectory(dir=directory) as own:
            process = gateway(log, Path(own), port, TARGETS_OF_RATES)
            while known(process.event["admin"]) < TARGETS_OF_RATES:
                time.sleep(0.2)
            store = next((Path(own) / "data").glob("*.db"))
            host, _, listen = process.event["listen"].rpartition(":")
            sent, took, failed = send((host, int(listen)), rate, seconds)
            process.stop()
            bytes_all = sum(file.stat().st_size for file in store.parent.glob(f"{store.name}*"))
            with sqlite3.connect(f"file:{store}?mode=ro", uri=True) as connection:
                (stored,) = connection.execute("SELECT count(*) FROM records").fetchone()
                (samples,) = connection.execute("SELECT count(*) FROM samples").fetchone()
        print(f"{sent / took:11.0f} {sent:8} {bytes_all / sent:16.0f} {samples / sent:18.2f}", flush=True)
        good = good and not failed and stored == sent
    return good


def main():
    seconds = float(sys.argv[1]) if len(sys.argv) > 1 else 20.0
    with tempfile.TemporaryDirectory(prefix="snapgate-scale-") as name:
        directory = Path(name)
        with open(directory / "log", "w") as log:
            sim = Process(log, "sim", "--listen", "0.0.0.0:0", "--ttft", "1ms", "--token-time", "1ms", "--capacity", "100000")
            try:
                port = int(sim.event["listen"].rsplit(":", 1)[1])
                within = measure_fleets(log, directory, port, seconds)
                return 0 if measure_rates(log, directory, port, seconds) and within else 1
            finally:
                sim.stop()


if __name__ == "__main__":
    sys.exit(main())
