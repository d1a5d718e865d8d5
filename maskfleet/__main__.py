"""The program: `maskfleet` and `python -m maskfleet`.

`python -m` puts the current folder at the front of Python's path, where a `model.py` or a `random.py` of the user's
would be taken for ours or for Python's own. So nothing is imported before the path is put right.
"""

import os
import sys


def own_path(path: "list[str]", current: str, home: str) -> "list[str]":
    """Python's path for this program: without the current folder, and with the folder that holds its packages."""
    kept = [entry for entry in path if entry and os.path.realpath(entry) != os.path.realpath(current)]
    return kept if home in map(os.path.realpath, kept) else [home, *kept]


def main() -> None:
    """Runs the command of `sys.argv`; its exit code ends the process."""
    home = os.path.dirname(os.path.dirname(os.path.realpath(__file__)))
    sys.path[:] = own_path(sys.path, os.getcwd(), home)
    from maskfleet.packages import check_packages

    check_packages()
    from jobs.cli import main as run_command

    run_command()


if __name__ == "__main__":
    main()
