"""From ids to text that may be shown: whole characters, and nothing of a stop string."""

from collections.abc import Collection, Iterator, Sequence

from mini_llm.errors import UsageError
from mini_llm.inference.engine.request import FinishReason, Handle
from mini_llm.tokenizer.tokenizer import StreamDecoder, Tokenizer


class StopStrings:
    """A gate for streamed text: it shuts before the first stop string, wherever the pieces are cut.

    What may be the beginning of a stop string waits behind the gate until more text decides.

    Raises:
        UsageError: a stop string is empty.
    """

    def __init__(self, stops: str | Sequence[str]) -> None:
        self.stops = [stops] if isinstance(stops, str) else list(stops)
        if "" in self.stops:
            raise UsageError("a stop string must not be empty")
        self.found = False
        self._held = ""

    def push(self, text: str) -> str:
        """Take more text and return what may be shown."""
        held = self._held + text
        ends = [(start + len(stop), start) for stop in self.stops if (start := held.find(stop)) >= 0]
        if ends:
            self.found, self._held = True, ""
            return held[: min(ends)[1]]  # of several, the one that was complete first
        beginnings = (stop[:n] for stop in self.stops for n in range(1, min(len(stop), len(held) + 1)))
        shown = len(held) - max((len(part) for part in beginnings if held.endswith(part)), default=0)
        self._held = held[shown:]
        return held[:shown]

    def flush(self) -> str:
        """Return what was held back, when no more text comes."""
        held, self._held = self._held, ""
        return held


def decoder_after(tokenizer: Tokenizer, ids: Sequence[int]) -> StreamDecoder:
    """Return a decoder for what follows `ids`: some tokenizers drop the space of the first token that they decode."""
    decoder = StreamDecoder(tokenizer)
    for token_id in ids:
        decoder.push(token_id)
    return decoder


class Assembler:
    """Ids in, text out: whole characters, up to a token that ends texts or to the first stop string.

    Args:
        decoder: has seen the prompt already.
        eos_ids: the first one of these ends the text.
    """

    def __init__(self, decoder: StreamDecoder, stops: StopStrings, eos_ids: Collection[int]) -> None:
        self._decoder, self._stops, self._eos_ids = decoder, stops, eos_ids
        self.ended = False  # by one of the ids, or by a stop string
        self.n_tokens = 0

    def push(self, token_id: int) -> str:
        """Take one more token and return what may be shown now; nothing may follow where this ends the text."""
        self.n_tokens += 1
        if token_id in self._eos_ids:
            return self.finish(ended=True)
        piece = self._stops.push(self._decoder.push(token_id))
        self.ended = self._stops.found
        return piece

    def finish(self, *, ended: bool = False) -> str:
        """Return what was held back, when no more tokens come."""
        rest = "" if self._stops.found else self._stops.push(self._decoder.flush()) + self._stops.flush()
        self.ended = ended or self._stops.found
        return rest


class Continuation(Iterator[str]):
    """The text that follows a prompt, piece by piece. Joined, the pieces are the text; then ask `finish_reason`.

    Args:
        ids: new tokens; the first one in `eos_ids` ends the text. A `Handle` is cancelled where a stop string ends it.
        decoder: has seen the prompt already.
    """

    def __init__(
        self, ids: Iterator[int], decoder: StreamDecoder, stops: StopStrings, eos_ids: Collection[int]
    ) -> None:
        self.finish_reason: FinishReason | None = None  # None: not finished
        self.ids = ids
        self._text = Assembler(decoder, stops, eos_ids)

    @property
    def n_tokens(self) -> int:
        """How many tokens have come."""
        return self._text.n_tokens

    # No generator: its frame would hold the continuation that holds it, and who drops one would not cancel it.
    def __next__(self) -> str:
        while self.finish_reason is None:
            if piece := self._advance():
                return piece
        raise StopIteration

    def cancel(self) -> None:
        """Compute no more of it."""
        if isinstance(self.ids, Handle):
            self.ids.cancel()

    def _advance(self) -> str:
        """Take one more token and return what may be shown now; at the end, what was held back."""
        token_id = next(self.ids, None)
        if token_id is not None:
            piece = self._text.push(token_id)
            if self._text.ended:
                self._finish("stop")
            return piece
        rest = self._text.finish()
        reason = self.ids.finish_reason if isinstance(self.ids, Handle) else None
        self._finish("stop" if self._text.ended else reason or "length")
        return rest

    def _finish(self, reason: FinishReason) -> None:
        self.cancel()
        self.finish_reason = reason
