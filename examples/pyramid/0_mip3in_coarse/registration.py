"""Registration of two EM sections without any training: block matching, then gradient refinement.

Conventions. An image is (1, 1, X, Y) with x first, normalised to mean 0; exactly 0 is invalid (black,
masked) and takes no part. A field f is (1, 2, X, Y) in pixels; component 0 displaces along y (the last axis),
component 1 along x, and `pull(image, f)[x, y] = image[x + f[1, x, y], y + f[0, x, y]]`.

The result is `prior + residual`, the residual a cubic B-spline on a coarse grid of control points, so it is
smooth whatever the images hold. It is found in two steps, after Siebert, Hansen & Heinrich, "ConvexAdam:
Self-Configuring Dual-Optimization-Based 3D Multitask Medical Image Registration", IEEE TMI 2024:

1. `search`, from the coarsest level to the finest: normalised cross-correlation (NCC) around every control
   point for every whole-pixel shift within a radius, then a smooth field that agrees with it ("coupled
   convex"). It sees far and has no starting point to be trapped at.
2. `refine`: Adam on the control points, for local NCC and smoothness. It is exact to a fraction of a pixel.

Neighbouring EM sections correlate at about 0.2, so a single block often has its best match in a wrong place.
Hence NCC (blind to local brightness and contrast), windows much wider than the grid's spacing, and neighbours
that settle a block's answer together.

Every windowed mean, change of resolution and spline is a product with two small matrices, one an axis: sizes
need not divide each other, borders need no padding, and a GPU gives the same bits every time.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

EPSILON = 1e-6
MIN_SIZE = 32
LEAST_VALID = 0.5  # a pixel of a coarser level is valid if so much of what it averages is
LEAST_COVERAGE = 0.2  # a window with a smaller valid share says nothing


@dataclass(frozen=True)
class Search:
    """One level of block matching. Pixels here are the level's own: `scale` pixels of the input each."""

    scale: float  # 4 looks at the images at a quarter of their size
    radius: int  # shifts of up to so many pixels in x and in y
    window: float = 8.0  # standard deviation of the Gaussian window that NCC is taken in


@dataclass(frozen=True)
class Settings:
    """How to register. Lengths are in pixels of the input unless said."""

    searches: tuple[Search, ...]
    spacing: float = 16.0  # between control points
    couplings: tuple[float, ...] = (0.003, 0.01, 0.03, 0.1, 0.3)  # NCC lost a squared pixel from the mean
    refine_window: float = 10.0  # standard deviation of its Gaussian window
    refine_iterations: int = 60
    learning_rate: float = 0.25  # pixels an iteration, about
    smoothness: float = 1.0  # NCC given up for a unit of `bending`


class Aligner(torch.nn.Module):
    """The aligner interface around `register`."""

    def __init__(self, settings: Settings) -> None:
        super().__init__()
        self.settings = settings

    def forward(self, src_img: Tensor, tgt_img: Tensor, src_agg_field: Tensor | None = None) -> Tensor:
        """The field (1, 2, X, Y), prior included, that pulls the source (1, 1, X, Y) onto the target."""
        return register(src_img, tgt_img, src_agg_field, self.settings)


def register(src: Tensor, tgt: Tensor, prior: Tensor | None, settings: Settings) -> Tensor:
    """The field (1, 2, X, Y) that pulls `src` onto `tgt`, both (1, 1, X, Y); it starts from `prior`."""
    size = check_images(src, tgt)
    # The caller may be in inference mode, whose tensors Adam cannot differentiate; copies made here it can.
    with torch.inference_mode(False), torch.no_grad():
        src, tgt = usable(src), usable(tgt)
        prior = start_field(prior, src)
        nodes = tuple(max(3, round(n / settings.spacing)) for n in size)
        residual = src.new_zeros(1, 2, *nodes)
        for stage in settings.searches:
            residual = search(Level.of(src, tgt, prior, nodes, stage.scale), residual, stage, settings)
        residual = refine(Level.of(src, tgt, prior, nodes, scale=1), residual, settings)
        return prior + spline(residual, size)


def check_images(src: Tensor, tgt: Tensor) -> tuple[int, int]:
    """The images' size (X, Y), or ValueError."""
    if src.shape != tgt.shape or src.ndim != 4 or src.shape[:2] != (1, 1):
        raise ValueError(f"source is {tuple(src.shape)}, target {tuple(tgt.shape)}; want (1, 1, X, Y) twice")
    if min(src.shape[2:]) < MIN_SIZE:
        raise ValueError(f"images are {tuple(src.shape[2:])} pixels; at least {MIN_SIZE} a side are needed")
    return src.shape[2], src.shape[3]


