"""What a report of many runs imports: importing torch would take longer than reading them."""

import subprocess
import sys


def test_comparing_runs_imports_no_torch() -> None:
    modules = "dhkd.data.runs.read, dhkd.pipeline.report.analyses, dhkd.pipeline.report.page"
    code = f"import sys, {modules}; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"
