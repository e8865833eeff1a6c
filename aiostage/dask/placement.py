"""Where tasks run that need a `GpuArray`: there. A plugin of the scheduler, which the workers' own plugin brings along.

Without it dask's work stealing would move such a task to an idle worker, and the array after it.
"""

from __future__ import annotations

import pickle
from typing import Any

from dask.utils import typename
from distributed import SchedulerPlugin

from .arrays import PLUGIN, GpuArray

_TYPE = typename(GpuArray)


class StayPlugin(SchedulerPlugin):  # type: ignore[misc] # mypy is not shown dask's types
    """Restricts tasks to the workers that have their GPU arrays, for as long as these are there."""

    name = PLUGIN

    def __init__(self, scheduler: Any) -> None:
        self._scheduler = scheduler
        self._homes: dict[
            Any, str
        ] = {}  # of each array's key: the worker that made it. Whoever else has it has a handle
        self._restricted: set[Any] = set()  # keys of tasks

    def transition(self, key: Any, start: str, finish: str, *args: Any, **kwargs: Any) -> None:
        """Called by dask's scheduler for every step of every task, before it looks for a worker."""
        task = self._scheduler.tasks[key]
        if finish == "memory" and task.type == _TYPE:
            self._homes[key] = next(iter(task.who_has)).address
            for dependent in task.dependents:
                self._restrict(dependent)
            return
        self._homes.pop(key, None)
        if finish == "waiting":
            self._restrict(task)
        elif finish == "forgotten":
            self._restricted.discard(key)

    def remove_worker(self, scheduler: Any, worker: str, *, stimulus_id: str, **kwargs: Any) -> None:
        """Called when a worker has gone. One that was retired has left its keys to others: of arrays, handles."""
        lost = [key for key, home in self._homes.items() if home == worker]
        scheduler.transitions(dict.fromkeys(lost, "released"), stimulus_id=stimulus_id)

    def _restrict(self, task: Any) -> None:
        homes = {self._homes[needed.key] for needed in task.dependencies if needed.key in self._homes}
        if homes:  # arrays of two workers are no task for anyone, as it says itself when it runs
            task.worker_restrictions = homes if len(homes) == 1 else None
            self._restricted.add(task.key)
        elif task.key in self._restricted:  # they died with their worker, and come again elsewhere
            task.worker_restrictions = None
            self._restricted.discard(task.key)


async def welcome(worker: Any) -> None:
    """Have the scheduler use a worker that offers its resource now."""
    answer = await worker.scheduler.run_function(
        function=pickle.dumps(_take_in), args=pickle.dumps((worker.address,)), kwargs=pickle.dumps({}), wait=True
    )
    if answer["status"] != "OK":
        raise RuntimeError(f"the scheduler cannot use aiostage.dask: {answer.get('text', answer)}")


def _take_in(address: str, dask_scheduler: Any) -> None:
    """On the scheduler."""
    if PLUGIN not in dask_scheduler.plugins:
        dask_scheduler.add_plugin(StayPlugin(dask_scheduler), name=PLUGIN)
    # Tasks that waited for such a worker. dask looks for them when a worker comes: before it offered the resource.
    waiting = dask_scheduler.bulk_schedule_unrunnable_after_adding_worker(dask_scheduler.workers[address])
    dask_scheduler.transitions(waiting, stimulus_id=f"aiostage-{address}")
