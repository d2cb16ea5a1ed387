"""Stage 1: refines stage 0's field at a finer MIP. No training, no weights; registration.py does the work."""

import registration


def create(
    spacing: float = 8.0,
    smoothness: float = 0.005,
    iterations: int = 10,
    scales: tuple[int, ...] = (1,),
    radius: int = 0,
) -> registration.Aligner:
    """x"""
    searches = (registration.Search(scale=2, radius=radius),) if radius else ()
    return registration.Aligner(
        registration.Settings(searches, spacing=spacing, smoothness=smoothness, iterations=iterations, scales=scales)
    )
