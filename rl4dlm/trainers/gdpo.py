"""Group Diffusion Policy Optimization (GDPO, arXiv:2510.08554): clipped sequence ratios of ELBO estimates.

    Lhat(y | q) = sum over nodes n of w_n (1/K) sum over masks k of (L / |S_nk|) l(S_nk)
    rho_g       = exp((Lhat_theta - Lhat_old) / L)                      `sequence_norm`, released code
    loss        = - mean over completions g of min(rho_g A_g, clip(rho_g) A_g) + beta KL,   A_g = r_g - group
    mean

with the same masks S_nk in current, old and reference policy. Departures from the released code: counts by
round(tL + 1/2) with weight L/|S|, masks derived from row seeds, KL on the ELBO difference per token. Not
covered: group filters, dual clip.
"""

from __future__ import annotations

from rl4dlm.recipe.algorithms import GDPOConfig, SequenceLevel
from rl4dlm.trainers.elbo_states import elbo_settings, elbo_states
from rl4dlm.trainers.method import Method, Setting
from rl4dlm.trainers.sequence import sequence_method


def gdpo(config: GDPOConfig, setting: Setting) -> Method[SequenceLevel]:
    """Lhat from the nodes' masks (`likelihood/elbo.py`), rho and loss by `sequence.py`."""
    return sequence_method(config, setting, elbo_states(elbo_settings(config), setting.spec))
