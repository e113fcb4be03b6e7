import threading
import time

import optuna
import pytest
from optuna.distributions import FloatDistribution
from optuna.trial import TrialState

from overopt.sweep.queue import Parameters, TaskQueue
from overopt.sweep.storage import open_storage

BETA = {"beta": FloatDistribution(0.1, 0.4, log=True)}
TASKS = {f"cell {i}": Parameters({"beta": 0.1 * i}, BETA) for i in range(1, 4)}


@pytest.fixture
def storage(tmp_path):
    return open_storage(f"sqlite:///{tmp_path}/sweep.db", heartbeat=1, grace=2)


@pytest.fixture
def queue(storage):
    queue = TaskQueue(storage, "study", TASKS, max_errors=2, max_deaths=3)
    queue.refill()
    return queue


def states(queue):
    return {name: task.state for name, task in queue.look().items()}


def take(queue, name="cell 1"):
    trial = queue.claim(queue.look()[name], "me")
    assert trial is not None
    return trial


def test_every_task_waits_with_its_parameters(queue):
    assert states(queue) == dict.fromkeys(TASKS, "waiting")
    assert [trial.params["beta"] for trial in queue.study.trials] == pytest.approx([0.1, 0.2, 0.3])
    queue.refill()
    assert len(queue.study.trials) == 3


def test_what_is_done_is_never_given_again(queue):
    assert queue.finish(take(queue), 0.5, {"seconds": 1.0})
    queue.refill()
    assert states(queue)["cell 1"] == "done"
    assert queue.claim(queue.look()["cell 1"], "you") is None
    assert len(queue.study.trials) == 3


def test_of_many_who_claim_a_task_one_gets_it(queue):
    got = []
    seen = queue.look()["cell 2"]
    threads = [threading.Thread(target=lambda: got.append(queue.claim(seen, "me"))) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(got) == 6
    assert sum(trial is not None for trial in got) == 1


def test_a_failed_task_is_given_again_until_the_cap_and_keeps_its_reason(queue):
    for attempt in range(2):
        assert states(queue)["cell 1"] == "waiting"
        queue.fail(take(queue), "error", f"attempt {attempt}")
        queue.refill()
    task = queue.look()["cell 1"]
    assert (task.state, task.reason) == ("failed", "attempt 1")
    assert states(queue)["cell 2"] == "waiting"  # a retry has not eaten another's place


def test_stops_do_not_count_and_deaths_have_a_cap_of_their_own(queue):
    for _ in range(5):
        queue.fail(take(queue), "stopped", "Ctrl-C")
        queue.refill()
    for _ in range(3):
        assert states(queue)["cell 1"] == "waiting"
        queue.fail(take(queue), "died", "its process died")
        queue.refill()
    assert states(queue)["cell 1"] == "failed"


def test_a_worker_without_life_loses_its_task_and_its_late_result_does_not_count(queue):
    late = take(queue)
    time.sleep(3.5)
    queue.refill()
    assert states(queue)["cell 1"] == "waiting"
    second = take(queue)
    assert not queue.finish(late, 0.9, {"seconds": 1.0})
    assert queue.finish(second, 0.5, {"seconds": 1.0})
    assert queue.look()["cell 1"].finished.value == 0.5


def test_signs_of_life_keep_a_task(queue):
    trial = take(queue)
    with queue.alive(trial):
        time.sleep(3.5)
        queue.refill()
    assert queue.finish(trial, 0.5, {})


def test_a_task_queued_twice_at_one_time_is_done_once(queue):
    twin = optuna.create_trial(
        state=TrialState.WAITING, params={"beta": 0.1}, distributions=BETA, user_attrs={"task": "cell 1"}
    )
    queue.study.add_trial(twin)
    first, second = queue.look()["cell 1"].trials
    mine = take(queue)
    assert mine.number == first.number
    only_twin = queue.look()["cell 1"]
    assert queue.claim(only_twin, "you") is None  # its trial is taken, and found to be the second
    assert queue.study.trials[second.number].state == TrialState.FAIL
    assert queue.finish(mine, 0.5, {})
    assert states(queue)["cell 1"] == "done"
