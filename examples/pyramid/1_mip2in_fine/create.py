"""Stage 1: refines stage 0's field at a finer MIP. No training, no weights; registration.py does the work."""

import registration


def create(spacing: float = 8.0, smoothness: float = 0.05, iterations: int = 5) -> registration.Aligner:
    """An aligner that follows what is a few pixels from the prior; it does without a search.

    Finer than stage 0, it tends to follow what really moved between sections (a cell that ends, say): it is
    therefore held smoother.

    spacing: pixels between control points; smoothness: larger is smoother (see `registration.bending`);
    iterations: of the refinement.
    """
    return registration.Aligner(
        registration.Settings((), spacing=spacing, smoothness=smoothness, iterations=iterations)
    )
