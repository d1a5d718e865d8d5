"""`python -m jobs` is `maskfleet`."""

from jobs.cli import main

if __name__ == "__main__":
    main()
