import math
import os

from support import user_error

from microplastics.utils.system import available_processors, map_in_processes


def test_order_is_kept_in_any_number_of_processes():
    tasks = list(range(20))
    expected = [math.factorial(task) for task in tasks]
    assert list(map_in_processes(math.factorial, tasks, 1)) == expected
    assert list(map_in_processes(math.factorial, tasks, 2, chunk=3)) == expected
    assert available_processors() >= 1


def test_a_killed_worker_is_a_user_error():
    with user_error("interrupted", "--workers"):
        list(map_in_processes(os._exit, [9], 2))
