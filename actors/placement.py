"""Where actors are in the cluster, and what it has."""

from __future__ import annotations

LOOPBACK = "127.0.0.1"


def has_gpus() -> bool:
    """Whether any node of the connected cluster has a GPU."""
    import ray

    return ray.cluster_resources().get("GPU", 0) > 0


def room_for(cpus: int, gpus: int) -> int:
    """How many actors that ask for so much have room in the connected cluster now."""
    import ray

    free = ray.available_resources()
    asked = {"CPU": cpus, "GPU": gpus}
    return min(int(free.get(name, 0) // count) for name, count in asked.items() if count)


def own_host() -> str:
    """The address at which the other actors reach this one: loopback where all share a machine.

    The groups' rendezvous know no password, so they listen no wider than they must.
    """
    import ray

    nodes = {node["NodeManagerAddress"] for node in ray.nodes() if node["Alive"]}
    return LOOPBACK if len(nodes) == 1 else ray.util.get_node_ip_address()
