"""Where a run stands as a few lines, for any width: what matters most comes first, on a line and among the lines."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from rich.cells import cell_len
from rich.text import Text

from online_dpo.reports.live.headline import figure_cells
from online_dpo.reports.live.standing import Standing
from online_dpo.reports.live.timing import Work

GAP = "   "
MAX_BAR = 40


def panel(standing: Standing, *, width: int, ascii_only: bool = False) -> list[Text]:
    """The lines, none of them wider than the terminal."""
    drawn = [
        *_progress(standing, width, ascii_only),
        *(Text(line, style="cyan") for line in filled(_rates(standing), width)),
        *(Text(line) for line in filled(figure_cells(standing.headline, ascii_only=ascii_only), width)),
        *_kept("warning", standing.num_warnings, standing.warnings, "yellow"),
        *_kept("incident", standing.num_incidents, standing.incidents, "red"),
    ]
    for line in drawn:
        line.truncate(max(1, width - 1), overflow="ellipsis" if not ascii_only else "crop")
    return drawn


def duration(seconds: float | None) -> str:
    """`0:34`, `12:40` or `1:02:03`; nothing where it is not known."""
    if seconds is None:
        return ""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def _progress(standing: Standing, width: int, ascii_only: bool) -> Iterator[Text]:
    """What goes on, a bar for the stage, and one for the run."""
    timing = standing.timing
    if not timing.num_rounds:
        yield Text(f"{standing.stage}  {duration(standing.clock() - standing.began)}", style="bold")
        return
    number = min(standing.round_index + 1, timing.num_rounds)
    yield Text(GAP.join([f"round {number}/{timing.num_rounds}", standing.stage, *_counts(timing.works)]), style="bold")
    if (share := timing.stage_share) is not None:
        left = duration(timing.stage_left)
        yield _bar("stage", share, f"{left} left" if left else "", width, ascii_only)
    left, spent = duration(timing.run_left), f"{duration(standing.clock() - standing.began)} so far"
    yield _bar("run", timing.run_share, f"{left} left, {spent}" if left else spent, width, ascii_only)
    if standing.ahead and timing.works is not standing.ahead:
        yield Text(GAP.join([f"ahead: round {number + 1}", *_counts(standing.ahead)]), style="dim")


def _counts(works: dict[str, Work]) -> list[str]:
    return [f"{work.done}/{work.total} {name}" for name, work in works.items()]


def _bar(name: str, share: float, ending: str, width: int, ascii_only: bool) -> Text:
    full, empty = ("#", ".") if ascii_only else ("━", "─")
    room = min(MAX_BAR, width - cell_len(f"{name:5}   100 %  {ending}") - 1)
    length = max(0, room)
    done = round(length * share)
    text = Text(f"{name:5} ")
    text.append(full * done, style="green").append(empty * (length - done), style="dim")
    return text.append(f" {100 * share:3.0f} %  {ending}".rstrip())


def _rates(standing: Standing) -> list[str]:
    """Rates of the newest sampling, and the newest figures of the round."""
    cells = []
    if (sampled := standing.sampled) is not None:
        for name, number in (("samples/s", sampled.num_completions), ("tokens/s", sampled.num_tokens)):
            rate = sampled.per_second(number)
            if rate is not None:
                cells.append(f"{rate:,.1f} {name}" if rate < 100 else f"{rate:,.0f} {name}")
    return cells + [f"{name} {value}" for name, value in standing.newest.items() if name != "step"]


def filled(cells: Sequence[str], width: int) -> Iterator[str]:
    """As many cells on a line as it has room for."""
    line = ""
    for cell in cells:
        if line and cell_len(f"{line}{GAP}{cell}") >= width:
            yield line
            line = ""
        line = f"{line}{GAP}{cell}" if line else cell
    if line:
        yield line


def _kept(name: str, number: int, newest: Sequence[str], style: str) -> Iterator[Text]:
    if number:
        more = f", the newest {len(newest)}" if number > len(newest) else ""
        yield Text(f"{number} {name}{'s' if number > 1 else ''}{more}:", style=style)
        yield from (Text(f"  {line}", style=style) for line in newest)
