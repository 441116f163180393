"""Did it help, and how sure is that?"""

# A plain file, not made from a notebook: names that may be asked of the room itself, fetched when they are first used.

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "policy": ["Situation", "choose_strategy"],
        "ranking.costs": ["measure_cost"],
        "ranking.groups": ["rank_backbones", "score_audit"],
        "ranking.scores": ["h_score", "leep", "logme", "n_leep", "nce", "probe_score"],
    },
)
