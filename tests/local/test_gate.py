"""A place at the device goes to the thread that has waited longest."""

import random
import threading
from concurrent.futures import ThreadPoolExecutor

from bge_rerank_integrations.local.gate import Gate


def test_threads_enter_in_the_order_in_which_they_came() -> None:
    gate, entered = Gate(1), list[int]()

    def pass_through(number: int) -> None:
        assert gate.enter()
        entered.append(number)
        gate.leave()

    assert gate.enter()
    threads = [threading.Thread(target=pass_through, args=(number,)) for number in range(8)]
    for number, thread in enumerate(threads):
        thread.start()
        while len(gate._waiting) == number:
            thread.join(0.001)
    gate.leave()
    for thread in threads:
        thread.join()
    assert entered == list(range(8))


def test_a_thread_that_leaves_does_not_overtake_one_that_waits() -> None:
    gate, go = Gate(1), threading.Event()

    def stay() -> None:
        assert gate.enter()
        assert go.wait(60)
        gate.leave()

    assert gate.enter()
    thread = threading.Thread(target=stay)
    thread.start()
    while not gate._waiting:
        thread.join(0.001)
    gate.leave()
    assert not gate.enter(0)
    go.set()
    thread.join()
    assert gate.enter(0)


def test_no_place_is_lost_or_won_by_threads_that_give_up() -> None:
    places = 3
    gate, lock = Gate(places), threading.Lock()
    inside = 0

    def try_often(seed: int) -> int:
        nonlocal inside
        dice, came = random.Random(seed), 0
        for _ in range(300):
            if not gate.enter(dice.choice([None, 0, 0.00001, 0.0001])):
                continue
            with lock:
                inside += 1
                assert inside <= places
            came += 1
            with lock:
                inside -= 1
            gate.leave()
        return came

    with ThreadPoolExecutor(12) as pool:
        assert min(pool.map(try_often, range(12))) > 0
    assert [gate.enter(0) for _ in range(places + 1)] == [True] * places + [False]
