"""One at a time: whoever comes meanwhile is refused, and nobody gets in beside another."""

from __future__ import annotations

import threading
import time

import pytest

from vtc.lock import alone


def test_the_second_is_refused_until_the_first_has_ended(tmp_path):
    place = tmp_path / "new" / "a.lock"
    with alone(place, "busy"):
        assert place.exists()
        with pytest.raises(ValueError, match=r"^somebody is at it$"), alone(place, "somebody is at it"):
            pass
        with alone(tmp_path / "new" / "b.lock", "busy"):
            pass
    assert list((tmp_path / "new").iterdir()) == []
    with pytest.raises(KeyError), alone(place, "busy"):
        raise KeyError
    with alone(place, "busy"):
        pass


def test_what_a_killed_one_left_locks_nobody_out(tmp_path):
    (tmp_path / "a.lock").touch()
    with alone(tmp_path / "a.lock", "busy"):
        pass


def test_never_two_however_many_try(tmp_path):
    """The file is removed and made anew all the time, and each may have opened it before it was removed."""
    inside, most, turns = [], [], []
    end = time.monotonic() + 0.2

    def work(number):
        while time.monotonic() < end:
            try:
                with alone(tmp_path / "a.lock", "busy"):
                    inside.append(number)
                    turns.append(number)
                    time.sleep(0)
                    most.append(len(inside))
                    inside.remove(number)
            except ValueError:
                continue

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert set(most) == {1}
    assert len(turns) > 20
