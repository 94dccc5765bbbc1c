"""Estimators of KL(pi || ref) on samples of pi, as functions of d = log pi - log ref.

Source: J. Schulman, "Approximating KL divergence" (2020). The plain
k1 = d, differentiated on samples, has the expected gradient zero, so as a loss term it does not regularise;
the one here has a score-function correction.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor


def k1(d: Tensor) -> Tensor:
    """d in value; its on-policy gradient is that of KL(pi || ref), by a term of value 0: sg(d) (d - sg(d)).

    Source: ESPO, arXiv:2512.03759, which found it to collapse where k2 does not.
    """
    return d + d.detach() * (d - d.detach())


def k2(d: Tensor) -> Tensor:
    """d^2 / 2. Its on-policy gradient is that of KL(pi || ref), unbiased; its value is biased."""
    return d.square() / 2


def k3(d: Tensor) -> Tensor:
    """exp(-d) + d - 1 >= 0. Its value is unbiased for KL(pi || ref); its gradient is that of KL(ref || pi).

    The caller bounds d: exp(-d) overflows float32 below d = -88.
    """
    return (-d).exp() + d - 1


KL_ESTIMATORS: dict[str, Callable[[Tensor], Tensor]] = {"k1": k1, "k2": k2, "k3": k3}
