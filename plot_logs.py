"""The seed's `python plot_logs.py [RUN]...`: the same as `mini-llm plot`."""

import sys

from mini_llm.cli import exit_codes, run

if __name__ == "__main__":
    with exit_codes():
        run(["plot", *sys.argv[1:]])
