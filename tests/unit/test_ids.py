"""Random names: shape, order and range."""

import uuid

from stillmotion import ids


def test_request_id_is_a_version_7_uuid() -> None:
    made = uuid.UUID(ids.request_id(1_700_000_000.0))
    assert (made.version, made.variant) == (7, uuid.RFC_4122)


def test_request_id_carries_its_time_in_milliseconds() -> None:
    assert uuid.UUID(ids.request_id(1_700_000_000.123)).int >> 80 == 1_700_000_000_123


def test_later_request_ids_sort_after_earlier_ones() -> None:
    made = [ids.request_id(1_700_000_000 + second) for second in range(100)]
    assert made == sorted(made)


def test_request_ids_of_one_millisecond_differ() -> None:
    assert len({ids.request_id(1.0) for _ in range(1000)}) == 1000


def test_file_id_is_128_bits_of_hex() -> None:
    made = {ids.file_id() for _ in range(1000)}
    assert len(made) == 1000
    assert all(len(name) == 32 and int(name, 16) >= 0 for name in made)


def test_seed_is_exact_in_javascript() -> None:
    assert all(0 <= ids.draw_seed() < 2**53 for _ in range(1000))
