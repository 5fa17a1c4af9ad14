"""Notes of an app, in the folder that all processes of a test share."""

from pathlib import Path


def note(text: str) -> None:
    with Path("notes").open("a") as notes:
        notes.write(f"{text}\n")
