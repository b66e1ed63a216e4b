"""The plug-in for lm-eval: its tasks and its tables, with this model behind them.

    python -m mini_llm.eval.lm_eval run --model mini-llm --model_args pretrained=RUN --tasks arc_easy

is lm-eval's own command line with the name `mini-llm` registered: release 0.4.13 finds no plug-ins by itself. Import
it once and never reload it: lm-eval refuses a name that is registered twice.
"""

from __future__ import annotations

from itertools import groupby
from operator import itemgetter
from pathlib import Path
from typing import Any

from lm_eval.api.model import TemplateLM
from lm_eval.api.registry import register_model

from mini_llm.errors import UsageError, UserError
from mini_llm.eval.evaluate import rolling_loglikelihoods
from mini_llm.eval.language_model import MAX_NEW_TOKENS, LocalModel


@register_model("mini-llm")
class MiniLM(TemplateLM):
    """A run, checkpoint or Llama folder as lm-eval's model.

    Args:
        pretrained: the folder.
        dtype: as of `mini-llm eval`.
        device: lm-eval gives "cuda:0" by default, also where there is none: then it is the CPU.
        more: lm-eval's batch_size and the like, which are not needed.
    """

    def __init__(
        self, pretrained: str, dtype: str = "auto", device: str | None = None, tokenizer: str | None = None, **more: Any
    ) -> None:
        super().__init__()
        del more
        path = None if tokenizer is None else Path(tokenizer)
        try:
            self.inner = LocalModel.load(pretrained, tokenizer=path, device=device or "auto", dtype=str(dtype))
        except UsageError:
            if not str(device).startswith("cuda"):
                raise
            self.inner = LocalModel.load(pretrained, tokenizer=path, device="cpu", dtype=str(dtype))
        self.max_length = self.inner.max_length

    @property
    def eot_token_id(self) -> int:
        """The token that ends a text."""
        eos = self.inner.tokenizer.eos_id
        return self.inner.first_id if eos is None else eos

    @property
    def prefix_token_id(self) -> int:
        """The token that stands before a text."""
        return self.inner.first_id

    @property
    def tokenizer_name(self) -> str:
        """What lm-eval's caches are named after."""
        return self.inner.tokenizer.fingerprint.replace(":", "_")

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_more: Any) -> list[int]:
        """Return the ids of a text, after those that the tokenizer puts first unless that is refused."""
        before = [] if add_special_tokens is False else self.inner.prefix_ids
        return [*before, *self.inner.tokenizer.encode(string)]

    def _loglikelihood_tokens(
        self, requests: list[tuple[tuple[str, str], list[int], list[int]]], **_more: Any
    ) -> list[tuple[float, bool]]:
        scores = self.inner.score([(context, continuation) for _, context, continuation in requests])
        return [(score.loglikelihood, score.is_greedy) for score in scores]

    def loglikelihood_rolling(self, requests: Any, disable_tqdm: bool = False) -> list[float]:
        """Return the log-likelihood of whole texts."""
        return rolling_loglikelihoods(self.inner, [request.args[0] for request in requests], predict_prefix=True)

    def generate_until(self, requests: Any, disable_tqdm: bool = False) -> list[str]:
        """Return the likeliest continuations, each up to its first stop string.

        Raises:
            UserError: a request wants to draw at random.
        """
        asked: list[tuple[int, list[int], list[str]]] = []
        for context, options in (request.args for request in requests):
            if options.get("do_sample"):
                raise UserError("only the likeliest text is evaluated", "do_sample: false in the task")
            until = options.get("until") or []
            stops = [stop for stop in ([until] if isinstance(until, str) else until) if stop]
            asked.append((int(options.get("max_gen_toks", MAX_NEW_TOKENS)), self.tok_encode(context), stops))
        written: list[str] = []
        for most, alike in groupby(asked, key=itemgetter(0)):  # those of a task, written many at once
            _, contexts, stops_of_each = zip(*alike, strict=True)
            written += self.inner.write(contexts, stops_of_each, most)
        return written


def main() -> None:
    """Run lm-eval's command line."""
    from lm_eval.__main__ import cli_evaluate

    cli_evaluate()


if __name__ == "__main__":
    main()
