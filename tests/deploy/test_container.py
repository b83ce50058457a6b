"""deploy/Containerfile: lints, and agrees with the program and its toolchain."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

from conftest import PROGRAM, ROOT, Program

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


def let_in() -> list[str]:
    """What `.dockerignore` lets into the build."""
    return [line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")]


def test_what_the_build_sees_is_all_that_the_program_is_made_of_and_no_more(snapgate: Program, tmp_path: Path):
    included = {"otel/openapi.json", "otel/snapshot.schema.json"}
    assert {"Cargo.toml", "Cargo.lock", ".cargo", "src", "LICENSE"} | included == set(let_in())
    for path in let_in():
        (tmp_path / path).parent.mkdir(exist_ok=True)
        copy = shutil.copytree if (ROOT / path).is_dir() else shutil.copy
        copy(ROOT / path, tmp_path / path)
    # The manifest is read although it names tests and benches that are not there.
    manifest = ["--manifest-path", tmp_path / "Cargo.toml"]
    read = ["cargo", "metadata", "--no-deps", "--offline", "--locked", "--format-version=1", *manifest]
    done = subprocess.run(read, cwd=ROOT, text=True, capture_output=True)
    assert done.returncode == 0, done.stderr
    # Every file that the compiler read for the program, as cargo notes it beside it; a blank in a name has a backslash.
    noted = PROGRAM.with_name(f"{PROGRAM.name}.d").read_text().partition(": ")[2]
    files = [Path(name.replace("\\ ", " ")) for name in re.split(r"(?<!\\)\s+", noted.strip())]
    own = [file.relative_to(ROOT) for file in files if file.is_relative_to(ROOT)]
    assert Path("src/main.rs") in own
    assert [file for file in own if not (tmp_path / file).exists()] == []


def test_what_it_runs_and_exposes_is_what_the_program_does(snapgate: Program):
    settings = snapgate.effective(env={"SNAPGATE_DATA_DIR": instruction("ENV").partition("=")[2]})
    ports = [settings[key].rpartition(":")[2] for key in ("listen", "admin")]
    assert instruction("EXPOSE").split() == ports
    assert re.search(
        rf"^COPY --chown={instruction('USER')} .* {settings['data_dir']}$", TEXT.replace("--from=build ", ""), re.M
    )
    snapgate.assert_accepts(json.loads(instruction("CMD")))
