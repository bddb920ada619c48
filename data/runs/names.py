"""The names in a folder of runs: files, and the settings by which reports tell runs apart.

Settings have dotted keys. `run.…` holds what the command determined itself: the cache, the number of views, and live
signals, which a teacher computes in every training step. `experiment.…` holds the experiment as the schema defines it.
"""

CONFIG = "config.yaml"
METRICS = "metrics.jsonl"
RESULT = "result.json"
CHECKPOINT = "checkpoint/state.pt"
CLASSES = "classes.txt"  # the names of the data set's classes, one to a line, where it has any
WEIGHTS = "weights"  # a folder for the weights files that are kept during training
TRACKING = "tracking"  # a folder for what trackers write
TRACKED = f"{TRACKING}/names.json"  # the identifiers that the run has in trackers
FAILED = "failed.txt"  # the error in one line, then the traceback
SWEEP = "sweep.json"  # in a sweep's folder: the sweep's commands, and the names of all its runs

COMMAND_KEY = "run.command"
CACHE_KEY = "run.cache"
VIEWS_KEY = "run.views"
LIVE_KEY = "run.live"
CODE = "code"  # origins of users' code, by name; also in a cache's provenance and in weights' metadata
CODE_KEY = "run.code"
MEASURED_KEY = "run.measured"
BEGUN_KEY = "run.student_weights"  # the SHA-256 of the weights that the student began with
SEED_KEY = "experiment.seed"
OBJECTIVE_KEY = "experiment.objective"
OBJECTIVE_OPTIONS_KEY = "experiment.objectives"
SOURCE_KEY = "experiment.data.source"
TEACHER_KEY = "experiment.teacher.architecture"
STUDENT_KEY = "experiment.student.architecture"
STUDENT_WEIGHTS_KEY = "experiment.student.weights"
EPOCHS_KEY = "experiment.student.epochs"
