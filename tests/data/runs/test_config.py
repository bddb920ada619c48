"""config.yaml is read part by part where that means the same, and as a whole elsewhere."""

from pathlib import Path

import pytest
import yaml
from dhkd.data.errors import RunMismatch
from dhkd.data.runs.config import read_config

PLAIN = """run:
  command: train-student
  views: 162
experiment:
  description: CIFAR-100, resnet56, with the settings of the published
    experiments
  data:
    source: digits
    scale:
    - 0.08
    - 1.0
  objective: kd
  seed: 0
"""

OF_OTHER_HANDS = {
    "as written": PLAIN,
    "a comment": PLAIN.replace("  seed: 0", "  # mine\n  seed: 1  # again"),
    "a comment in the first column": f"# mine\n{PLAIN}",
    "quotes over two lines": PLAIN.replace("objective: kd", "objective: 'a\n  seed: 5\n\n  b'"),
    "brackets over two lines": PLAIN.replace("objective: kd", "objective: {a: [1,\n  2], b: 3\n  }"),
    "a text block": PLAIN.replace("objective: kd", "objective: |\n   run:\n   seed: 5"),
    "an alias across parts": PLAIN.replace("source: digits", "source: &name digits").replace("kd", "*name"),
    "an alias in its own part": PLAIN.replace("- 0.08", "- &low 0.08").replace("- 1.0", "- *low"),
    "a merged mapping": PLAIN.replace("  seed: 0", "  <<: {seed: 1, objective: dhkd}\n  seed: 0"),
    "a key twice": f"{PLAIN}  objective: dhkd\n",
    "a section twice": f"{PLAIN}run:\n  views: 3\n",
    "keys that are no text": f"{PLAIN}yes:\n  1: 2\n  no: 3\n",
    "an explicit key": f"{PLAIN}  ? a\n  : b\n",
    "an empty section": f"run:\n{PLAIN.partition(chr(10))[2]}other:\n",
    "a value in the first column": f"{PLAIN}other: 3\n",
    "a document's marks": f"---\n{PLAIN}...\n",
    "one column less": PLAIN.replace("\n  ", "\n "),
    "lines of Windows": PLAIN.replace("\n", "\r\n"),
    "another line break": PLAIN.replace("kd\n", "kd\u2028"),
    "an end without a line break": PLAIN.rstrip(),
}


@pytest.mark.parametrize("text", OF_OTHER_HANDS.values(), ids=OF_OTHER_HANDS)
def test_settings_are_what_the_whole_file_says(text: str, tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_bytes(text.encode())
    for _ in range(2):  # the second time, its parts are known
        config = read_config(tmp_path)
        assert config == yaml.safe_load(text)
        assert repr(config) == repr(yaml.safe_load(text))  # with the same order and types


@pytest.mark.parametrize(
    "text",
    [
        PLAIN.replace("objective: kd", "objective: 'kd"),
        PLAIN.replace("objective: kd", "objective kd"),
        PLAIN.replace("  objective: kd", "   objective: kd"),
        PLAIN.replace("digits", "*nothing"),
        PLAIN.replace("digits", "!!python/name:os.system"),
        PLAIN.replace("run:", "run: ["),
    ],
)
def test_damage_in_any_part_is_seen(text: str, tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text(text)
    with pytest.raises(yaml.YAMLError):
        yaml.safe_load(text)
    with pytest.raises(RunMismatch, match="expected a run's configuration in YAML"):
        read_config(tmp_path)
