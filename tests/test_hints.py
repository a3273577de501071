"""The name that may have been meant."""

import pytest

from vtc.hints import did_you_mean


@pytest.mark.parametrize(
    ("name", "meant"),
    [("divprun", "divprune"), ("VTC_CLS", "vtc-cls"), ("start-layer", "start_layer"), ("Keep", "keep")],
)
def test_the_nearest_name_is_offered_as_it_is_written(name, meant):
    known = ["keep", "start_layer", "divprune", "vtc-cls"]
    assert did_you_mean(name, known) == f" Did you mean {meant!r}?"


@pytest.mark.parametrize("name", ["", "nothing like it", "xyz"])
def test_nothing_is_near(name):
    assert did_you_mean(name, {"divprune": 1, "vtc-cls": 2}) == ""
    assert did_you_mean(name, []) == ""
