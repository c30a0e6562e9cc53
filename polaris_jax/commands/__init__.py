"""One module a command, and the table of them."""

# Name of each command, which is that of its module, and what `polaris --help` says of it.
COMMANDS = {
    "init": "a commented config for your model and your data",
    "prepare": "problems from files or data sets: validate, deduplicate, filter",
    "calibrate": "how hard each problem is for this model; the curated set",
    "probe": "temperature sweep, zones, the temperature to begin with",
    "train": "all stages of the recipe; resumes by itself",
    "evaluate": "avg@k, pass@k, maj@k, by length and budget; several models, paired",
    "positions": "log-probs of responses by position, beyond the trained length",
    "grade": "responses against gold answers, with the reason of each verdict",
    "plan": "does a config fit a pod; compiles without one",
    "status": "where a run stands: step, time left, last score, hosts, warnings",
    "show": "a run's responses, readable: question, gold, rewards, reasons",
    "ablate": "arms x seeds of whole runs, and what their differences are worth",
    "report": "every figure of a run, or of several, and one report.html",
    "convert": "Hugging Face, GGUF and Orbax checkpoints into one another",
    "publish": "a model card beside an export, from the files of its run",
    "generate": "complete one prompt on the terminal, or a file of prompts",
    "serve": "an HTTP server with the API that clients speak",
    "doctor": "what this machine has and lacks: versions, devices, memory, a self test",
    "completion": "a script that lets bash, zsh or fish complete commands and flags",
}
