"""``python -m overopt``."""

from overopt.cli import main

if __name__ == "__main__":
    main()
