"""How much work fits on the nodes of a cluster."""


def slots(resources: dict[str, float], nodes: list[dict[str, float]]) -> int:
    """The number of trials or jobs that can run at once, each on one node; resources are `CPU` and `GPU`."""
    kinds = [kind for kind, amount in resources.items() if amount]
    return sum(min(int(node.get(kind, 0) / resources[kind] + 1e-9) for kind in kinds) for node in nodes)
