"""The verdict of a comparison: how far each model is behind the baseline, how sure that is, and at what cost."""

from collections.abc import Mapping, Sequence

from ..utils.tables import decimals


def verdict(differences: Sequence[dict], baseline: str, time_ratios: Mapping[str, float]) -> list[str]:
    """One sentence for each model but the baseline.

    Args:
        differences: from `paired_differences`.
        baseline: name of the first model.
        time_ratios: for each model, the time of a forward pass divided by the baseline's.
    """
    return [sentence(row, baseline, time_ratios[row["model"]]) for row in differences]


def sentence(row: dict, baseline: str, time_ratio: float) -> str:
    """The verdict on one model: "ATConv is 1.20 FID behind SA, 95 % [0.80, 1.60] over 3 seeds, at 0.73 of its time."""
    cost = f"at {time_ratio:.2f} of the time of a forward pass"
    if not row["per_seed"]:
        return f"{row['model']} and {baseline} have no seed in common, so their FIDs are not compared; {cost}."
    mean, interval, count = row["mean"], row["interval"], len(row["per_seed"])
    source = f"over {count} seeds"
    if count == 1:
        interval, source = row["per_seed"][0]["interval"], "over samples of one seed"
    place = "behind" if mean >= 0 else "ahead of"
    places = decimals([mean, *(interval or ())], digits=3)
    text = f"{row['model']} is {abs(mean):.{places}f} FID {place} {baseline}"
    if interval is None:
        return f"{text}, one seed without an interval, {cost}."
    low, high = interval if mean >= 0 else (-interval[1], -interval[0])
    text += f", 95 % [{low:.{places}f}, {high:.{places}f}] {source}"
    if low <= 0 <= high:
        text += ", which includes 0: they are not told apart"
    return f"{text}, {cost}."
