"""What the model has read, kept so that a chat's next turn reads only what is new."""

from mini_llm.model.kv_cache import KVCache
from mini_llm.model.transformer import Transformer


def new_cache(model: Transformer, batch_size: int, n_slots: int) -> KVCache:
    """Return an empty cache that fits `model`, on its device and in its type."""
    weight = model.lm_head.weight
    return KVCache(model.config, batch_size, n_slots, device=weight.device, dtype=weight.dtype)


class Memory:
    """One text's ids, and the KV cache that holds them."""

    def __init__(self) -> None:
        self.ids: list[int] = []
        self.cache: KVCache | None = None

    def recall(self, ids: list[int], model: Transformer, n_slots: int) -> tuple[KVCache, list[int]]:
        """Forget all but the longest common beginning with `ids`; return the cache and the ids still to be read.

        At least the last id is read again: its scores are what comes next. A cache of fewer than `n_slots` gives way to
        one at least twice as large, so that a growing chat is seldom read anew.
        """
        if self.cache is None or self.cache.max_len < n_slots:
            doubled = min(2 * self.cache.max_len, model.config.max_seq_len) if self.cache else 0
            self.ids, self.cache = [], new_cache(model, 1, max(n_slots, doubled))
        known = 0
        while known < min(len(self.ids), len(ids) - 1) and self.ids[known] == ids[known]:
            known += 1
        self.ids = ids[:known]  # first this: after a Ctrl-C, `ids` may lag behind the cache, never lead
        self.cache.rewind(known)
        return self.cache, ids[known:]
