"""Prompt lookup: what is guessed, how long, and when it stops."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from longsight.engine.draft import FIRST_LENGTH, LONGEST_MATCH, MAX_LENGTH, SHORTEST_MATCH, Drafter


def drafter(tokens: list[int]) -> Drafter:
    d = Drafter()
    d.extend(tokens)
    return d


def test_the_text_goes_on_as_it_did_before() -> None:
    assert drafter([1, 2, 3, 4, 5, 6, 9, 1, 2]).propose(9) == [3, 4, 5, 6]
    assert drafter([1, 2, 3, 9, 1, 2]).propose(2) == [3, 9]
    assert drafter([7, 7, 7]).propose(9) == [7]


def test_the_longest_match_wins_and_of_equal_ones_the_latest() -> None:
    assert drafter([5, 1, 2, 8, 9, 6, 1, 2, 4, 9, 5, 1, 2]).propose(1) == [8]
    assert drafter([1, 2, 8, 9, 1, 2, 4, 9, 1, 2]).propose(1) == [4]


def test_nothing_is_guessed_where_nothing_reads_alike() -> None:
    for text in ([], [1], [1, 1], [1, 2, 3, 4], [1, 2, 3, 9, 2]):
        assert drafter(text).propose(4) == []


@given(st.lists(st.integers(0, 2), max_size=60))
def test_it_finds_what_a_plain_search_finds(text: list[int]) -> None:
    want: list[int] = []
    for length in range(min(LONGEST_MATCH, len(text) - 1), SHORTEST_MATCH - 1, -1):
        places = [i for i in range(len(text) - length) if text[i : i + length] == text[-length:]]
        if places:
            want = text[places[-1] + length :][:FIRST_LENGTH]
            break
    assert drafter(text).propose(99) == want


def test_tokens_come_in_pieces() -> None:
    d = Drafter()
    for token in [1, 2, 3, 4, 5, 6, 9, 1, 2]:
        d.extend([token])
    assert d.propose(9) == [3, 4, 5, 6]


def test_the_length_follows_success_and_failure() -> None:
    d = drafter(list(range(50)) * 2)
    d.verified(4, 4)
    assert len(d.propose(99)) == 8
    d.verified(8, 8)
    d.verified(15, 15)
    assert len(d.propose(99)) == MAX_LENGTH
    d.verified(15, 3)
    assert len(d.propose(99)) == 3


def test_it_pauses_for_longer_and_longer_where_it_does_not_pay() -> None:
    d = drafter([1, 2, 3, 1, 2])
    pauses = []
    for _ in range(8):
        pause = 0
        while not d.propose(4):
            pause += 1
        pauses.append(pause)
        d.verified(4, 0)
    assert pauses == [0, 1, 2, 4, 8, 16, 32, 64]
    while not d.propose(4):
        pass
    d.verified(1, 1)
    assert d.propose(4), "a true guess ends it"
