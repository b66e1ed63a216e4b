"""`python -m mini_llm` is `mini-llm`."""

from mini_llm.cli import main

if __name__ == "__main__":
    main()
