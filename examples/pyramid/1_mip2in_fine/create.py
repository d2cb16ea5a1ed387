"""Stage 1: refines stage 0's field at a finer MIP. No training, no weights; registration.py does the work."""

import registration


def create(
    radius: int = 3, spacing: float = 16.0, smoothness: float = 2.0, iterations: int = 60
) -> registration.Aligner:
    """An aligner that looks up to `2 * radius + 2` pixels from the prior, at half and at full size.

    Finer than stage 0, it tends to follow what really moved between sections (a cell that ends, say): it is
    therefore held smoother.

    spacing: pixels between control points; smoothness: larger is smoother (see `registration.bending`);
    iterations: of gradient refinement.
    """
    searches = (
        registration.Search(scale=2, radius=radius),
        registration.Search(scale=1, radius=2, window=12),
    )
    return registration.Aligner(
        registration.Settings(searches, spacing=spacing, smoothness=smoothness, refine_iterations=iterations)
    )
