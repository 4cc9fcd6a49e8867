"""`python -m hubtool`."""

from hubtool.cli import main

if __name__ == "__main__":
    main()
