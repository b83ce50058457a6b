"""deploy/systemd: verified by systemd itself, confined, and in agreement with the program."""

from __future__ import annotations

import shlex
import shutil
import subprocess
from pathlib import Path

import pytest
from conftest import PROGRAM, ROOT, Program, seconds, shutdown_seconds

UNIT = ROOT / "deploy/systemd/snapgate.service"
SETTINGS = dict(line.split("=", 1) for line in UNIT.read_text().splitlines() if line and line[0] not in "#[")
EXECUTABLE, *ARGUMENTS = shlex.split(SETTINGS["ExecStart"])

EXPOSURE_MAX = 15
"""In tenths, of what `systemd-analyze security` calls the exposure of a service: 0 is none."""

needs_systemd = pytest.mark.skipif(
    not shutil.which("systemd-analyze"),
    reason="systemd is not installed (apt-get install systemd): nothing verified the unit",
)


@needs_systemd
def test_systemd_finds_nothing_wrong(tmp_path: Path):
    unit = tmp_path / UNIT.name
    unit.write_text(UNIT.read_text().replace(EXECUTABLE, str(PROGRAM)))
    done = subprocess.run(["systemd-analyze", "verify", unit], text=True, capture_output=True)
    assert (done.returncode, done.stderr) == (0, "")


@needs_systemd
def test_the_service_is_confined():
    command = ["systemd-analyze", "security", "--offline=true", f"--threshold={EXPOSURE_MAX}", UNIT]
    done = subprocess.run(command, text=True, capture_output=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_program_does_what_the_unit_expects(snapgate: Program):
    snapgate.assert_accepts([argument.replace("%S", "/var/lib") for argument in ARGUMENTS])
    settings = snapgate.effective()
    assert seconds(SETTINGS["TimeoutStopSec"]) >= shutdown_seconds(settings)
    assert int(SETTINGS["LimitNOFILE"]) > 2 * settings["limits"]["connections"]
    wrong = snapgate.run(*ARGUMENTS)
    assert wrong.returncode == int(SETTINGS["RestartPreventExitStatus"]), "a missing configuration is a wrong one"
