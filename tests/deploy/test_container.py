"""deploy/Containerfile: lints, and agrees with the program and its toolchain."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tomllib
from pathlib import Path

from conftest import ROOT, Program

CONTAINERFILE = ROOT / "deploy/Containerfile"
TEXT = CONTAINERFILE.read_text()


def instruction(name: str) -> str:
    """The last one of that name: what the image ends up with."""
    return re.findall(rf"^{name} (.*)$", TEXT, re.M)[-1]


def test_it_lints():
    lint = Path(sys.executable).with_name("hadolint")
    done = subprocess.run([lint, "--failure-threshold=style", CONTAINERFILE], text=True, capture_output=True)
    assert done.returncode == 0, done.stdout


def test_the_bases_are_pinned_and_the_compiler_is_the_one_of_the_checks():
    images = re.findall(r"^ARG \w+_IMAGE=(.*)$", TEXT, re.M)
    assert len(images) == 2
    for image in images:
        assert re.search(r":[\w.-]+@sha256:[0-9a-f]{64}$", image), image
    channel = tomllib.loads((ROOT / "rust-toolchain.toml").read_text())["toolchain"]["channel"]
    assert f"/rust:{channel}-" in images[0]


def test_what_is_copied_into_the_build_exists_and_is_not_ignored():
    kept = [line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")]
    assert {"Cargo.toml", "Cargo.lock", ".cargo", "src", "LICENSE"} == set(kept)
    assert all((ROOT / path).exists() for path in kept)


def test_what_it_runs_and_exposes_is_what_the_program_does(snapgate: Program):
    settings = snapgate.effective(env={"SNAPGATE_DATA_DIR": instruction("ENV").partition("=")[2]})
    ports = [settings[key].rpartition(":")[2] for key in ("listen", "admin")]
    assert instruction("EXPOSE").split() == ports
    assert re.search(
        rf"^COPY --chown={instruction('USER')} .* {settings['data_dir']}$", TEXT.replace("--from=build ", ""), re.M
    )
    snapgate.assert_accepts(json.loads(instruction("CMD")))