def usable(image: Tensor) -> Tensor:
    """A float32 copy of `image`; what is not finite is invalid, like 0."""
    return torch.nan_to_num(image.detach().float().clone(), nan=0.0, posinf=0.0, neginf=0.0)


def start_field(prior: Tensor | None, image: Tensor) -> Tensor:
    """The prior made finite everywhere, or zeros; (1, 2, X, Y) beside `image` (1, 1, X, Y)."""
    shape = (1, 2, *image.shape[2:])
    if prior is None:
        return image.new_zeros(shape)
    if prior.shape != shape:
        raise ValueError(f"the prior is {tuple(prior.shape)}; these images need {shape}")
    prior = prior.detach().to(image).clone()
    known = torch.isfinite(prior).all(dim=1, keepdim=True)
    return fill(torch.where(known, prior, 0.0), known.to(prior))


def fill(field: Tensor, known: Tensor) -> Tensor:
    """`field` (1, 2, X, Y) with values where `known` (1, 1, X, Y) is 0 taken from known ones around them.

    Pull-push: average the known values on ever coarser grids until there are no gaps, and go back up.
    """
    if bool((known > 0).all()) or max(known.shape[2:]) == 1:
        return field
    half = ((known.shape[2] + 1) // 2, (known.shape[3] + 1) // 2)
    share = functional.adaptive_avg_pool2d(known, half)
    coarse = functional.adaptive_avg_pool2d(field * known, half) / share.clamp(min=EPSILON)
    coarse = fill(coarse, (share > 0).to(share))
    around = functional.interpolate(coarse, size=known.shape[2:], mode="bilinear", align_corners=False)
    return torch.where(known > 0, field, around)


# --- a level's images


@dataclass(frozen=True)
class Level:
    """Both images and the prior at one resolution. Fields and residuals are in pixels of the level.

    src, tgt: (1, 2, x, y), channel 0 the image, channel 1 its validity, 0 or 1; prior: (1, 2, x, y);
    scale: (1, 2, 1, 1), pixels of the input a pixel, along y and along x; nodes: size of the control grid.
    """

    src: Tensor
    tgt: Tensor
    prior: Tensor
    scale: Tensor
    nodes: tuple[int, ...]

    @staticmethod
    def of(src: Tensor, tgt: Tensor, prior: Tensor, nodes: tuple[int, ...], scale: float) -> Level:
        """The level whose pixels are `scale` pixels wide. All images are slightly blurred: EM is noisy."""
        full = src.shape[2:]
        size = tuple(max(8, round(n / scale)) for n in full)
        exact = src.new_tensor([full[1] / size[1], full[0] / size[0]]).view(1, 2, 1, 1)
        widths = tuple(0.6 * n / m for n, m in zip(full, size, strict=True))
        pooling = tuple(gaussians(m, n, w, src) for m, n, w in zip(size, full, widths, strict=True))
        coarse_prior = separable(prior, pooling) / exact
        return Level(pool_valid(src, pooling), pool_valid(tgt, pooling), coarse_prior, exact, nodes)

    @property
    def size(self) -> tuple[int, ...]:
        return tuple(self.tgt.shape[2:])

    def field(self, residual: Tensor) -> Tensor:
        """The whole field (1, 2, x, y) for a residual (1, 2, *nodes) in pixels of the input."""
        return self.prior + spline(residual, self.size) / self.scale


def pool_valid(image: Tensor, pooling: tuple[Tensor, ...]) -> Tensor:
    """Means over the valid pixels (those not 0), and where enough of them are: (1, 2, x, y)."""
    valid = (image != 0).to(image)
    share = separable(valid, pooling)
    mean = separable(image, pooling) / share.clamp(min=EPSILON)
    kept = (share > LEAST_VALID).to(image)
    return torch.cat([mean * kept, kept], dim=1)


# --- the two searches


def search(level: Level, residual: Tensor, stage: Search, settings: Settings) -> Tensor:
    """One step of block matching: a better residual (1, 2, *nodes), in pixels of the input."""
    field = level.field(residual)
    moved = pull(level.src, field)
    moved = torch.cat([moved[:, :1], whole(moved[:, 1:])], dim=1)
    shifts = all_shifts(stage.radius, moved)
    windows = node_windows(level, stage.window)
    scores = torch.cat([ncc(shifted(moved, shift), level.tgt, windows) for shift in shifts.tolist()])
    step = couple(scores.flatten(1), shifts, level.nodes, settings.couplings)
    return residual_after(level, field, step)


def all_shifts(radius: int, like: Tensor) -> Tensor:
    """Every whole-pixel shift within the radius, (D, 2): along y, along x."""
    reach = torch.arange(-radius, radius + 1, dtype=like.dtype, device=like.device)
    return torch.cartesian_prod(reach, reach)


def shifted(image: Tensor, shift: list[float]) -> Tensor:
    """`image` (1, C, X, Y) with value [x + shift[1], y + shift[0]] at [x, y], 0 from outside."""
    dy, dx = int(shift[0]), int(shift[1])
    return functional.pad(image, (-dy, dy, -dx, dx))


def couple(scores: Tensor, shifts: Tensor, nodes: tuple[int, ...], couplings: tuple[float, ...]) -> Tensor:
    """A smooth field (1, 2, *nodes) through the scores (D, nodes) of the shifts (D, 2).

    Each control point takes the shift with the best score less `coupling * |shift - mean|^2`, the mean being
    its neighbours'; then the means are taken anew, with a stronger coupling. It begins with the one shift
    that is best for all. A point without a clear score (a fold, bare resin) thus follows its neighbours.
    """
    trust = scores.max(dim=0).values.clamp(min=0).square().view(1, 1, *nodes) + EPSILON
    smoothing = tuple(gaussians(n, n, 1.0, scores) for n in nodes)
    shortest = EPSILON * shifts.square().sum(dim=1)  # where nothing is known, all scores are 0: do not move
    best_for_all = shifts[(scores.mean(dim=1) - shortest).argmax()]
    mean = best_for_all.view(1, 2, 1, 1).expand(1, 2, *nodes)
    for coupling in couplings:
        distance = (shifts[:, :, None] - mean.flatten(2)).square().sum(dim=1)
        chosen = soft_best(scores - coupling * distance, shifts).view(1, 2, *nodes)
        mean = separable(chosen * trust, smoothing) / separable(trust, smoothing)
    return mean


def soft_best(scores: Tensor, shifts: Tensor, sharpness: float = 60.0) -> Tensor:
    """The best of the shifts (D, 2) by scores (D, n), to a fraction of a pixel: their soft maximum (2, n)."""
    return shifts.T @ torch.softmax(sharpness * scores, dim=0)


def residual_after(level: Level, field: Tensor, step: Tensor) -> Tensor:
    """The residual (1, 2, *nodes) after pulling by `field` and then by `step` (1, 2, *nodes), level pixels.

    A step s after a field f makes s(X) + f(X + s(X)): the step says where in the pulled image to look.
    """
    step = spline(step, level.size)
    whole_field = step + pull(field, step, outside="border")
    to_nodes = tuple(gaussians(m, n, 0.5 * n / m, step) for m, n in zip(level.nodes, level.size, strict=True))
    return separable((whole_field - level.prior) * level.scale, to_nodes)


def refine(level: Level, residual: Tensor, settings: Settings) -> Tensor:
    """Adam on the control points (1, 2, *nodes), in pixels of the input, for local NCC and smoothness."""
    windows = node_windows(level, settings.refine_window)
    with torch.enable_grad():
        residual = residual.clone().requires_grad_()
        adam = torch.optim.Adam([residual], lr=settings.learning_rate)
        decay = torch.optim.lr_scheduler.CosineAnnealingLR(adam, max(1, settings.refine_iterations))
        for _ in range(settings.refine_iterations):
            adam.zero_grad()
            moved = pull(level.src, level.field(residual))
            moved = torch.cat([moved[:, :1], whole(moved[:, 1:].detach())], dim=1)
            similarity = ncc(moved, level.tgt, windows).mean()
            loss = settings.smoothness * bending(residual, settings.spacing) - similarity
            loss.backward()
            adam.step()
            decay.step()
    return residual.detach()


def bending(residual: Tensor, spacing: float) -> Tensor:
    """Mean squared change of the strain from one control point to the next; 0 for an affine residual.

    The thin-plate energy of Rueckert et al., "Nonrigid registration using free-form deformations", IEEE TMI
    1999, here on the control points: shift, shear and scaling are free, and so are bends of the prior.
    """
    along_x, along_y = residual.diff(n=2, dim=2), residual.diff(n=2, dim=3)
    mixed = residual.diff(dim=2).diff(dim=3)
    energy = along_x.square().mean() + along_y.square().mean() + 2 * mixed.square().mean()
    return energy / spacing**2


# --- measures


def ncc(moved: Tensor, tgt: Tensor, windows: tuple[Tensor, ...]) -> Tensor:
    """Correlation (1, *nodes) of two (1, 2, x, y), in a window around each control point, -1 to 1.

    Taken over pixels valid in both, and scaled down by the square root of their share: 0 where none are.
    """
    (a, valid_a), (b, valid_b) = moved[0], tgt[0]
    both = valid_a * valid_b
    a, b = a * both, b * both
    share, a_mean, b_mean, aa, bb, ab = separable(torch.stack([both, a, b, a * a, b * b, a * b]), windows)
    known = share.clamp(min=EPSILON)
    a_mean, b_mean = a_mean / known, b_mean / known
    covariance = ab / known - a_mean * b_mean
    variances = (aa / known - a_mean**2).clamp(min=EPSILON) * (bb / known - b_mean**2).clamp(min=EPSILON)
    weight = torch.where(share > LEAST_COVERAGE, share, 0.0).sqrt()
    return (weight * covariance / variances.sqrt())[None]


def pull(image: Tensor, field: Tensor, outside: str = "zeros") -> Tensor:
    """`image` (1, C, X, Y) at [x + field[1], y + field[0]], bilinear; outside: grid_sample's padding_mode."""
    x_size, y_size = image.shape[2:]
    x = torch.arange(x_size, dtype=field.dtype, device=field.device)[:, None] + field[0, 1]
    y = torch.arange(y_size, dtype=field.dtype, device=field.device)[None, :] + field[0, 0]
    # grid_sample wants the last axis first, and pixel centres at (2 i + 1) / n - 1
    grid = torch.stack([(2 * y + 1) / y_size - 1, (2 * x + 1) / x_size - 1], dim=-1)[None]
    return functional.grid_sample(image, grid, mode="bilinear", padding_mode=outside, align_corners=False)


def whole(validity: Tensor) -> Tensor:
    """1 where bilinear sampling used valid pixels only, else 0."""
    return (validity > 0.999).to(validity)


# --- separable products


def separable(stack: Tensor, matrices: tuple[Tensor, ...]) -> Tensor:
    """Every plane (..., X, Y) of the stack times one matrix an axis, (m, X) and (k, Y): (..., m, k)."""
    along_x, along_y = matrices
    return along_x @ stack @ along_y.T


def node_windows(level: Level, width: float) -> tuple[Tensor, ...]:
    """Gaussian windows of standard deviation `width`, in pixels of the level, around the control points."""
    return tuple(gaussians(m, n, width, level.tgt) for m, n in zip(level.nodes, level.size, strict=True))


def gaussians(count: int, size: int, width: float, like: Tensor) -> Tensor:
    """`count` Gaussian windows (count, size), evenly over `size` pixels; each sums to 1, also at a border."""
    pixel = torch.arange(size, dtype=like.dtype, device=like.device)
    middle = (torch.arange(count, dtype=like.dtype, device=like.device) + 0.5) * (size / count) - 0.5
    weight = torch.exp(-0.5 * ((pixel - middle[:, None]) / width) ** 2)
    return weight / weight.sum(dim=1, keepdim=True)


def spline(nodes: Tensor, size: tuple[int, ...]) -> Tensor:
    """The cubic B-spline (1, 2, *size) with the control points `nodes` (1, 2, n, k)."""
    return separable(nodes, tuple(spline_weights(m, n, nodes) for m, n in zip(size, nodes.shape[2:], strict=True)))


def spline_weights(size: int, count: int, like: Tensor) -> Tensor:
    """What each of `count` control points gives each of `size` pixels: (size, count), rows sum to 1."""
    pixel = (torch.arange(size, dtype=like.dtype, device=like.device) + 0.5) * (count / size) - 0.5
    distance = (pixel[:, None] - torch.arange(count, dtype=like.dtype, device=like.device)).abs()
    near = 2 / 3 - distance**2 + distance**3 / 2
    far = (2 - distance).clamp(min=0) ** 3 / 6
    weight = torch.where(distance < 1, near, far)
    return weight / weight.sum(dim=1, keepdim=True)
