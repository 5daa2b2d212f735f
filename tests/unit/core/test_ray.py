"""Tasks on a cluster, with a stand-in for Ray: each is done once, and what it raises is told as it was raised."""

import os
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from imprompt.core.errors import ImpromptError, PromptError
from imprompt.core.ray import MAX_RETRIES, join_cluster, num_at_once, run_tasks
from tests import fake_ray


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> fake_ray.Cluster:
    cluster = fake_ray.Cluster({"CPU": 3.0})
    monkeypatch.setitem(sys.modules, "ray", cluster)  # pyright: ignore[reportArgumentType]
    return cluster


def add(shared: int, number: int) -> int:
    return shared + number


def failing(error: BaseException) -> Callable[[int, int], int]:
    def work(shared: int, number: int) -> int:
        if number == 2:
            raise error
        return shared + number

    return work


def test_every_number_is_done_once(cluster: fake_ray.Cluster) -> None:
    found: list[int] = []
    run_tasks(join_cluster(), add, 100, range(5), found.append)
    assert sorted(found) == [100, 101, 102, 103, 104]
    assert cluster.num_started == 1 and cluster.puts == [100]
    join_cluster()
    assert cluster.num_started == 1  # the one that is running is joined


def test_a_task_is_asked_for_as_the_cluster_is(cluster: fake_ray.Cluster) -> None:
    ray = join_cluster()
    run_tasks(ray, add, 0, [1], lambda _: None)
    assert cluster.options == {"num_gpus": 0, "max_retries": MAX_RETRIES, "max_calls": 0}
    assert num_at_once(ray) == 3
    cluster.resources["GPU"] = 2.0
    run_tasks(ray, add, 0, [1], lambda _: None)
    assert cluster.options["num_gpus"] == 1 and num_at_once(ray) == 2
    run_tasks(ray, add, 0, [1], lambda _: None, accelerated=False)
    assert cluster.options["num_gpus"] == 0 and num_at_once(ray, accelerated=False) == 3


def test_tasks_stand_where_the_caller_stands(
    cluster: fake_ray.Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    cluster.before_task = lambda: os.chdir("/")
    found: list[Path] = []
    run_tasks(join_cluster(), lambda shared, number: Path.cwd(), None, [0], found.append)
    assert found == [tmp_path]


@pytest.mark.parametrize("error", [PromptError("no such adapter"), ValueError("no such size")])
def test_a_task_raises_its_own_error_and_the_rest_is_cancelled(cluster: fake_ray.Cluster, error: Exception) -> None:
    found: list[int] = []
    with pytest.raises(type(error), match="no such"):
        run_tasks(join_cluster(), failing(error), 0, range(5), found.append)
    assert found == [0, 1] and cluster.cancelled == [3, 4]


def test_a_task_that_is_lost_is_told_in_a_sentence(cluster: fake_ray.Cluster) -> None:
    with pytest.raises(ImpromptError, match=r"Ray gave a task up \(the node died\).*run the same command again"):
        run_tasks(join_cluster(), failing(cluster.exceptions.RayError("the node died")), 0, range(5), lambda _: None)


def test_an_interrupt_cancels(cluster: fake_ray.Cluster) -> None:
    def interrupt(_: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_tasks(join_cluster(), add, 0, range(3), interrupt)
    assert cluster.cancelled == [1, 2]


def test_what_is_missing_is_told(cluster: fake_ray.Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    for error in (ConnectionError("nobody answers at 10.0.0.1:6379"), Exception("nobody answers in time")):
        cluster.refusal = error
        with pytest.raises(ImpromptError, match="nobody answers.*RAY_ADDRESS"):
            join_cluster()
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ImpromptError, match=r"pip install 'imprompt\[ray\]'"):
        join_cluster()
