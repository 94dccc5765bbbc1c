"""`python -m rl4dlm` is the command line, as `rl4dlm` is."""

from __future__ import annotations

from rl4dlm.cli import main

if __name__ == "__main__":
    main()
