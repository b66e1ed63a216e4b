"""The seed's `python run_train.py --config FILE [KEY=VALUE]...`: the same as `mini-llm train`."""

import sys

from mini_llm.cli import exit_codes, run

if __name__ == "__main__":
    with exit_codes():
        run(["train", *sys.argv[1:]])
