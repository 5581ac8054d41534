"""Warnings on the conditions under which compared runs were made: code, libraries, machines, speeds."""

from collections.abc import Sequence

from src.reporting.systems import Difference, System

#: Largest ratio of the speeds of one system's seeds that counts as steady.
MAX_SPEED_RATIO = 1.1


def warn_of_conditions(differences: Sequence[Difference], systems: Sequence[System]) -> list[str]:
    """Return the warnings on differences that affect other numbers than the loss, and on unsteady speeds."""
    warnings = []
    others = sorted({f"{d.what}: {d.key} ({d.system})" for d in differences if d.what not in ("loss", "software")})
    if others:
        warnings.append(
            f"Measured under different conditions, so these columns are not comparable: {', '.join(others)}."
        )
    software = sorted({f"{d.key} ({d.system})" for d in differences if d.what == "software"})
    if software:
        warnings.append(f"Not run by the same code and libraries: {', '.join(software)}.")
    return warnings + _warn_of_unsteady_speeds(systems)


def _warn_of_unsteady_speeds(systems: Sequence[System]) -> list[str]:
    """Warn of systems whose seeds ran at different speeds: their times also measure the machine's load."""
    found = []
    for system in systems:
        speeds = [run.result["tokens_per_s"] for run in system.runs]
        if max(speeds) > MAX_SPEED_RATIO * min(speeds):
            found.append(f"{system.label} ({min(speeds):,.0f} to {max(speeds):,.0f} tokens/s)")
    text = "Seeds of one system ran at different speeds, so costs and times are not comparable"
    return [f"{text}: {', '.join(found)}."] if found else []
