r"""How close reconstructions of images are, and how sharp.

    L1                    mean |x - x_hat| over data, channels and pixels, for x_hat decoded from the posterior means
                          and from one draw each
    high-frequency ratio  Var(Delta x_hat) / Var(Delta x), with the Laplacian Delta x of the four neighbours,
                          (Delta x)_ij = x_{i-1,j} + x_{i+1,j} + x_{i,j-1} + x_{i,j+1} - 4 x_ij

L1 rewards the median of all images that a code allows, which is smooth; the ratio says how much of the data's detail is
left: below 1 is blurred. Detail need not be the right one, so neither figure stands alone.
"""

from dataclasses import dataclass

from torch import Tensor

from pyro_vaes.programs import Program
from pyro_vaes.tables import text_table

from ..handlers import take_means
from .predictive import reconstruct


def laplacian(images: Tensor) -> Tensor:
    """The four-neighbour Laplacian of images ``(..., H, W)`` at their inner pixels, ``(..., H - 2, W - 2)``.

    Raises:
        ValueError: An image has no inner pixel.

    Example:
        >>> import torch
        >>> laplacian(torch.arange(9.0).reshape(3, 3).square())
        tensor([[20.]])
    """
    if images.dim() < 2 or min(images.shape[-2:]) < 3:
        raise ValueError(
            f"The Laplacian needs images (..., H, W) of at least 3 x 3 pixels, but got shape {tuple(images.shape)}; "
            "give flat images their shape first: x.unflatten(-1, (C, H, W))?"
        )
    rows, columns = images[..., :, 1:-1], images[..., 1:-1, :]
    return rows[..., :-2, :] + rows[..., 2:, :] + columns[..., :-2] + columns[..., 2:] - 4 * images[..., 1:-1, 1:-1]


def high_frequency_ratio(x_hat: Tensor, x: Tensor) -> float:
    """Variance of the Laplacian of some images over that of others, such as reconstructions over data.

    Arguments:
        x_hat: Images ``(N, ..., H, W)``.
        x: Images ``(M, ..., H, W)``, not all constant.

    Raises:
        ValueError: The images of the two differ in size, or ``x`` has no detail at all.

    Example:
        >>> import torch
        >>> x = torch.randn(2, 1, 8, 8)
        >>> round(high_frequency_ratio(0.5 * x, x), 6)
        0.25
    """
    if x_hat.shape[1:] != x.shape[1:]:
        raise ValueError(f"One set has images of {tuple(x_hat.shape[1:])}, the other of {tuple(x.shape[1:])}.")
    variance = laplacian(x).double().var(correction=0)
    if not variance > 0:
        raise ValueError("The reference images are constant or linear: there is no detail to compare with.")
    return (laplacian(x_hat).double().var(correction=0) / variance).item()


@dataclass(frozen=True)
class ReconstructionReport:
    """Errors and sharpness of reconstructions; prints itself.

    Attributes:
        l1_mean: L1 of what the posterior means decode to, in units of the pixels.
        l1_sample: L1 of what one draw of each posterior decodes to.
        high_frequency_ratio: Of what the means decode to.
        high_frequency_ratio_sample: Of what draws decode to.
        num_data: Number of data.
    """

    l1_mean: float
    l1_sample: float
    high_frequency_ratio: float
    high_frequency_ratio_sample: float
    num_data: int

    def __repr__(self) -> str:
        rows = [
            ("from the mean", self.l1_mean, self.high_frequency_ratio),
            ("from a draw", self.l1_sample, self.high_frequency_ratio_sample),
        ]
        lines = text_table("reconstruction:<16 | L1:>8.4f | high-frequency ratio:>23.3f", rows)
        return "\n".join([*lines, f"on {self.num_data} data"])


def reconstruction_report(
    model: Program,
    guide: Program,
    data: Tensor | tuple[Tensor, ...],
    *,
    site: str | None = None,
    batch_size: int = 256,
    seed: int = 0,
) -> ReconstructionReport:
    """Measure how a pair reconstructs images.

    Arguments:
        model: The model, with one observed site of images ``(C, H, W)``.
        guide: The guide.
        data: The images ``(N, C, H, W)``, or the programs' arguments with the images first.
        site: The observed site; needed only if there are several.
        batch_size: Rows per pass.
        seed: Seed of the draws.

    Raises:
        ValueError: The data are no images, or there are several observed sites and none is named.

    Example:
        >>> import torch
        >>> from pyro_vaes.models import VAE
        >>> from pyro_vaes.nn import ConvDecoder, ConvEncoder, Chain, LaplaceLikelihood, NormalHead
        >>> encoder = Chain(ConvEncoder((1, 8, 8), [4], 8), NormalHead(8, 2))
        >>> vae = VAE(encoder, ConvDecoder(2, [4], (1, 8, 8)), LaplaceLikelihood(event_dim=3), latent_dim=2)
        >>> reconstruction_report(vae.model, vae.guide, torch.rand(5, 1, 8, 8)).num_data
        5
    """
    x = data[0] if isinstance(data, tuple) else data
    if x.dim() < 3:
        raise ValueError(f"The images have shape {tuple(x.shape)}; wanted (N, C, H, W). Load them with flatten=False?")
    figures = []
    for q in (take_means()(guide), guide):
        decoded = reconstruct(model, q, data, batch_size=batch_size, seed=seed)
        figures.append(_compare(decoded, x, site))
    (l1_mean, ratio), (l1_sample, ratio_sample) = figures
    return ReconstructionReport(l1_mean, l1_sample, ratio, ratio_sample, len(x))


def _compare(sites: dict[str, Tensor], x: Tensor, site: str | None) -> tuple[float, float]:
    """L1 and high-frequency ratio of one set of reconstructions."""
    if len(sites) != 1 if site is None else site not in sites:
        raise ValueError(f"The observed sites are {sorted(sites)}, but got site={site!r}: name one of them.")
    x_hat = sites[site or next(iter(sites))].reshape(x.shape)
    l1 = (x.cpu() - x_hat).abs().double().mean().item()
    return l1, high_frequency_ratio(x_hat, x.cpu())
