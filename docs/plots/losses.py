"""Draws `losses.svg`: every loss, and its slope for either answer, over the margin. `python docs/plots/losses.py`"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from online_dpo.learner import losses

BETA = 0.1
REACH = 5.0  # reward units to either side
COLUMNS, WIDTH, HEIGHT, LEFT, TOP, GAP = 4, 250, 150, 48, 62, 42
COLOURS = {"loss": "#1f4e9c", "chosen": "#1b8a3a", "rejected": "#c2342b"}

Loss = Callable[[Tensor, Tensor], Tensor]


def scored(divergence: str, alpha: float | None = None) -> Loss:
    """At beta 1, where a reward unit is a nat: at a tenth of it the exponentials would be walls."""
    score = partial(losses.divergence_score, divergence=divergence, alpha=alpha)
    return lambda w, r: losses.sigmoid_loss(score(w * BETA), score(r * BETA), beta=1.0)


def kto(desirable: bool) -> Loss:
    """Of one answer, whose log-ratio beyond the KL estimate stands where the others have their margin."""

    def loss(w: Tensor, r: Tensor) -> Tensor:
        log_ratios = w + w.detach()  # half of the margin twice; the slope is that of one answer
        return losses.kto_loss(
            log_ratios,
            torch.full(log_ratios.shape, desirable),
            kl=torch.zeros((), dtype=log_ratios.dtype),
            beta=BETA,
            desirable_weight=1.0,
            undesirable_weight=1.0,
        )

    return loss


PANELS: dict[str, Loss] = {
    "sigmoid, aot": partial(losses.sigmoid_loss, beta=BETA),
    "hinge": partial(losses.hinge_loss, beta=BETA),
    "ipo": partial(losses.ipo_loss, beta=BETA),
    "cdpo, 0.1": partial(losses.cdpo_loss, beta=BETA, label_smoothing=0.1),
    "robust, 0.1": partial(losses.robust_loss, beta=BETA, label_smoothing=0.1),
    "exo_pair, 0.001": partial(losses.exo_pair_loss, beta=BETA, label_smoothing=1e-3),
    "discopop, tau 0.05": partial(losses.discopop_loss, beta=BETA, tau=0.05),
    "simpo, beta 2, gamma 1": lambda w, r: losses.simpo_loss(w * BETA / 2 - 0.25, r * BETA / 2 + 0.25, beta=2.0),
    "dpop, 50": partial(losses.dpop_loss, beta=BETA, penalty=50.0),
    "nca_pair": partial(losses.nca_pair_loss, beta=BETA),
    "sppo_hard": partial(losses.sppo_hard_loss, beta=BETA),
    "bco_pair, shift 0": partial(losses.bco_pair_loss, beta=BETA, shift=0.0),
    "apo_zero": partial(losses.apo_zero_loss, beta=BETA),
    "apo_down": partial(losses.apo_down_loss, beta=BETA),
    "kto, desirable": kto(True),
    "kto, undesirable": kto(False),
    "sigmoid, forward_kl, beta 1": scored("forward_kl"),
    "sigmoid, alpha 0.5, beta 1": scored("alpha", 0.5),
    "sigmoid, js, beta 1": scored("js"),
    "sigmoid, beta 1": scored("reverse_kl"),
}


def curves(loss: Loss) -> tuple[list[float], dict[str, list[float]]]:
    """Margins, with the loss and its slopes over them, in reward units; each log-ratio moves by half of the margin."""
    margins = torch.linspace(-REACH, REACH, 101, dtype=torch.float64)
    chosen = (0.5 * margins / BETA).requires_grad_()
    rejected = (-0.5 * margins / BETA).requires_grad_()
    values = loss(chosen, rejected)
    slopes = torch.autograd.grad(values.sum(), (chosen, rejected), materialize_grads=True)
    found = {"loss": values.detach(), "chosen": slopes[0] / BETA, "rejected": slopes[1] / BETA}
    return margins.tolist(), {name: column.tolist() for name, column in found.items() if bool(column.any())}


def shown_range(lines: dict[str, list[float]]) -> tuple[float, float]:
    """From the lowest to the highest value; but a steep wall shall not flatten everything else."""
    inner = [value for line in lines.values() for value in line[20:81]]
    return min(*inner, 0.0), max(*inner, 0.5)


def panel(index: int, name: str, loss: Loss) -> str:
    margins, lines = curves(loss)
    low, high = shown_range(lines)
    x0 = LEFT + (index % COLUMNS) * (WIDTH + GAP)
    y0 = TOP + (index // COLUMNS) * (HEIGHT + GAP)

    def x(margin: float) -> float:
        return x0 + (margin + REACH) / (2 * REACH) * WIDTH

    def y(value: float) -> float:
        return y0 + (high - value) / (high - low) * HEIGHT

    parts = [
        f'<clipPath id="c{index}"><rect x="{x0}" y="{y0}" width="{WIDTH}" height="{HEIGHT}"/></clipPath>',
        f'<rect x="{x0}" y="{y0}" width="{WIDTH}" height="{HEIGHT}" fill="none" stroke="#ccc"/>',
        f'<path d="M{x0} {y(0):.1f}H{x0 + WIDTH}M{x(0):.1f} {y0}V{y0 + HEIGHT}" stroke="#ddd"/>',
        f'<text x="{x0 + WIDTH / 2}" y="{y0 - 6}" text-anchor="middle" font-weight="bold">{name}</text>',
    ]
    for value in (low, high):
        parts.append(f'<text x="{x0 - 4}" y="{y(value) + 4:.1f}" text-anchor="end" fill="#666">{value:.3g}</text>')
    for margin in (-REACH, 0.0, REACH):
        parts.append(
            f'<text x="{x(margin):.1f}" y="{y0 + HEIGHT + 14}" text-anchor="middle" fill="#666">{margin:g}</text>'
        )
    for kind, line in lines.items():
        points = " ".join(f"{x(m):.1f},{y(v):.1f}" for m, v in zip(margins, line, strict=True))
        dash = "" if kind == "loss" else ' stroke-dasharray="5 3"'
        parts.append(
            f'<polyline points="{points}" fill="none" stroke="{COLOURS[kind]}" stroke-width="1.6"{dash} '
            f'clip-path="url(#c{index})"/>'
        )
    return "\n".join(parts)


def drawing() -> str:
    rows = -(-len(PANELS) // COLUMNS)
    width, height = LEFT + COLUMNS * (WIDTH + GAP), TOP + rows * (HEIGHT + GAP)
    words = {"loss": "loss", "chosen": "slope for the chosen reward", "rejected": "slope for the rejected reward"}
    legend = "".join(
        f'<tspan fill="{COLOURS[kind]}" dx="{18 if i else 0}">{"—" if kind == "loss" else "- -"} {word}</tspan>'
        for i, (kind, word) in enumerate(words.items())
    )
    panels = "\n".join(panel(i, name, loss) for i, (name, loss) in enumerate(PANELS.items()))
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" font-family="sans-serif" '
        f'font-size="11">\n<rect width="{width}" height="{height}" fill="white"/>\n'
        f'<text x="{LEFT}" y="20" font-size="13">{legend}</text>\n'
        f'<text x="{LEFT}" y="38" fill="#666">over the margin of rewards (beta = {BETA}; each answer moves by half of '
        f"it; KTO: one answer, over its reward less the KL estimate's)</text>\n{panels}\n</svg>\n"
    )


if __name__ == "__main__":
    target = Path(__file__).with_name("losses.svg")
    target.write_text(drawing())
    print(f"{target}: {target.stat().st_size} bytes")
