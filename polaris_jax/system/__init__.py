"""The machine below a run: files, processes, signals, progress. No subject of its own."""
