"""Joining a Ray cluster or starting a local one, and saying in a sentence what went wrong."""

from __future__ import annotations

import atexit
import logging
import os
import signal
import socket
import subprocess
import sys
import threading
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import ray
from tenacity import retry, retry_if_exception_message, stop_after_attempt

from online_dpo.config.run import ClusterSection
from online_dpo.errors import UserError

_QUIET = {
    "VLLM_LOGGING_LEVEL": "ERROR",
    "TRANSFORMERS_VERBOSITY": "error",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "TQDM_DISABLE": "1",
}
_MARK = "ONLINE_DPO_SESSION"
_ATTEMPTS = "RAY_gcs_server_port_wait_time_s"
_IDLE_WORKERS = "RAY_prestart_worker_first_driver"
LAST_LINES, LINE_LENGTH = 15, 300

KNOCK_S = 10.0
"""How long a machine may take to accept a connection."""


@contextmanager
def ray_session(cluster: ClusterSection, *, num_cpus_needed: float) -> Iterator[None]:
    """A connection to Ray for the duration of a run.

    A local Ray of our own is given as many logical CPUs as the actors ask for: they take turns at the real ones. It is
    shut down at the end; a cluster that was joined is left as it was.

    Raises:
        UserError: the cluster cannot be reached, or lacks the resources.
    """
    address = cluster.address or os.environ.get("RAY_ADDRESS")
    label = f"cluster.address is {address}" if cluster.address else f"RAY_ADDRESS is {address} in the environment"
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    options: dict[str, Any] = {"address": address} if address else _local_options(cluster, num_cpus_needed)
    if ray.is_initialized():
        _check_resources(num_cpus_needed, joined=bool(address))
        yield
        return
    if address:
        _expect_listener(address, label)
    with nullcontext() if address else _Reaper() as reaper:
        try:
            # Ray would knock twenty times, 40 s each, at a port where something else answers; unless it is set. And a
            # local Ray would start workers that nobody can use: our actors have environments of their own.
            joining = {_ATTEMPTS: os.environ.get(_ATTEMPTS, "1")}
            with _own_sigterm(), _set(joining if reaper is None else {_MARK: reaper.mark, _IDLE_WORKERS: "0"}):
                # Ray prints paragraphs about lost workers whatever `log_to_driver` says; ours come from
                # `actors.failures`.
                ray._private.worker.print_to_stdstream = lambda *_, **__: None
                try:
                    _connect(options)
                except Exception as error:
                    raise UserError(_why_no_cluster(label if address else None, error)) from None
            if reaper is not None and (node := _node()) is not None:
                reaper.watch(node.get_session_dir_path())
            _check_resources(num_cpus_needed, joined=bool(address))
            yield
        finally:
            _leave()


@contextmanager
def _own_sigterm() -> Iterator[None]:
    """While Ray starts, SIGTERM is what it was before: Ray puts exits of its own there, with code 15 and no word."""
    on_terminate = signal.getsignal(signal.SIGTERM)
    try:
        yield
    except SystemExit:
        if callable(on_terminate):
            on_terminate(signal.SIGTERM, None)
        raise
    finally:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, on_terminate)


class _Reaper:
    """Ends all that belongs to a local Ray of ours soon after its context, or after this process, however it ends."""

    def __enter__(self) -> _Reaper:
        self.mark = uuid.uuid4().hex
        command = [sys.executable, "-I", "-S", str(Path(__file__).with_name("reaper.py")), f"{_MARK}={self.mark}"]
        # A session of its own: Ctrl-C reaches all processes of a terminal's foreground.
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, text=True, start_new_session=True)
        return self

    def watch(self, session: str) -> None:
        """Who writes into this folder belongs to Ray, too."""
        assert self._process.stdin is not None
        self._process.stdin.write(f"{session}\n")
        self._process.stdin.flush()

    def __exit__(self, *_: object) -> None:
        assert self._process.stdin is not None
        with suppress(BrokenPipeError):  # somebody has ended it
            self._process.stdin.write("closed\n")
            self._process.stdin.close()


@contextmanager
def _set(variables: Mapping[str, str]) -> Iterator[None]:
    """Environment variables for what is started in here."""
    before = {name: os.environ[name] for name in variables if name in os.environ}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name in variables:
            os.environ.pop(name)
        os.environ.update(before)


