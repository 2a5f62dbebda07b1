"""How the stages of a flow are submitted to a task runner."""

import weakref

from prefect.states import Completed

from pipelines import flows


def test_the_future_of_a_stage_that_has_ended_is_not_kept():
    """Dask runs a stage again whose result a lost worker held, as long as there is a future of it."""
    futures, alive = {}, {}

    class Done:
        state = Completed()

        def add_done_callback(self, call):
            call(self)

        def wait(self):
            pass

        def result(self, raise_on_failure):
            return "done"

    class Runner:
        def submit(self, task, parameters, wait_for):
            name, made = parameters["name"], Done()
            alive[name] = [one for one, future in futures.items() if future() is not None]
            assert all(state.is_completed() for state in wait_for)
            futures[name] = weakref.ref(made)
            return made

    stages = {"a": frozenset(), "b": frozenset("a"), "c": frozenset("ab")}
    ended = flows.run_all(Runner(), flows.run_stage, stages, lambda _name, _how: None)
    assert ended == {"a": "done", "b": "done", "c": "done"}
    assert alive == {"a": [], "b": [], "c": []}
