"""Registration of two EM sections without any training: block matching, then least squares.

Conventions. An image is (1, 1, X, Y) with x first, normalised to mean 0; exactly 0 is invalid (black,
masked) and takes no part. A field f is (1, 2, X, Y) in pixels; component 0 displaces along y (the last axis),
component 1 along x, and `pull(image, f)[x, y] = image[x + f[1, x, y], y + f[0, x, y]]`.

The field is found in two steps:

1. `search`, from the coarsest level to the finest: normalised cross-correlation (NCC) around every control
   point for every whole-pixel shift within a radius, then a smooth field that agrees with it (the "coupled convex"
   step of Siebert, Hansen & Heinrich, "ConvexAdam", IEEE TMI 2024). It sees far and has no starting point to be
   trapped at.
2. `refine`: the images' differences are linearised around every control point, and one least-squares problem for all
   points gives a step; the field is pulled through it, and so on. This is the method of Lucas & Kanade with the
   smoothness of Horn & Schunck (Bruhn, Weickert & Schnörr, "Lucas/Kanade meets Horn/Schunck", IJCV 2005). It starts
   from the block matching, whose bends are free, and finds fractions of a pixel.

Neighbouring EM sections correlate at about 0.2, so a single block often has its best match in a wrong place.
Hence NCC (blind to local brightness and contrast), windows much wider than the grid's spacing, and neighbours
that settle a block's answer together.

Every windowed mean, change of resolution and spline is a product with two small matrices, one an axis: sizes
need not divide each other, and borders need no padding.
"""

from __future__ import annotations

import math
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
    spacing: float = 8.0  # between control points
    window: float = 9.0  # standard deviation of the Gaussian window around each of them
    smoothness: float = 0.01  # what a unit of `bending` costs against squared grey values
    iterations: int = 5  # of the refinement, with each of the BLURS


POLARITY_SEARCH = Search(scale=4, radius=4)
CLEARLY = 0.15  # by so much NCC is the right way better; between noise and noise, chance made 0.11 of it at the most
SEARCH_SPACING = 12.0  # between the control points of the block matching
COUPLINGS = (0.003, 0.01, 0.03, 0.1, 0.3)  # NCC lost a squared pixel from the mean

# Of the refinement, in pixels:
BLURS = (3.0, 1.5, 0.7)  # standard deviations of the Gaussians: the first sees farthest, the last is exact
CONTRAST_WINDOW = 30.0  # standard deviation of the window in which brightness and contrast are made equal
LONGEST_STEP = 2.0
STEP_SMOOTHNESS = 0.005  # beside `Settings.smoothness`, of a single step
LEAST_VARIANCE = 1e-4  # around a pixel, so that bare resin is not made into texture

# Of its equations:
WEAKEST = 1e-4  # where nothing is known, a step is 0 rather than anything
BENDING_DIAGONAL = 20  # of `bending`, as a matrix
SOLVER_ITERATIONS = 25
TINY = 1e-20


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
    # The caller may have autocast on, whose number types are too coarse for least squares.
    with torch.no_grad(), torch.autocast(src.device.type, enabled=False):
        src, tgt = usable(src), usable(tgt)
        field = start_field(prior, src)
        src = src * polarity(src, tgt, field)
        if settings.searches:
            nodes = grid(size, SEARCH_SPACING)
            residual = src.new_zeros(1, 2, *nodes)
            for stage in settings.searches:
                residual = search(Level.of(src, tgt, field, nodes, stage.scale), residual, stage)
            field = field + spline(residual, size)
        return refine(as_level(src), as_level(tgt), field, settings)


def grid(size: tuple[int, ...], spacing: float) -> tuple[int, ...]:
    """The number of control points, along x and along y, that stand about `spacing` pixels apart."""
    return tuple(max(4, round(n / spacing)) for n in size)


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


# --- block matching


