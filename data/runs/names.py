"""The names in a folder of runs: its files, and the settings by which reports tell runs apart.

Settings have dotted keys: `run.…` is what the command found out (cache, views, live signals), `experiment.…` is the
experiment as the schema has it.
"""

CONFIG = "config.yaml"
METRICS = "metrics.jsonl"
RESULT = "result.json"
CHECKPOINT = "checkpoint/state.pt"
WEIGHTS = "weights"  # a folder of the weights that were kept over training
FAILED = "failed.txt"  # one line, then the traceback
SWEEP = "sweep.json"  # in the folder of a sweep: its commands, and the names of all its runs

COMMAND_KEY = "run.command"
CACHE_KEY = "run.cache"
VIEWS_KEY = "run.views"
LIVE_KEY = "run.live"
SEED_KEY = "experiment.seed"
OBJECTIVE_KEY = "experiment.objective"
OBJECTIVE_OPTIONS_KEY = "experiment.objectives"
SOURCE_KEY = "experiment.data.source"
TEACHER_KEY = "experiment.teacher.architecture"
STUDENT_KEY = "experiment.student.architecture"
EPOCHS_KEY = "experiment.student.epochs"
