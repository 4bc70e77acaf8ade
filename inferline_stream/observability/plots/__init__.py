"""Pictures for people, in one look: cost against SLO, profiles, replays, comparisons, runs.

`canvas` is the only door to matplotlib, which the extra ``plots`` brings; every other module draws on what it gives.
"""
