"""What a job says on its way to its events: in order, bounded, and put back when it could not be written."""

from __future__ import annotations

import pytest

from worker.said import MOST_CHARACTERS, Said, log_line, metrics_line


def messages(said: Said) -> list[str]:
    with said.taken(wait=True) as lines:
        return [str(data["message"]) for _, data in lines]


def test_lines_come_out_in_order_and_once() -> None:
    said = Said()
    for word in ("one", "two"):
        said.add(*log_line(word))
    assert messages(said) == ["one", "two"]
    assert messages(said) == []


def test_lines_that_could_not_be_written_come_before_newer_ones() -> None:
    said = Said()
    said.add(*log_line("older"))
    with pytest.raises(OSError), said.taken(wait=True):
        said.add(*log_line("newer"))
        raise OSError
    assert messages(said) == ["older", "newer"]


def test_while_one_thread_writes_another_takes_nothing() -> None:
    said = Said()
    said.add(*log_line("first"))
    with said.taken(wait=True):
        said.add(*log_line("second"))
        with said.taken(wait=False) as lines:
            assert lines == []
    assert messages(said) == ["second"]


def test_of_too_many_lines_the_oldest_go_and_a_note_says_how_many() -> None:
    said = Said(most=2)
    for word in ("one", "two", "three", "four", "five"):
        said.add(*log_line(word))
    note, *kept = messages(said)
    assert note.startswith("3 older lines were dropped")
    assert kept == ["four", "five"]


def test_a_line_is_of_a_length_and_of_characters_that_can_be_stored() -> None:
    kind, data = log_line("x" * 10_000 + "\udc80")
    assert kind == "log"
    assert len(data["message"]) == MOST_CHARACTERS + 1
    assert log_line("half \udc80")[1]["message"] == "half ?"


def test_measurements_without_a_number_are_null() -> None:
    kind, data = metrics_line({"loss": float("nan"), "norm": float("inf"), "rate": None, "step": 3})
    assert (kind, data) == ("metrics", {"loss": None, "norm": None, "rate": None, "step": 3})