def search(level: Level, residual: Tensor, stage: Search) -> Tensor:
    """One step of block matching: a better residual (1, 2, *nodes), in pixels of the input."""
    field = level.field(residual)
    scores = all_scores(level, field, stage)
    step = couple(scores, all_shifts(stage.radius, field), level.nodes)
    return residual_after(level, field, step)


def all_scores(level: Level, field: Tensor, stage: Search) -> Tensor:
    """The NCC of every shift around every control point, (D, nodes), of the source pulled by a field."""
    moved = pull(level.src, field)
    moved = torch.cat([moved[:, :1], whole(moved[:, 1:])], dim=1)
    windows = node_windows(level.nodes, level.size, stage.window, level.tgt)
    shifts = all_shifts(stage.radius, moved)
    return torch.cat([ncc(shifted(moved, shift), level.tgt, windows) for shift in shifts.tolist()]).flatten(1)


def all_shifts(radius: int, like: Tensor) -> Tensor:
    """Every whole-pixel shift within the radius, (D, 2): along y, along x."""
    reach = torch.arange(-radius, radius + 1, dtype=like.dtype, device=like.device)
    return torch.cartesian_prod(reach, reach)


def shifted(image: Tensor, shift: list[float]) -> Tensor:
    """`image` (1, C, X, Y) with value [x + shift[1], y + shift[0]] at [x, y], 0 from outside."""
    dy, dx = int(shift[0]), int(shift[1])
    return functional.pad(image, (-dy, dy, -dx, dx))


def couple(scores: Tensor, shifts: Tensor, nodes: tuple[int, ...]) -> Tensor:
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
    for coupling in COUPLINGS:
        distance = (shifts[:, :, None] - mean.flatten(2)).square().sum(dim=1)
        chosen = soft_best(scores - coupling * distance, shifts).view(1, 2, *nodes)
        mean = separable(chosen * trust, smoothing) / separable(trust, smoothing)
    return mean


def soft_best(scores: Tensor, shifts: Tensor, sharpness: float = 60.0) -> Tensor:
    """The best of the shifts (D, 2) by scores (D, n), to a fraction of a pixel: their soft maximum (2, n)."""
    return shifts.T @ torch.softmax(sharpness * scores, dim=0)


def residual_after(level: Level, field: Tensor, step: Tensor) -> Tensor:
    """The residual (1, 2, *nodes) after pulling by `field` and then by `step` (1, 2, *nodes), level pixels."""
    whole_field = after(field, spline(step, level.size))
    to_nodes = tuple(gaussians(m, n, 0.5 * n / m, step) for m, n in zip(level.nodes, level.size, strict=True))
    return separable((whole_field - level.prior) * level.scale, to_nodes)


# --- least squares


def refine(src: Tensor, tgt: Tensor, start: Tensor, settings: Settings) -> Tensor:
    """The field (1, 2, X, Y) after all steps of least squares, each of which pulls it further; from `start`."""
    size = tuple(tgt.shape[2:])
    nodes = grid(size, settings.spacing)
    windows = node_windows(nodes, size, settings.window, tgt)
    to_nodes = node_windows(nodes, size, settings.spacing / 2, tgt)
    field = start
    for width in BLURS:
        flat_src, flat_tgt = flattened(src, width), flattened(tgt, width)
        tgt_slopes = slopes(flat_tgt[:, :1])
        for _ in range(settings.iterations):
            moved = pull(flat_src, field)
            valid = flat_tgt[:, 1:] * whole(moved[:, 1:])
            # The mean of both slopes makes a step exact to the second order, as if it were taken from half way.
            middle = (slopes(moved[:, :1]) + tgt_slopes) / 2
            matrix, vector = equations(moved[:, :1], flat_tgt[:, :1], middle, valid, windows)
            bent = bending(separable(field - start, to_nodes)[0])
            step = solution(matrix, vector - settings.smoothness * bent, settings.smoothness + STEP_SMOOTHNESS)
            step = step * (LONGEST_STEP / step.norm(dim=1, keepdim=True).clamp(min=LONGEST_STEP))
            field = after(field, spline(step, size))
    return field


