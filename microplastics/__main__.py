"""``python -m microplastics``."""

from microplastics.cli import main

if __name__ == "__main__":
    main()
