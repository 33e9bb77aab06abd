"""Names of trackers -> trackers. Nothing of a tracker is imported that the config does not name."""

from __future__ import annotations

import difflib
import importlib
import importlib.metadata
import inspect
import re
from collections.abc import Mapping
from importlib.util import find_spec
from typing import Any

from online_dpo.config.run import LoggingSection
from online_dpo.errors import ConfigError
from online_dpo.reports.trackers.tracker import Tracker
from online_dpo.text_files import shown

GROUP = "online_dpo.trackers"
"""The group of entry points under which a package offers a tracker."""

BUILT_IN = {
    "tensorboard": "online_dpo.reports.trackers.tensorboard_tracker:TensorBoard",
    "trackio": "online_dpo.reports.trackers.trackio_tracker:Trackio",
    "wandb": "online_dpo.reports.trackers.wandb_tracker:Wandb",
}
"""Name -> module and class. Each has an extra of the same name in `pyproject.toml`."""

_SECRET = re.compile(r"(^|_)(key|token|secret|password|passwd|credentials?)$", re.IGNORECASE)


def make_trackers(section: LoggingSection) -> dict[str, Tracker]:
    """The trackers that the config names, with their options; nothing is connected yet.

    Raises:
        ConfigError: a tracker is not known or not installed, or does not take its options.
    """
    offered = {point.name: point.value for point in importlib.metadata.entry_points(group=GROUP)}
    known = {**offered, **BUILT_IN}
    for name in section.tracker_options:
        if name not in known:
            raise ConfigError(f"logging.tracker_options has {name}, {_unknown(name, known)}")
    return {
        name: _make(name, known, section.tracker_options.get(name, {}), f"logging.tracker_options.{name}")
        for name in section.trackers
    }


def _make(name: str, known: Mapping[str, str], options: Mapping[str, Any], field: str) -> Tracker:
    if name not in known:
        raise ConfigError(f"logging.trackers has {name}, {_unknown(name, known)}")
    for option in options:
        if _SECRET.search(option):
            raise ConfigError(
                f"{field}.{option} looks like a secret, and the config is written into the run directory; remove it: "
                f"trackers read keys from the environment or from a login of their own"
            )
    kind = _load(name, known[name])
    requires = getattr(kind, "requires", None)
    if requires is not None and find_spec(requires) is None:
        wanted = f"'online-dpo[{name}]'" if name in BUILT_IN else requires
        raise ConfigError(
            f"logging.trackers has {name} and the package {requires} is not installed; pip install {wanted}, or take "
            f"{name} out of logging.trackers"
        )
    try:
        inspect.signature(kind).bind(**options)
    except TypeError as error:
        names = ", ".join(inspect.signature(kind).parameters) or "none"
        raise ConfigError(f"{field} does not fit the tracker {name} ({error}); its options: {names}") from None
    try:
        tracker: Tracker = kind(**options)
    except Exception as error:
        raise ConfigError(f"{field}: {shown(error)}") from None
    return tracker


def _load(name: str, place: str) -> Any:
    module, _, attribute = place.partition(":")
    try:
        return getattr(importlib.import_module(module), attribute)
    except Exception as error:  # a package of somebody else
        raise ConfigError(
            f"logging.trackers has {name}, and {place} cannot be imported ({type(error).__name__}: {shown(error)}); "
            f"repair or upgrade the package that offers it, or take {name} out of logging.trackers"
        ) from None


def _unknown(name: str, known: Mapping[str, str]) -> str:
    close = difflib.get_close_matches(name, known, n=1)
    hint = f"did you mean {close[0]}?" if close else f"known are: {', '.join(sorted(known))}"
    return f"which is no tracker, nor offered by an installed package (entry-point group {GROUP}); {hint}"
