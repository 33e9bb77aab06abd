"""Image, RayJob and Slurm script under docs/deploy: linted, against KubeRay's types, and the script with fakes of Slurm
and Ray. No image is built and no cluster is asked."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from packaging.requirements import Requirement

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "docs" / "deploy"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())


@pytest.mark.parametrize(
    "command",
    [
        ("hadolint", "--failure-threshold", "style", "Dockerfile"),
        ("shellcheck", "--severity", "style", "slurm.sh"),
        ("yamllint", "--strict", "-d", "{extends: default, rules: {line-length: {max: 120}}}", "rayjob.yaml"),
    ],
    ids=lambda command: command[0],
)
def test_linters_find_nothing(command: tuple[str, ...]) -> None:
    program = Path(sys.executable).parent / command[0]
    done = subprocess.run([program, *command[1:]], cwd=DEPLOY, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_image_has_every_package_and_extras_that_exist() -> None:
    text = (DEPLOY / "Dockerfile").read_text()
    kept = (DEPLOY / "Dockerfile.dockerignore").read_text().splitlines()
    packages = {name.rstrip("*") for name in PROJECT["tool"]["setuptools"]["packages"]["find"]["include"]}
    for name in packages:
        assert f"COPY {name} {name}\n" in text and f"!{name}" in kept
    for name in re.search(r"^COPY (pyproject.*) \./$", text, re.M)[1].split():
        assert (ROOT / name).is_file() and f"!{name}" in kept
    assert (
        set(re.findall(r'"\.\[(\w+)\]"', text)) == {"cpu", "gpu"} <= PROJECT["project"]["optional-dependencies"].keys()
    )
    # What runs is not root, and no host of packages or images is named but the standard base image.
    stages = re.split(r"^FROM ", text, flags=re.M)[1:]
    assert all("USER 1000" in stage for stage in stages if re.match(r"base AS (cpu|cuda)\n", stage))
    assert {stage.split()[0] for stage in stages} <= {"python:${PYTHON}-slim-bookworm", "build", "base"}
    assert "://" not in text


def documents() -> list[dict[str, Any]]:
    return list(yaml.safe_load_all((DEPLOY / "rayjob.yaml").read_text()))


def pods(job: dict[str, Any]) -> list[dict[str, Any]]:
    cluster = job["spec"]["rayClusterSpec"]
    return [group["template"]["spec"] for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"])]


def test_the_ray_job_is_of_kuberays_form() -> None:
    schema = json.loads((Path(__file__).parent / "rayjob.schema.json").read_text())
    claim, job = documents()
    jsonschema.validate(job, schema)
    for spoil in ("entryPoint", "rayClusterSpecs"):
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate({**job, "spec": {**job["spec"], spoil: "x"}}, schema)
    (wanted,) = [r for r in map(Requirement, PROJECT["project"]["dependencies"]) if r.name == "ray"]
    assert wanted.specifier.contains(job["spec"]["rayClusterSpec"]["rayVersion"])
    claims = []
    for pod in pods(job):
        (container,) = pod["containers"]
        volumes = {volume["name"]: volume for volume in pod["volumes"]}
        assert {mount["name"] for mount in container["volumeMounts"]} == volumes.keys()
        assert container["image"] == "online-dpo:cuda" and pod["securityContext"]["runAsUser"] == 1000
        assert container["resources"]["requests"] == container["resources"]["limits"]
        claims += [v["persistentVolumeClaim"]["claimName"] for v in volumes.values() if "persistentVolumeClaim" in v]
    assert claims == [claim["metadata"]["name"]], "the driver alone writes, so the head's pod alone has the volume"
    assert job["spec"]["entrypoint"].startswith("online-dpo run /config/")


FAKES = {
    # Runs what stands after the options, as a step on another node would.
    "srun": 'while [[ "$1" == --* ]]; do echo "srun $1" >> "$LOG"; shift; done; exec "$@"',
    "scontrol": "printf 'node%s\\n' 1 2 3",
    "hostname": "echo 10.0.0.1 10.0.0.2",
    "ray": """echo "ray $* token=${#RAY_AUTH_TOKEN}" >> "$LOG"
        if [ "$1" = start ]; then echo $$ >> "$LOG.pids"; exec sleep 300; fi""",
    "python": """[ -z "${NOT_JOINED:-}" ] && [ "$(grep -c '^ray start' "$LOG")" = 2 ] && echo joined >> "$LOG\"""",
    "online-dpo": """trap 'echo stopped >> "$LOG"; exit 130' TERM
        echo "online-dpo $* at=$RAY_ADDRESS" >> "$LOG"
        for _ in $(seq "${LASTS:-0}"); do sleep 0.1; done
        exit "${CODE:-0}\"""",
}


class Job:
    """The Slurm script on a machine whose Slurm, Ray and online-dpo are a few lines of shell each."""

    def __init__(self, folder: Path, **environment: str) -> None:
        self.log = folder / "log"
        for name, body in FAKES.items():
            (folder / name).write_text(f"#!/usr/bin/env bash\n{body}\n")
            (folder / name).chmod(0o755)
        env = {"PATH": f"{folder}:{os.environ['PATH']}", "LOG": str(self.log), "RUNS": "/shared/runs"}
        env |= {"SLURM_JOB_ID": "7", "SLURM_JOB_NODELIST": "node[1-3]", **environment}
        command = ["bash", DEPLOY / "slurm.sh", "config.yaml", "run.rounds=3"]
        self.process = subprocess.Popen(command, env=env, stderr=subprocess.PIPE, text=True)

    def end(self) -> int:
        _, self.err = self.process.communicate(timeout=60)
        self.lines = self.log.read_text().splitlines()
        pids = self.log.with_suffix(".pids")  # absent where the job ended before a step had begun
        for pid in pids.read_text().split() if pids.exists() else ():
            with pytest.raises(ProcessLookupError):
                os.kill(int(pid), 0)
        return self.process.returncode


def test_the_slurm_script_starts_a_cluster_and_ends_it(tmp_path: Path) -> None:
    job = Job(tmp_path, CODE="3")
    assert job.end() == 3, "the run's own exit code"
    assert "online-dpo run config.yaml run.dir=/shared/runs run.rounds=3 at=10.0.0.1:20007" in job.lines
    starts = [line for line in job.lines if line.startswith("ray start")]
    assert sorted(starts) == [
        "ray start --address=10.0.0.1:20007 --block token=64",
        "ray start --head --node-ip-address=10.0.0.1 --port=20007 --block token=64",
    ]
    assert {"srun --nodes=2", "srun --exclude=node1"} <= set(job.lines)
    assert job.lines.index("joined") < job.lines.index(next(line for line in job.lines if "online-dpo" in line))


def test_a_signal_reaches_the_run_and_nothing_is_left(tmp_path: Path) -> None:
    job = Job(tmp_path, LASTS="300")
    while not (job.log.exists() and "online-dpo" in job.log.read_text()):
        assert job.process.poll() is None
    os.kill(job.process.pid, signal.SIGTERM)
    assert job.end() == 130 and "stopped" in job.lines


def test_nodes_that_do_not_join_end_the_job(tmp_path: Path) -> None:
    job = Job(tmp_path, NOT_JOINED="1", JOIN_TIMEOUT_S="0")
    assert job.end() == 1 and "not all of the 3 nodes joined" in job.err
    assert not [line for line in job.lines if line.startswith("online-dpo")]
