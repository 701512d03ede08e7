"""L-MoE, the localized mixture of experts in a LoRA bottleneck (pFedSAM Figure 1; Conv-LoRA section 3).

    y = h + sum_{i in TopK(g)} g_i * E_i(h),    E_i = down_i . GELU . conv3x3_i . up_i    ("conv")
    y = sum_{i in TopK(g)} g_i * h_i,           h = (h_1, ..., h_M)                       ("head")

The second form is a mixture of low-rank adapters: each expert is a part h_i of the bottleneck, with the rows of A and
the columns of B that belong to it. Every parameter here is private: it never leaves the site.
"""

from collections.abc import Callable, Iterable
from typing import Literal, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pfedsam.model.windows import cut, join

Form = Literal["conv", "head"]
Rule = Literal["chosen", "noisy", "quiet"]
FAR = 3.0  # deviations from the mean, beyond which an image is as unlike the others as can be; our choice
NEW = 0.1  # least part of a new batch in the gate's mean and variance: some ten batches count; our choice


class Expert(nn.Module):
    """One expert: upsample by `ratio`, 3x3 convolution, GELU, downsample (Figure 1, "Expert").

    The bias and the GELU follow Conv-LoRA's release. Averaging on the way down is our choice,
    because it uses every upsampled value.
    """

    def __init__(self, channels: int, ratio: int, interpolation: str) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)
        self.ratio = ratio
        self.interpolation = interpolation

    def forward(self, h: Tensor) -> Tensor:
        """(B, r, H, W) -> (B, r, H, W)."""
        if self.ratio == 1:
            return F.gelu(self.conv(h))
        up = F.interpolate(h, scale_factor=self.ratio, mode=self.interpolation, align_corners=False)
        return F.avg_pool2d(F.gelu(self.conv(up)), self.ratio)


class Standard(nn.Module):
    """Values by channel, less their mean over images and divided by their deviation, (B, r) -> (B, r).

    Pooled maps of one site are nearly alike: only a standardised map tells its images apart. Mean and variance follow
    the images of training and are kept with the private part, for which they are parameters. No optimiser moves them.
    Training uses them too, and not those of its batch of few images. All this is our choice.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.mean, self.variance = nn.Parameter(torch.zeros(channels)), nn.Parameter(torch.ones(channels))
        self.batches = nn.Parameter(torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        """The standardised values, at most `FAR` from 0. In training the batch counts for mean and variance first."""
        if self.training:
            self._follow(x.detach())
        spread = (self.variance.detach() + 1e-12).sqrt()
        return ((x - self.mean.detach()) / spread).clamp(-FAR, FAR)

    @torch.no_grad()
    def _follow(self, x: Tensor) -> None:
        """Move mean and variance to the batch's, by the batch's part of all batches, but at least by `NEW`."""
        self.batches.add_(1)
        part = (1 / self.batches).clamp_min(NEW)
        centre = x.mean(0)
        shift = centre - self.mean
        self.mean.add_(part * shift)
        self.variance.copy_((1 - part) * (self.variance + part * shift**2) + part * (x - centre).square().mean(0))


def statistics(model: nn.Module) -> set[int]:
    """The ids of the parameters that training follows without an optimiser: those of each `Standard`."""
    return {id(p) for module in model.modules() if isinstance(module, Standard) for p in module.parameters()}


class Gate(nn.Module):
    """Scores M experts from the image's pooled map.

    "chosen" scores the standardised map (`Standard`). "noisy" and "quiet" score the raw map, with noise in training
    (Shazeer et al. 2017, section 2.1) or without. Runs of earlier versions were trained so: their scores differ by some
    hundredths, and every expert gets nearly the same weight. The weights' start is our choice: with zeros every tie
    goes to expert 0 at evaluation.
    """

    def __init__(self, channels: int, experts: int, rule: Rule) -> None:
        super().__init__()
        self.score = nn.Linear(channels, experts, bias=False)
        self.noise = nn.Linear(channels, experts, bias=False) if rule == "noisy" else None
        self.standard = Standard(channels) if rule == "chosen" else None
        nn.init.normal_(self.score.weight, std=channels**-0.5 if rule == "chosen" else 1e-2)
        if self.noise is not None:
            nn.init.zeros_(self.noise.weight)

    def forward(self, h: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """Clean scores, used scores (noisy in training), and the noise's deviation, (B, M) each. h: (B, r, H, W)."""
        pooled = h.float().mean((2, 3))
        with torch.autocast(h.device.type, enabled=False):
            clean = self.score(pooled if self.standard is None else self.standard(pooled))
            if self.noise is None or not self.training:
                return clean, clean, None
            deviation = F.softplus(self.noise(pooled)) + 1e-2
        return clean, clean + torch.randn_like(clean) * deviation, deviation


