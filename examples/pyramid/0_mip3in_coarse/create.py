"""Stage 0: finds where things are, from afar. No training, no weights; registration.py does the work."""

import registration


def create(
    radius: int = 5, spacing: float = 8.0, smoothness: float = 0.01, iterations: int = 5
) -> registration.Aligner:
    """An aligner that looks up to `6 * radius + 2` pixels from the prior, at a quarter, half and full size.

    spacing: pixels between control points; smoothness: larger is smoother (see `registration.bending`);
    iterations: of the refinement.
    """
    searches = (
        registration.Search(scale=4, radius=radius),
        registration.Search(scale=2, radius=radius),
        registration.Search(scale=1, radius=2),
    )
    return registration.Aligner(
        registration.Settings(searches, spacing=spacing, smoothness=smoothness, iterations=iterations)
    )
