"""The plans and options of the latency benchmark."""

from sit_atconv.benchmarks.settings import MEASUREMENTS, PLANS, LatencyOptions, family


def test_plans_can_be_measured():
    for plan in PLANS.values():
        assert {setting.measurement for setting in plan} == set(MEASUREMENTS)
        for setting in plan:
            setting.check()
    assert LatencyOptions(device="cpu").plan == PLANS["cpu"]
    sizes = {setting.image_size for setting in PLANS["cpu"] if setting.measurement == "forward"}
    assert sizes == {256, 512, 1024, 2048}


def test_the_operator_is_not_measured_of_hybrids_by_default():
    for measurements in ["operator"], ["forward", "operator"]:
        options = LatencyOptions(device="cpu", measurements=measurements)
        assert {setting.presets for setting in options.plan} == {family("S/2")[:2]}
