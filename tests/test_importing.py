"""Importing large libraries quickly, and leaving the process as if nothing had been done."""

from __future__ import annotations

import gc
import subprocess
import sys
from collections.abc import Iterator

import pytest

from online_dpo import importing


@pytest.fixture
def unused(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A module of the standard library that nothing has imported, as the one which nobody needs."""
    monkeypatch.setattr(importing, "UNUSED", ("antigravity_of_tests", "tabnanny"))
    monkeypatch.setattr(importing, "_is_own", False)
    monkeypatch.delitem(sys.modules, "tabnanny", raising=False)
    yield "tabnanny"
    sys.modules.pop("tabnanny", None)


def imports(name: str) -> bool:
    try:
        __import__(name)
    except ImportError:
        return False
    return True


def test_only_a_process_of_our_own_goes_without_what_others_might_need(unused: str) -> None:
    """Would catch a user's program in which a library can no longer be imported, or is believed to be missing."""
    with importing.quick_imports():
        assert imports(unused)  # somebody else's process
    importing.own_process()
    with importing.quick_imports():
        assert imports(unused)  # was imported already
    del sys.modules[unused]
    with pytest.raises(ZeroDivisionError), importing.quick_imports():
        assert not imports(unused)
        raise ZeroDivisionError
    assert imports(unused)


def test_collection_goes_on_as_it_was(unused: str) -> None:
    """Would catch a process that collects no garbage for the rest of its life, or one where a user had switched it off
    and it is on."""
    frozen = gc.get_freeze_count()
    try:
        with importing.quick_imports():
            assert not gc.isenabled()
            with importing.quick_imports():
                pass
            assert not gc.isenabled()
        assert gc.isenabled() and gc.get_freeze_count() > frozen
    finally:
        gc.unfreeze()
    gc.disable()
    try:
        with importing.quick_imports():
            pass
        assert not gc.isenabled()
    finally:
        gc.enable()


def test_nothing_is_kept_from_being_freed_at_the_end() -> None:
    """Would catch lines about leaks that libraries print when a command ends."""
    program = (
        "import atexit, gc; atexit.register(lambda: print(gc.get_freeze_count()))\n"
        "from online_dpo.importing import quick_imports\n"
        "with quick_imports(): pass\n"
        "assert gc.get_freeze_count() > 0\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "0\n"