def equations(
    moved: Tensor, tgt: Tensor, slopes_there: Tensor, valid: Tensor, windows: tuple[Tensor, ...]
) -> tuple[Tensor, Tensor]:
    """What the step at each control point should be: (3, *nodes) of its matrix (yy, xx, yx), and (2, *nodes).

    moved, tgt, valid: (1, 1, x, y); slopes_there: (1, 2, x, y). A point counts by how well the images agree around it.
    """
    along_y, along_x = slopes_there[:, :1] * valid, slopes_there[:, 1:] * valid
    difference = tgt - moved
    products = [along_y * along_y, along_x * along_x, along_y * along_x, along_y * difference, along_x * difference]
    agreement = [valid * moved * tgt, valid * moved * moved, valid * tgt * tgt]
    means = separable(torch.cat([*products, *agreement], dim=1), windows)[0]
    both, squares = means[5], means[6] * means[7]
    trust = (both / squares.clamp(min=EPSILON).sqrt()).clamp(min=0)
    return means[:3] * trust, means[3:5] * trust


def solution(matrix: Tensor, vector: Tensor, smoothness: float) -> Tensor:
    """The step (1, 2, *nodes) that solves all equations in the sense of least squares, together with its smoothness.

    Conjugate gradients, preconditioned by each point's own two equations.
    """
    yy, xx, yx = matrix[0] + WEAKEST, matrix[1] + WEAKEST, matrix[2]
    own_yy, own_xx = yy + BENDING_DIAGONAL * smoothness, xx + BENDING_DIAGONAL * smoothness
    determinant = own_yy * own_xx - yx * yx

    def left_side(step: Tensor) -> Tensor:
        return torch.stack([yy * step[0] + yx * step[1], yx * step[0] + xx * step[1]]) + smoothness * bending(step)

    def preconditioned(rest: Tensor) -> Tensor:
        return torch.stack([own_xx * rest[0] - yx * rest[1], own_yy * rest[1] - yx * rest[0]]) / determinant

    step = torch.zeros_like(vector)
    rest = vector
    direction = preconditioned(rest)
    size = (rest * direction).sum()
    for _ in range(SOLVER_ITERATIONS):
        image = left_side(direction)
        length = size / (direction * image).sum().clamp(min=TINY)
        step = step + length * direction
        rest = rest - length * image
        better = preconditioned(rest)
        before, size = size, (rest * better).sum()
        direction = better + size / before.clamp(min=TINY) * direction
    return step[None]


def bending(step: Tensor) -> Tensor:
    """The gradient of half the squared second differences of a step (2, *nodes); 0 for an affine one.

    The thin-plate energy of Rueckert et al., "Nonrigid registration using free-form deformations", IEEE TMI 1999.
    """
    x, y = 1, 2
    along_x = undo_diff(undo_diff(step.diff(n=2, dim=x), x), x)
    along_y = undo_diff(undo_diff(step.diff(n=2, dim=y), y), y)
    mixed = undo_diff(undo_diff(step.diff(dim=x).diff(dim=y), x), y)
    return along_x + along_y + 2 * mixed


def undo_diff(differences: Tensor, dim: int) -> Tensor:
    """The transpose of `Tensor.diff`: one value more along `dim`."""
    pad = (1, 1) if dim == differences.ndim - 1 else (0, 0, 1, 1)
    return -functional.pad(differences, pad).diff(dim=dim)


def after(field: Tensor, step: Tensor) -> Tensor:
    """The field (1, 2, x, y) that pulls as `field` does and then as `step` does.

    A step s after a field f makes s(X) + f(X + s(X)): the step says where in the pulled image to look.
    """
    return step + pull(field, step, outside="border")


# --- images made comparable


