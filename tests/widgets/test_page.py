"""Tables as pages show them."""

import pandas as pd

from emacore.widgets.page import readable


def test_a_table_is_written_for_people_and_keeps_its_numbers():
    table = pd.DataFrame(
        {
            "loss": [0.6176929390770008, 20000.0, float("nan")],
            "final beta": [0.99999, 0.5, 1.0],
            "steps": pd.array([400_000, None, 1], dtype="Int64"),
            "kept": [True, False, True],
            "code": ["a", "b", "c"],
        }
    )
    shown = readable(table)
    cells = [
        line.split(",")
        for line in shown.hide().to_string(delimiter=";").replace(",", "'").replace(";", ",").split("\n")
    ]
    assert cells[1:4] == [
        ["0.6177", "0.99999", "400'000", "True", "a"],
        ["20'000", "0.5", "", "False", "b"],
        ["", "1", "1", "True", "c"],
    ]
    assert shown.data is table
