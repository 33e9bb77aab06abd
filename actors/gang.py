"""The learner's workers: one actor, or several that learn as one and are placed, started and lost together.

The driver starts them here, and each joins the others here. `actors.supervision` calls all of them in every call, and
ends all of them as soon as one is lost, since the others would wait for it.
"""

from __future__ import annotations

import os
import time
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast

import psutil
import ray
from ray.experimental import internal_kv
from ray.util.placement_group import PlacementGroup, placement_group, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy
from torch.distributed import TCPStore

from online_dpo.learner.communication import FOREVER, TorchCommunicator

POLL_S = 0.05


@dataclass(frozen=True, slots=True, kw_only=True)
class Membership:
    """Of a worker in a gang."""

    gang: str  # unlike every other
    rank: int
    size: int


def join(membership: Membership) -> TorchCommunicator:
    """Meet the other workers of a gang; the first one's address is in Ray's key-value store."""
    ip, rank, size = ray.util.get_node_ip_address(), membership.rank, membership.size
    # Gloo would take the interface of the host's name, which on many machines is one that no other machine reaches.
    if (interface := _interface(ip)) is not None:
        os.environ.setdefault("GLOO_SOCKET_IFNAME", interface)
    key = f"online-dpo/gang/{membership.gang}"
    if rank == 0:
        store = TCPStore(ip, 0, size, is_master=True, timeout=FOREVER, wait_for_workers=False)
        internal_kv._internal_kv_put(key, f"{ip} {store.port}")
    else:
        while not (found := internal_kv._internal_kv_get(key)):
            time.sleep(POLL_S)  # if the first is lost, the driver ends this process
        host, port = bytes(found).decode().split()
        store = TCPStore(host, int(port), size, is_master=False, timeout=FOREVER)
    return TorchCommunicator(store, rank=rank, size=size)


def _interface(ip: str) -> str | None:
    """The name of the network interface that has an address."""
    found = (name for name, addresses in psutil.net_if_addrs().items() if ip in [each.address for each in addresses])
    return next(found, None)


class Workers:
    """Starts a learner's workers, as often as they are lost."""

    def __init__(self, actor_class: type, args: tuple[Any, ...], options: Mapping[str, Any], num_workers: int) -> None:
        """Nothing is started yet.

        Args:
            actor_class: of every worker; its constructor takes `args` and then a `Membership` or None.
            args: of all of them.
            options: of Ray, for each.
            num_workers: 1 is an actor as any other.
        """
        self._actor: Any = ray.remote(actor_class)
        self._args, self._options, self._num_workers = args, dict(options), num_workers
        self._placement: PlacementGroup | None = None

    def start(self) -> list[Any]:
        """New actors, rank 0 first; those before them must have been killed."""
        size = self._num_workers
        if size == 1:
            return [self._actor.options(**self._options).remote(*self._args, None)]
        self.release()
        bundle = {"CPU": self._options["num_cpus"], "GPU": self._options["num_gpus"]}
        # On as few nodes as they fit on: a learner may be larger than a node, but gradients travel in every step.
        self._placement = placement_group([{k: v for k, v in bundle.items() if v}] * size, strategy="PACK")
        gang = uuid.uuid4().hex
        found = []
        for rank in range(size):
            place = PlacementGroupSchedulingStrategy(self._placement, placement_group_bundle_index=rank)
            options = self._options | {"scheduling_strategy": place}
            member = Membership(gang=gang, rank=rank, size=size)
            found.append(self._actor.options(**options).remote(*self._args, member))
        return found

    def release(self) -> None:
        """Give back what is reserved."""
        if self._placement is not None:
            remove_placement_group(cast(Any, self._placement))
            self._placement = None
