"""Slots: who gets which, and a cache that grows whole or not at all."""

import pytest
import torch

from mini_llm.inference.backends.slot_cache import SlotCache, SlotView
from mini_llm.inference.engine.request import Job, Request
from mini_llm.inference.engine.slots import Slot, choose_slot
from mini_llm.model.config import ModelConfig

BUSY = Job(Request(prompt_ids=[1], max_new_tokens=1))
A, B, C = list(range(100)), list(range(200, 300)), list(range(400, 500))


def choose(slots: list[Slot], ids: list[int], kept: int = 4) -> int:
    return choose_slot(slots, ids, kept=kept, max_slots=32).index


def test_a_text_goes_on_where_it_was() -> None:
    slots = [Slot(0, known=A, used=5), Slot(1, known=B, used=1), Slot(2)]
    assert choose(slots, [*B, 1]) == 1
    assert choose(slots, [*B[:90], 1]) == 1, "ten tokens are no loss"
    assert choose(slots, [*A, 1]) == 0


def test_a_beginning_in_common_is_no_reason_to_lose_the_rest() -> None:
    slots = [Slot(0, known=A)]
    assert choose(slots, [*A[:50], *B]) == 1
    assert choose([Slot(0, known=A), Slot(1)], [*A[:50], *B]) == 1, "an empty one does as well"


def test_old_texts_make_room_in_turn_and_low_slots_first() -> None:
    slots = [Slot(0, known=A, used=3), Slot(1, known=B, used=2), Slot(2, known=C, used=1)]
    assert choose(slots, [7, 8], kept=2) == 1, "the third one has rested longer, but a GPU computes all before it too"
    assert choose([Slot(n) for n in range(8)], [7, 8]) == 0
    assert choose([Slot(0, job=BUSY), Slot(1, known=A)], [7, 8], kept=2) == 1
    assert choose([Slot(0, job=BUSY), Slot(1, job=BUSY)], [7, 8], kept=2) == 2


def test_a_cache_that_finds_no_memory_stays_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    config = ModelConfig(dim=16, n_layers=1, n_heads=2, vocab_size=50, max_seq_len=5000)
    cache = SlotCache(config, torch.device("cpu"), torch.float32, spare=8)
    cache.reserve(1, 10)
    cache.values_LBJSK.fill_(3)
    before, grow = cache.keys_LBJSK, cache._grown

    def for_keys_alone(tensor: torch.Tensor, n_slots: int, n_places: int) -> torch.Tensor:
        if tensor is cache.values_LBJSK:
            raise RuntimeError("out of memory")
        return grow(tensor, n_slots, n_places)

    with monkeypatch.context() as patch:
        patch.setattr(cache, "_grown", for_keys_alone)
        with pytest.raises(RuntimeError):
            cache.reserve(3, 300)
    assert cache.keys_LBJSK is before
    assert (cache.n_slots, cache.n_places) == (1, 256)
    assert cache.reserve(3, 300)
    assert cache.keys_LBJSK.shape == cache.values_LBJSK.shape == (1, 4, 2, 512 + 8, 8)
    assert cache.values_LBJSK[:, 0, :, :256].eq(3).all()
    assert not cache.values_LBJSK[:, 0, :, 256:].any(), "spare places hold nothing"
    assert not cache.reserve(4, 512)


def test_a_view_of_one_slot_asks_the_device_nothing() -> None:
    config = ModelConfig(dim=16, n_layers=1, n_heads=2, vocab_size=50, max_seq_len=64)
    cache = SlotCache(config, torch.device("meta"), torch.float32)  # a device that has no answers
    cache.reserve(2, 64)
    view = SlotView(cache, [1], 10)
    view.extend(torch.zeros((1, 1), dtype=torch.long, device="meta"))
    new = torch.zeros((1, 2, 1, 8), device="meta")
    assert view.store(0, new, new)[0].shape == (1, 2, 10, 8)