class LocalMoE(nn.Module):
    """Top-k mixture of experts in a bottleneck, in one of the module's two forms.

    Args:
        channels: width of the bottleneck: the LoRA rank r, or with "head" M times an expert's rank.
        experts: M. In "conv", expert i works at ratio i, 1..M.
        top_k: K, the number of experts that see an image.
        form: what an expert is.
        rule: how the gate scores and weighs, see `Gate` and `weights_of`.
        multiplied: multiply each expert's output by its gate, so that the task trains the gate.
        interpolation: how maps are enlarged, "bilinear" or "bicubic".
        window: side of the windows, in tokens, that are routed one by one, as in Conv-LoRA's release.
            0 routes the whole image.
    """

    def __init__(
        self,
        channels: int,
        *,
        experts: int,
        top_k: int,
        form: Form = "conv",
        rule: Rule = "chosen",
        multiplied: bool = True,
        interpolation: str = "bilinear",
        window: int = 0,
    ) -> None:
        super().__init__()
        self.gate = Gate(channels, experts, rule)
        ratios = range(1, experts + 1) if form == "conv" else ()
        self.experts = nn.ModuleList(Expert(channels, ratio, interpolation) for ratio in ratios)
        self.top_k = top_k
        self.rule: Rule = rule
        self.multiplied = multiplied
        self.window = window
        self.dense = False  # True: a graph that does not depend on the data, for an export
        self.balance = torch.zeros(())

    def forward(self, h: Tensor) -> Tensor:
        """The mixture of (B, r, H, W), of the same shape. In training it stores the load-balance term in `balance`."""
        return by_window(h, self.window, self._mixture)

    def routed(self, h: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Each expert's gate, whether it is chosen, and its weight, (B, M) each, of maps (B, r, H, W).

        In training it stores the load-balance term in `balance`.
        """
        clean, scores, deviation = self.gate(h)
        gates, chosen = route(scores, self.top_k)
        if self.training:
            self.balance = balance(gates, expected_load(clean, scores, deviation, self.top_k))
        return gates, chosen, self.weigh(gates, chosen)

    def weigh(self, gates: Tensor, chosen: Tensor) -> Tensor:
        """The weight of each expert's output, (B, M), from what `route` returns."""
        return weights_of(gates, chosen, multiplied=self.multiplied, whole=self.rule == "chosen")

    def _mixture(self, h: Tensor) -> Tensor:
        _, chosen, weights = self.routed(h)
        if not self.experts:
            return scaled(h, weights)
        return mix_all(h, self.experts, weights) if self.dense else mix(h, self.experts, weights, chosen)


def by_window(h: Tensor, side: int, mixture: Callable[[Tensor], Tensor]) -> Tensor:
    """`mixture` of each window of the map by itself, (B, r, H, W). If `side` is 0, of the whole map."""
    if not side:
        return mixture(h)
    batch, _, height, width = h.shape
    grown = F.pad(h, (0, -width % side, 0, -height % side))
    windows = cut(grown.permute(0, 2, 3, 1), side, side)
    mixed = mixture(windows.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
    return join(mixed, batch, *grown.shape[2:]).permute(0, 3, 1, 2)[..., :height, :width]


def route(scores: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Softmax over all experts and the mask of the k largest, (B, M) each."""
    gates = scores.softmax(-1)
    chosen = torch.zeros_like(gates).scatter(-1, scores.topk(k, dim=-1).indices, 1.0)
    return gates, chosen


def weights_of(gates: Tensor, chosen: Tensor, *, multiplied: bool, whole: bool = True) -> Tensor:
    """The weight of each expert's output, (B, M), from what `route` returns. 0 if not chosen.

    With `whole`, the gates of an image's chosen experts are divided by their sum, so that their weights sum to 1
    (Shazeer et al. 2017, equations 3 to 5; Conv-LoRA). With one chosen expert its gate is the weight, our choice: its
    share of itself is the constant 1, and the task would never train the gate.

    Args:
        multiplied: False gives each chosen expert the weight 1.
        whole: False leaves the gates as they are. Runs of earlier versions were trained so.
    """
    if not multiplied:
        return chosen
    kept = gates * chosen
    shared = kept / kept.sum(-1, keepdim=True)
    return torch.where(chosen.sum(-1, keepdim=True) > 1, shared, kept) if whole else kept


def scaled(h: Tensor, weights: Tensor) -> Tensor:
    """Each expert's part of the bottleneck times its weight, (B, r, H, W).

    Args:
        h: (B, r, H, W), the M experts' parts one after the other.
        weights: (B, M).
    """
    each = weights.repeat_interleave(h.shape[1] // weights.shape[1], 1)
    return h * each[..., None, None].to(h.dtype)


def mix(h: Tensor, experts: Iterable[nn.Module], weights: Tensor, chosen: Tensor) -> Tensor:
    """h + sum_i weights_i E_i(h), (B, r, H, W): Figure 1's sum and residual.

    On a CPU each expert runs only on the images that chose it. On a GPU this is `mix_all`.

    Args:
        h: (B, r, H, W).
        experts: M modules.
        weights: (B, M), zero where not chosen.
        chosen: (B, M) of 0 and 1.
    """
    if runs_all(h):
        with torch.autocast(h.device.type, enabled=False):  # our choice: casts would outnumber the convolutions
            return mix_all(h.float(), experts, weights).to(h.dtype)
    out = h
    for i, expert in enumerate(experts):
        rows = chosen[:, i].nonzero().squeeze(1)
        if len(rows):
            scaled = weights[rows, i, None, None, None].to(h.dtype) * cast(Tensor, expert(h[rows])).to(h.dtype)
            out = out.index_add(0, rows, scaled)
    return out


def runs_all(h: Tensor) -> bool:
    """Whether every expert runs on every image, as on a GPU: it would wait at every layer to learn who chose whom."""
    return h.is_cuda


def mix_all(h: Tensor, experts: Iterable[nn.Module], weights: Tensor) -> Tensor:
    """`mix`, but every expert runs on every image, with weight zero where it is not chosen.

    It is the same sum in a graph that does not depend on the data. It runs M experts instead of K.
    """
    found = torch.stack([expert(h) for expert in experts], 1)
    return h + torch.einsum("bm,bmrhw->brhw", weights, found)


def expected_load(clean: Tensor, scores: Tensor, deviation: Tensor | None, k: int) -> Tensor:
    """The probability that each expert is among the k under fresh noise, (B, M): a load with a gradient.

    Shazeer et al. 2017, equations 8 and 9. Without noise, or with k = M, it is the chosen mask.
    """
    if deviation is None or k == clean.shape[-1]:
        return route(scores, k)[1]
    top = scores.topk(k + 1, dim=-1).values
    inside = scores >= top[:, k - 1 : k]
    bar = torch.where(inside, top[:, k : k + 1], top[:, k - 1 : k])
    chance: Tensor = torch.special.ndtr((clean - bar) / deviation)
    return chance


def balance(importance: Tensor, chances: Tensor) -> Tensor:
    """CV^2 of the experts' summed gates plus CV^2 of their summed load, a scalar (Shazeer et al. 2017; Conv-LoRA)."""
    return squared_variation(importance.sum(0)) + squared_variation(chances.sum(0))


def squared_variation(values: Tensor) -> Tensor:
    """Variance over squared mean, a scalar. 0 for a single value."""
    if values.numel() < 2:
        return torch.zeros_like(values.sum())
    return values.var() / (values.mean().square() + 1e-10)


def balance_term(module: nn.Module) -> Tensor:
    """Mean load-balance term of all L-MoEs below `module`, from their last training pass. 0 without any."""
    terms = [m.balance for m in module.modules() if isinstance(m, LocalMoE)]
    return torch.stack(terms).mean() if terms else torch.zeros((), device=next(module.parameters()).device)


def let_go(module: nn.Module) -> None:
    """Detach the balance terms of all L-MoEs below `module`: their graph holds a whole step in memory."""
    for layer in [m for m in module.modules() if isinstance(m, LocalMoE)]:
        layer.balance = layer.balance.detach()
