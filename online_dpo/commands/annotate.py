"""`online-dpo annotate`: the pages on which people answer the questions of a run, and links that invite them."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from online_dpo.annotation.records import Role
from online_dpo.annotation.store import FILE, AnnotationStore
from online_dpo.annotation.web.serving import Address, listen, only_server, serve, served_at
from online_dpo.commands.run import recorded_config
from online_dpo.errors import RunDirectoryError, UserError
from online_dpo.loop.people.opening import judges_of, open_store

ADMINISTRATOR = "administrator"
"""The name of whoever starts the server."""

DAY_S = 24 * 3600.0
MAX_DAYS = 365.0


def invite(run_dir: Path, name: str, *, address: Address, days: float) -> str:
    """Make an annotator and a link, also while a server runs.

    Args:
        run_dir: of the run.
        name: which administrators see.
        address: what the link begins with, where no server runs.
        days: for which the link is valid.

    Returns:
        The link. It is nowhere else: the store has a hash of its token.

    Raises:
        UserError: the run has no human judge, or the store cannot be used.
    """
    address.check()
    _check_days(days)
    with _store_of(run_dir) as store:
        base = served_at(store.path.parent) if address.url is None else None
        now = time.time()
        invitation = store.invite(name, expires_at=now + days * DAY_S, now=now)
        return link(base or address.public, invitation.token)


def annotate(run_dir: Path, address: Address, say: Callable[[str], None]) -> None:
    """Serve the pages until the process is told to end.

    Args:
        run_dir: of the run.
        address: where to listen. Port 0 takes a free one.
        say: prints a line.

    Raises:
        UserError: the run has no human judge, the store cannot be used or is served already, or the port is taken.
    """
    address.check()
    with _store_of(run_dir) as store, only_server(store.path.parent) as tell:
        listener, address = listen(address)
        tell(address.public)
        now = time.time()
        progress = store.progress(now)
        say(f"{run_dir}: {progress.num_questions} questions, {progress.num_settled} of them answered")
        say(f"for you alone, as administrator, within a day: {link(address.public, _administrator(store, now))}")
        say(f"invite people there, or by: online-dpo annotate {run_dir} --invite NAME")
        if not address.is_local:
            say(
                f"warning: {address.host} is open to the network, and this server does not encrypt what is sent: put a "
                f"reverse proxy with TLS before it (--url, --trust-proxy), or stay with 127.0.0.1 and an SSH tunnel"
            )
        if address.url is not None:
            say(f"listening at {address.own}")
        say("Ctrl-C ends it; a vote is on the disk when the page says that it is saved")
        serve(store, run_dir, address, listener)
        say(f"ended; {sum(vote.status != 'superseded' for vote in store.votes())} votes are in {store.path}")


def link(base: str, token: str) -> str:
    """The address of an invitation. Browsers do not send what is behind the `#`."""
    return f"{base}/join#{token}"


@contextmanager
def _store_of(run_dir: Path) -> Iterator[AnnotationStore]:
    config = recorded_config(run_dir)
    judges = judges_of(config)
    if not judges:
        raise RunDirectoryError(
            f"{run_dir} has no human judge, so people are asked nothing; set judge.type=human, a human "
            f"pairing.annotator or a human judge under evaluation.judges for a new run"
        )
    path = run_dir / FILE
    with AnnotationStore.open(path) if path.exists() else open_store(judges, config, run_dir) as store:
        yield store


def _administrator(store: AnnotationStore, now: float) -> str:
    """The token of a new link for whoever starts the server; earlier links and sessions of theirs end."""
    role: Role = "administrator"
    expires_at = now + DAY_S
    known = [f.annotator for f in store.annotators() if (f.annotator.role, f.annotator.name) == (role, ADMINISTRATOR)]
    if known:
        return store.invite_again(known[0].annotator, expires_at=expires_at, by=ADMINISTRATOR, now=now).token
    return store.invite(ADMINISTRATOR, expires_at=expires_at, now=now, role=role).token


def _check_days(days: float) -> None:
    if not 0 < days <= MAX_DAYS:
        raise UserError(f"--days is {days:g}; a link is valid for more than 0 and at most {MAX_DAYS:g} days")
