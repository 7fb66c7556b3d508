"""What is too much, in one place: it is looked at before anything is made of what somebody typed, linked or sent."""

from __future__ import annotations

from emacore.formatting import in_bytes

#: Seeds of a study or of each cell of a sweep, the cells of a sweep, and the runs that they come to.
SEEDS = 10_000
CELLS = 2_500
#: Cells of a map on a page: fewer, because all sessions wait while they are looked at.
MAP_CELLS = 400
TRAININGS = 1_000_000
#: Rows that a page makes, epochs that it trains, hidden layers of a network and their width.
ROWS = 200_000
EPOCHS = 100_000
LAYERS = 16
WIDTH = 4_096
#: Bytes of a file that somebody brings, packed or not, and its columns and cells as a table.
TABLE_BYTES = 50 * 2**20
TABLE_COLUMNS = 2_000
TABLE_CELLS = 20_000_000
#: Cells of a table that may be all but blank, as one of a list of names and values.
SPARSE_CELLS = 500_000
#: Words of a column that become columns.
WORDS = 200
#: Bytes that the server itself reads; a larger file gets a process, with so much time and memory.
LIGHT_BYTES = 150_000
APART_SECONDS = 120
APART_BYTES = 6 * 2**30
#: Letters of a job's name, and further schedules that a page keeps.
NAME_LETTERS = 80
PINS = 5
#: Values typed or linked into one control, and the letters of the text that has them.
VALUES = 1_000
LETTERS = 20_000
#: Jobs of one session, and of all sessions, that wait for a worker.
QUEUED_OF_SESSION = 20
QUEUED = 200
#: Bytes of settings as JSON: a sweep of many values is far below.
SETTINGS_BYTES = 2**20
#: Rows of a schedule that are printed whole.
PRINTED_STEPS = 1_000_000
#: What the recorded weights of one run, and of all runs together, may take.  The article's run takes 70 MB; with all of
#: its 500 epochs it would take 330 MB.
RECORDING_BYTES = 400 * 2**20
RECORDINGS_BYTES = 4 * 2**30
#: What the tables that jobs train on may take together, and what is kept of sweeps' cells to not train them again.
TABLES_BYTES = 2**30
CELLS_BYTES = 2**30
#: Bytes of a disk that recordings leave to histories, or half of a disk that is smaller than twice as large.
DISK_RESERVE = 64 * 2**20
#: Bytes of weights that a worker holds at a time where it measures what was opened.
MEASURED_BYTES = 4 * 2**30
#: Steps from one row to the next of a recording that others wrote, its steps in all, and bytes of its description.
RECORDED_EVERY = 10**6
RECORDED_STEPS = 10**8
DESCRIPTION_BYTES = 64 * 2**20
#: Steps whose weights a merge looks at one by one: each takes some tens of bytes.
MERGED_STEPS = 10**8


def check_most(what: str, count: int, most: int, error: type[ValueError] = ValueError) -> None:
    """Raise ``error`` if there is more of something than its limit."""
    if count > most:
        raise error(f"at most {most:,} {what} are possible, got {count:,}")


def check_bytes(what: str, count: int, most: int, error: type[ValueError] = ValueError) -> None:
    """Raise ``error`` if something has more bytes than its limit; both are told in MB."""
    if count > most:
        got = in_bytes(count)
        raise error(f"at most {in_bytes(most)} {what} are possible, got {got if got != in_bytes(most) else 'more'}")
