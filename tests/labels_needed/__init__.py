"""Are the answers about labels true? Held against sets where more labels exist.

`python -m tests.labels_needed` asks how many more labels are needed, as a person with few would, and looks up the truth
in the labels that the person did not have. `python -m tests.labels_needed queue` labels cases by each strategy of the
queue and counts the gain over random choice. Both take under three minutes on one idle core; the pages of `nbs/explain` lay
out what they write with `--json`.
"""
