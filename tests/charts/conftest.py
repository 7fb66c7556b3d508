import pytest

from emacore.charts.figure import alt


@pytest.fixture(autouse=True, scope="package")
def checked():
    """Have Altair check each chart that is made here against the schema of Vega-Lite, which no page waits for."""
    as_it_is = alt.LayerChart.to_dict

    def to_dict(chart, **arguments):
        return as_it_is(chart, **{**arguments, "validate": True})

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(alt.LayerChart, "to_dict", to_dict)
        yield
