"""Stand-ins for Slurm's commands, as far as submitit uses them: jobs are processes of this machine.

A folder holds the state: for each task of a job its state, and the node, whose names are made up in turn.
"""

import os
import stat
import sys
from pathlib import Path

NODES = ("node1", "node2", "node3")

SBATCH = r"""
import os, pathlib, re, subprocess, sys
state = pathlib.Path(os.environ["STAND_IN"])
text = pathlib.Path(sys.argv[1]).read_text()
flags = dict(re.findall(r"^#SBATCH --([a-z-]+)=(.*)$", text, re.M))
with (state / "flags").open("a") as file:
    print(flags, file=file)
job = 1
while True:
    try:
        (state / f"job.{job}").mkdir()
        break
    except FileExistsError:
        job += 1
nodes = [node for node in os.environ["NODES"].split(",") if node not in flags.get("exclude", "").split(",")]
if not nodes:
    sys.exit("sbatch: error: Requested node configuration is not available")
last = int(flags["array"].partition("%")[0].partition("-")[2]) if "array" in flags else None
for task in range(1 if last is None else last + 1):
    name = str(job) if last is None else f"{job}_{task}"
    command = [sys.executable, str(state / "slurmd.py"), sys.argv[1], name, nodes[task % len(nodes)]]
    subprocess.Popen(command, start_new_session=True, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
                     stderr=subprocess.DEVNULL)
print(f"Submitted batch job {job}")
"""

# Runs one task, again and again while it asks for that.
SLURMD = r"""
import os, pathlib, subprocess, sys
state = pathlib.Path(os.environ["STAND_IN"])
script, name, node = sys.argv[1:]
job, _, task = name.partition("_")
variables = {"SLURM_JOB_ID": name, "SLURMD_NODENAME": node, "SLURM_JOB_NODELIST": node}
if task:
    variables |= {"SLURM_ARRAY_JOB_ID": job, "SLURM_ARRAY_TASK_ID": task}
own = state / f"task.{name}"
own.mkdir()
while True:
    process = subprocess.Popen(["bash", script], env={**os.environ, **variables}, start_new_session=True)
    (own / "group").write_text(str(process.pid))
    (own / "state").write_text(f"RUNNING|{node}")
    code = process.wait()
    if not (own / "requeue").exists():
        break
    (own / "requeue").unlink()
    (own / "state").write_text(f"REQUEUED|{node}")
ended = "CANCELLED" if (own / "cancelled").exists() else "FAILED" if code else "COMPLETED"
(own / "state").write_text(f"{ended}|{node}")
"""

SRUN = r"""
import os, sys
words = sys.argv[1:]
while words[0].startswith("--"):
    words = words[2:] if words[0] in ("--output", "--error") else words[1:]
options = dict(zip(sys.argv[1:], sys.argv[2:]))
for stream, option in ((1, "--output"), (2, "--error")):
    job, _, task = os.environ["SLURM_JOB_ID"].partition("_")
    path = options[option].replace("%A", job).replace("%a", task).replace("%j", job).replace("%t", "0")
    os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND), stream)
os.execvp(words[0], words)
"""

SACCT = r"""
import os, pathlib
print("JobID|State|NodeList")
for task in pathlib.Path(os.environ["STAND_IN"]).glob("task.*"):
    print(f"{task.name.partition('.')[2]}|{(task / 'state').read_text()}")
"""

SCANCEL = r"""
import contextlib, os, pathlib, signal, sys
state = pathlib.Path(os.environ["STAND_IN"])
with (state / "cancelled").open("a") as file:
    print(*sys.argv[1:], file=file)
own = state / f"task.{sys.argv[1]}"
(own / "cancelled").touch()
with contextlib.suppress(ProcessLookupError):
    os.killpg(int((own / "group").read_text()), signal.SIGKILL)
"""

SCONTROL = r"""
import os, pathlib, sys
assert sys.argv[1] == "requeue"
(pathlib.Path(os.environ["STAND_IN"]) / f"task.{sys.argv[2]}" / "requeue").touch()
"""

SINFO = 'print("gpu:4")'


def install(folder: Path) -> dict[str, str]:
    """Write the commands into a folder, and return the variables with which they are found."""
    commands, state = folder / "bin", folder / "state"
    commands.mkdir()
    state.mkdir()
    texts = {"sbatch": SBATCH, "srun": SRUN, "sacct": SACCT, "scancel": SCANCEL, "scontrol": SCONTROL, "sinfo": SINFO}
    for name, text in texts.items():
        file = commands / name
        file.write_text(f"#!{sys.executable}\n{text}")
        file.chmod(file.stat().st_mode | stat.S_IXUSR)
    (state / "slurmd.py").write_text(SLURMD)
    path = os.pathsep.join([str(commands), os.environ["PATH"]])
    return {"PATH": path, "STAND_IN": str(state), "NODES": ",".join(NODES)}
