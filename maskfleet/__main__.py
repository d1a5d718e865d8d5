"""The program: `maskfleet` and `python -m maskfleet`.

`python -m` puts the current folder at the front of Python's path, where a `model.py` or a `random.py` of the user's
would be taken for ours or for Python's own. So nothing is imported before the path is put right.
"""

import os
import sys


def own_path(path: "list[str]", current: str, home: str) -> "list[str]":
    """Python's path for this program: without the current folder, and with the folder of its packages, at the end.

    Args:
        current: the current folder; "" where it was removed, so that nothing can be imported from it.
        home: the folder of the packages.
    """
    kept = without(path, current)
    return kept if home in kept else [*kept, home]


def without(path: "list[str]", folder: str) -> "list[str]":
    """The entries of a path that are not this folder; the empty entry stands for the current one, and goes too."""
    if not folder:
        return [entry for entry in path if entry]
    return [entry for entry in path if entry and os.path.realpath(entry) != folder]


def end_at_once(number: int, frame: object) -> None:
    """Handler of a signal that comes before there is anything to give back."""
    try:
        os.write(2, b"maskfleet: interrupted: nothing was started; run the same command again\n")
    except OSError:  # the terminal is gone
        pass
    os._exit(130)


def main() -> None:
    """Runs the command of `sys.argv`; its exit code ends the process."""
    home = os.path.dirname(os.path.dirname(os.path.realpath(__file__)))
    try:
        current = os.path.realpath(os.getcwd())
    except OSError:
        current = ""
    sys.path[:] = own_path(sys.path, current, home)
    if "PYTHONPATH" in os.environ:  # which the processes that we start would take over
        entries = os.environ["PYTHONPATH"].split(os.pathsep)
        os.environ["PYTHONPATH"] = os.pathsep.join(without(entries, current))
    import signal

    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):  # until jobs.interrupt takes them, after the imports
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, end_at_once)
    from maskfleet.packages import absence, check_packages

    check_packages()
    try:
        from jobs.cli import main as run_command

        run_command()
    except ModuleNotFoundError as error:
        command = next((word for word in sys.argv[1:] if not word.startswith("-")), "this program")
        sys.stderr.write(f"maskfleet: {absence(command, error)}\n")
        sys.exit(2)


if __name__ == "__main__":
    main()
