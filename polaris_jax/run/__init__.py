"""What a run writes: its workdir and owner, run.json, metrics, rollouts, progress files."""
