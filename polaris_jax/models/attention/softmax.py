"""What every back end's softmax shares."""

# Finite, so that a row whose every key is masked (padding) yields numbers and not NaN.
MASKED_SCORE = -1e30
