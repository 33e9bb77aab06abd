"""The `online-dpo` command: signals are answered before anything slow is imported."""

from __future__ import annotations

from typing import NoReturn

from online_dpo.importing import own_process
from online_dpo.interruption import answer_signals


def main() -> NoReturn:
    """Run the command, and exit with its code."""
    answer_signals()
    own_process()
    from online_dpo.cli import main as command

    command()


if __name__ == "__main__":
    main()
