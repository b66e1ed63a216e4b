"""The seed's `python run_inference.py --prompt TEXT`: `mini-llm generate` with the newest run under runs/."""

import argparse
from typing import NoReturn

from mini_llm.cli import exit_codes, run
from mini_llm.runs import newest_run
from mini_llm.terminal import visible


class Parser(argparse.ArgumentParser):
    """Repeats a wrong word without what a terminal would obey in it."""

    def error(self, message: str) -> NoReturn:
        """Say what is wrong and exit with 2."""
        super().error(visible(message))


if __name__ == "__main__":
    parser = Parser(description=__doc__)
    parser.add_argument("--prompt", default="Once upon a time")
    parser.add_argument("--checkpoint", help="a run folder, a checkpoint or any Llama folder; default: the newest run")
    parser.add_argument("--tokenizer", help="a tokenizer's folder; default: the checkpoint's own")
    parser.add_argument("--temp", default="0.8", help="0 picks the likeliest token; higher is more daring")
    parser.add_argument("--top_p", default="0.95")
    parser.add_argument("--max_tokens", default="100")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1 or mps")
    with exit_codes():
        options = parser.parse_args()
        words = ["generate", options.checkpoint or str(newest_run("latest")), "--prompt", options.prompt]
        words += ["--temperature", options.temp, "--top-p", options.top_p, "--max-new-tokens", options.max_tokens]
        words += ["--device", options.device]
        run(words + (["--tokenizer", options.tokenizer] if options.tokenizer else []))