def polarity(src: Tensor, tgt: Tensor, field: Tensor) -> float:
    """-1 if one image is the other's negative, else 1: blocks are matched both ways, and the better way wins.

    It has to be clearly better. Where the right shift is out of reach, both ways find nothing but chance.
    """
    level = Level.of(src, tgt, field, grid(tuple(src.shape[2:]), SEARCH_SPACING), POLARITY_SEARCH.scale)
    scores = all_scores(level, level.prior, POLARITY_SEARCH)
    alike, unlike = (each.max(dim=0).values.mean() for each in (scores, -scores))
    return -1.0 if bool(unlike > alike + CLEARLY) else 1.0


def as_level(image: Tensor) -> Tensor:
    """An image (1, 1, X, Y) and its validity: (1, 2, X, Y)."""
    return torch.cat([image, (image != 0).to(image)], dim=1)


def flattened(image: Tensor, width: float) -> Tensor:
    """An image (1, 2, X, Y) blurred by `width`, with mean 0 and deviation 1 around every pixel.

    Its validity, in channel 1, ends a pixel sooner, so that no slope needs an invalid pixel.
    """
    valid = image[:, 1:]
    size = tuple(image.shape[2:])
    blurred = blur(image[:, :1] * valid, width) / blur(valid, width).clamp(min=EPSILON) * valid
    windows = node_windows(grid(size, CONTRAST_WINDOW / 4), size, CONTRAST_WINDOW, image)
    share, mean, square = separable(torch.cat([valid, blurred, blurred * blurred], dim=1), windows).split(1, dim=1)
    share = share.clamp(min=EPSILON)
    mean = mean / share
    deviation = (square / share - mean * mean).clamp(min=LEAST_VARIANCE).sqrt()
    around = functional.interpolate(torch.cat([mean, deviation], dim=1), size=size, mode="bilinear")
    inner = -functional.max_pool2d(-valid, 3, stride=1, padding=1)
    return torch.cat([(blurred - around[:, :1]) / around[:, 1:] * valid, inner], dim=1)


def blur(plane: Tensor, width: float) -> Tensor:
    """(1, 1, x, y) through a Gaussian of standard deviation `width`; what is outside counts as the nearest pixel."""
    reach = math.ceil(3 * width)
    kernel = torch.exp(-0.5 * (torch.arange(-reach, reach + 1, dtype=plane.dtype, device=plane.device) / width) ** 2)
    kernel = kernel / kernel.sum()
    plane = functional.conv2d(functional.pad(plane, (reach, reach, 0, 0), mode="replicate"), kernel.view(1, 1, 1, -1))
    return functional.conv2d(functional.pad(plane, (0, 0, reach, reach), mode="replicate"), kernel.view(1, 1, -1, 1))


def slopes(image: Tensor) -> Tensor:
    """The derivatives of (1, 1, x, y) along y and along x: (1, 2, x, y), by central differences."""
    framed = functional.pad(image, (1, 1, 1, 1), mode="replicate")
    along_y = (framed[:, :, 1:-1, 2:] - framed[:, :, 1:-1, :-2]) / 2
    along_x = (framed[:, :, 2:, 1:-1] - framed[:, :, :-2, 1:-1]) / 2
    return torch.cat([along_y, along_x], dim=1)


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
    places = torch.stack([(2 * y + 1) / y_size - 1, (2 * x + 1) / x_size - 1], dim=-1)[None]
    return functional.grid_sample(image, places, mode="bilinear", padding_mode=outside, align_corners=False)


def whole(validity: Tensor) -> Tensor:
    """1 where bilinear sampling used valid pixels only, else 0."""
    return (validity > 0.999).to(validity)


# --- separable products


def separable(stack: Tensor, matrices: tuple[Tensor, ...]) -> Tensor:
    """Every plane (..., X, Y) of the stack times one matrix an axis, (m, X) and (k, Y): (..., m, k)."""
    along_x, along_y = matrices
    return along_x @ stack @ along_y.T


def node_windows(nodes: tuple[int, ...], size: tuple[int, ...], width: float, like: Tensor) -> tuple[Tensor, ...]:
    """Gaussian windows of standard deviation `width`, in pixels of a level, around the control points."""
    return tuple(gaussians(m, n, width, like) for m, n in zip(nodes, size, strict=True))


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
