"""Work shared out to actors of Ray: processes of this machine, or of all machines of a cluster."""

import logging
import os
from collections.abc import Iterator
from typing import Any

import ray
from ray.data import ActorPoolStrategy, DataContext, from_items

# Lists of numbers that are given out: more of them cost more than they balance.
MOST_TASKS = 1000
# Nothing but numbers goes through the memory that actors share; Ray would take a third of the machine's.
OBJECT_STORE_BYTES = 2**27
# It reports to its makers unless told otherwise, and warns of what is no trouble here.
QUIET = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_BACKEND_LOG_LEVEL": "fatal"}
# What newer versions do by themselves, and 2.55 warns of at every start; actors that are to use no GPU are told so.
QUIET |= {"RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0"}


def by_actors(
    actor: type, arguments: tuple, numbers: list[int], num_actors: int | None, address: str | None, cpu: bool
) -> Iterator[dict[str, Any]]:
    """The rows that actors yield of these numbers, in whatever order.

    An actor that dies is started again and given its numbers once more, those that it was done with as well.

    Args:
        actor: made in each process with these arguments; takes {"number": (num_numbers,)}, yields {name: [value]}.
        num_actors: a GPU, or a core, each; None for all that there are.
        address: of a cluster; None for a new one of this machine alone, which ends with the work.
        cpu: do not use GPUs that are there.
    """
    os.environ |= QUIET | os.environ
    own = {"num_cpus": num_actors, "object_store_memory": OBJECT_STORE_BYTES, "include_dashboard": False}
    options = {} if address else own
    with ray.init(address or "local", log_to_driver=False, logging_level=logging.ERROR, **options):
        DataContext.get_current().enable_progress_bars = False
        logging.getLogger("ray.data").setLevel(logging.ERROR)
        resources = ray.cluster_resources()
        device = "GPU" if resources.get("GPU") and not cpu else "CPU"
        work = from_items([{"number": number} for number in numbers], override_num_blocks=min(len(numbers), MOST_TASKS))
        done = work.map_batches(
            actor,
            fn_constructor_args=arguments,
            batch_size=None,
            compute=ActorPoolStrategy(size=min(num_actors or int(resources[device]), len(numbers))),
            num_cpus=1,
            num_gpus=int(device == "GPU"),
        )
        yield from done.iter_rows()
