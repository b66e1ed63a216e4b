"""`mini-llm` and `python -m mini_llm`: Ctrl-C ends the process at once until the command line is imported."""

import signal


def main() -> None:
    """Run the command line."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    from mini_llm.cli import main as run

    run()


if __name__ == "__main__":
    main()
