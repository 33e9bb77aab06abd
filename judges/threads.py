"""Running blocking code beside the event loop, in threads that cannot keep a process alive."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import threading
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

P = ParamSpec("P")
R = TypeVar("R")


async def in_thread(function: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
    """Call `function` in a daemon thread of its own and wait for the result.

    Not `asyncio.to_thread`: a judge that never returns cannot be killed, and the interpreter joins the threads of
    an executor when it exits, so one hung judge would hang `online-dpo validate` after its error was printed. When
    the waiting task is cancelled the thread runs on, unobserved.
    """
    loop = asyncio.get_running_loop()
    future: asyncio.Future[R] = loop.create_future()
    context = contextvars.copy_context()

    def resolve(setter: Callable[[Any], None], value: Any) -> None:
        if not future.done():  # done: the waiting side gave up
            setter(value)

    def work() -> None:
        try:
            result = context.run(function, *args, **kwargs)
        except (StopIteration, SystemExit, KeyboardInterrupt) as error:
            # A future refuses the first, and the other two would end the event loop that awaits it.
            wrapped = RuntimeError(f"raised {type(error).__name__}: {error}")
            wrapped.__cause__ = error
            outcome: tuple[Callable[[Any], None], Any] = (future.set_exception, wrapped)
        except BaseException as error:
            outcome = (future.set_exception, error)
        else:
            outcome = (future.set_result, result)
        with contextlib.suppress(RuntimeError):  # the loop was closed meanwhile: nobody waits for this any more
            loop.call_soon_threadsafe(resolve, *outcome)

    threading.Thread(target=work, name=f"judge-{getattr(function, '__name__', 'call')}", daemon=True).start()
    return await future