def dead_parts() -> list[str]:
    """Processes of our own local Ray that died and without which nothing works: `raylet`, `gcs_server`."""
    node = _node()
    dead = [] if node is None else [str(name) for name, _ in node.dead_processes()]
    return [name for name in dead if name in ("raylet", "gcs_server")]


def _end_at_once() -> None:
    """Ray's client crashes in its destructors without its servers; the run has failed in any case."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(1)


def _leave() -> None:
    if dead_parts():
        # Ray would wait a minute for them, and then end this process in its own words.
        _node().kill_all_processes(check_alive=False)
        atexit.unregister(ray._private.worker.shutdown)
        atexit.register(_end_at_once)
    else:
        ray.shutdown()


def last_lines(pid: int | None, fallback: str) -> str:
    """The end of an actor's own log where it lies on this machine, else the end of what Ray told us."""
    lines: list[str] = []
    node = _node()
    if pid is not None and node is not None:
        for suffix in ("out", "err"):
            for file in Path(node.get_logs_dir_path()).glob(f"worker-*-{pid}.{suffix}"):
                lines += file.read_text(errors="replace").splitlines()
    lines = [line for line in lines if line.strip()] or fallback.splitlines()
    return "".join(f"\n  | {line[:LINE_LENGTH]}" for line in lines[-LAST_LINES:])


def _node() -> Any:
    """Ray's own record of this machine."""
    return getattr(ray._private.worker, "_global_node", None)


def has_gpus() -> bool:
    return ray.cluster_resources().get("GPU", 0) > 0


def _local_options(cluster: ClusterSection, num_cpus_needed: float) -> dict[str, Any]:
    cores = len(os.sched_getaffinity(0))
    wanted = cluster.num_cpus if cluster.num_cpus != "auto" else max(cores, int(num_cpus_needed + 0.999))
    # "local" and not nothing: Ray would otherwise join whatever cluster was last started on this machine.
    return {"address": "local", "num_cpus": wanted, "include_dashboard": False}


def _check_resources(num_cpus_needed: float, *, joined: bool) -> None:
    found = ray.cluster_resources().get("CPU", 0)
    if found < num_cpus_needed:
        where = "the cluster" if joined else "cluster.num_cpus"
        raise UserError(
            f"{where} has {found:g} CPUs and the actors of this config ask for {num_cpus_needed:g}; start Ray with "
            f"--num-cpus={num_cpus_needed:.0f} or more (they take turns, so it may exceed the cores), add nodes, or "
            f"lower judge.num_cpus, generator.replicas or learner.num_workers"
        )


@retry(retry=retry_if_exception_message(match=r".*timed out during startup"), stop=stop_after_attempt(3), reraise=True)
def _connect(options: dict[str, Any]) -> None:
    """`ray.init`, again where a local Ray missed its limit of 30 s, as on a busy machine; Ray lets nobody change it.

    What a failed attempt started ends with this process.
    """
    ray.init(
        log_to_driver=False,
        logging_level=logging.ERROR,
        # Every worker imports online_dpo first, which keeps a user's own `judges` folder from shadowing ours.
        runtime_env={"worker_process_setup_hook": "online_dpo.importing.own_process", "env_vars": _QUIET},
        **options,
    )


def _expect_listener(address: str, label: str) -> None:
    """Knock at a `host:port` ourselves: Ray would try for ten minutes, and print its own errors meanwhile."""
    place = urlsplit(address if "://" in address else f"//{address}")
    try:
        if place.hostname is not None and place.port is not None:
            socket.create_connection((place.hostname, place.port), timeout=KNOCK_S).close()
    except (OSError, ValueError) as error:
        raise UserError(_why_no_cluster(label, error)) from None


def _why_no_cluster(label: str | None, error: Exception) -> str:
    text = " ".join(str(error).split())
    if label is None:
        return (
            f"a local Ray could not be started ({type(error).__name__}: {text[:400]}); try again when the machine is "
            f"less busy, or see the logs in /tmp/ray/session_latest/logs"
        )
    if "auth" in text.lower() or "token" in text.lower():
        return (
            f"{label}; the cluster asks for a token: set RAY_AUTH_MODE=token and the same RAY_AUTH_TOKEN (or token "
            f"file) as on its nodes"
        )
    return (
        f"{label}; no Ray cluster answers there ({type(error).__name__}: {text[:200]}): start one with `ray start "
        f"--head`, and if it uses tokens set RAY_AUTH_MODE=token and RAY_AUTH_TOKEN"
    )
