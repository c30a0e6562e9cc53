"""Log-probs and losses from hidden states, without a tensor of rows x vocabulary."""
