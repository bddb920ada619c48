"""Launchers' variables: who works alone, who works together, and what contradicts itself."""

import logging

import pytest
from dhkd.data.errors import ConfigError
from dhkd.pipeline.launch import Launch, settle_launch

TORCHRUN = {
    "RANK": "1",
    "WORLD_SIZE": "2",
    "LOCAL_RANK": "1",
    "LOCAL_WORLD_SIZE": "2",
    "MASTER_ADDR": "127.0.0.1",
    "MASTER_PORT": "29501",
}


@pytest.mark.parametrize(
    "variables",
    [
        {},
        {"LOCAL_RANK": "0"},
        {"LOCAL_RANK": "3", "LOCAL_WORLD_SIZE": "x"},
        {"RANK": "0"},
        {"RANK": "", "WORLD_SIZE": " "},
        {"RANK": "-1", "LOCAL_RANK": "-1"},
        {"WORLD_SIZE": "1"},
        {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0"},
        {"PMI_SIZE": "2", "PMI_RANK": "0"},
        {"PMI_SIZE": "", "PMI_RANK": "abc"},
        {"OMPI_COMM_WORLD_SIZE": "4", "OMPI_COMM_WORLD_RANK": "3", "OMPI_COMM_WORLD_LOCAL_RANK": "3"},
        {"MV2_COMM_WORLD_SIZE": "2", "MV2_COMM_WORLD_RANK": "1"},
        {"SLURM_JOB_ID": "7", "SLURM_NTASKS": "8", "SLURM_PROCID": "0", "SLURM_LOCALID": "0"},
        {"SLURM_NTASKS": "8", "SLURM_STEP_NUM_TASKS": "1", "SLURM_PROCID": "0", "MASTER_ADDR": "node1"},
        {"SLURM_NTASKS": "8", "SLURM_PROCID": "0", "PMI_SIZE": "8", "PMI_RANK": "0"},
    ],
    ids=lambda variables: ",".join(f"{name}={value}" for name, value in variables.items()) or "none",
)
def test_a_process_alone_keeps_nothing_that_accelerate_would_follow(variables: dict[str, str]) -> None:
    assert settle_launch(variables) == Launch(0, 1)
    assert not {"RANK", "LOCAL_RANK", "WORLD_SIZE", "PMI_SIZE", "OMPI_COMM_WORLD_SIZE"} & variables.keys()


@pytest.mark.parametrize(
    ("variables", "rank", "local_rank"),
    [
        (TORCHRUN, 1, "1"),
        ({**TORCHRUN, "PMI_SIZE": "8", "PMI_RANK": "5"}, 1, "1"),
        ({"RANK": "3", "WORLD_SIZE": "4", "MASTER_ADDR": "node1"}, 3, "3"),
        (
            {
                "OMPI_COMM_WORLD_SIZE": "4",
                "OMPI_COMM_WORLD_RANK": "3",
                "OMPI_COMM_WORLD_LOCAL_RANK": "1",
                "MASTER_ADDR": "a",
            },
            3,
            "1",
        ),
        ({"PMI_SIZE": "2", "PMI_RANK": "1", "MASTER_ADDR": "a"}, 1, "1"),
        ({"SLURM_STEP_NUM_TASKS": "2", "SLURM_PROCID": "1", "SLURM_LOCALID": "0", "MASTER_ADDR": "a"}, 1, "0"),
    ],
)
def test_processes_together_have_torchruns_variables(variables: dict[str, str], rank: int, local_rank: str) -> None:
    variables = dict(variables)
    launch = settle_launch(variables)
    assert (launch.rank, str(launch.world_size)) == (rank, variables["WORLD_SIZE"])
    assert launch.world_size > 1
    assert (variables["RANK"], variables["LOCAL_RANK"]) == (str(rank), local_rank)
    assert variables["MASTER_PORT"].isdecimal()
    assert "PMI_SIZE" not in variables
    assert settle_launch(variables) == launch, "settling twice changes nothing"


@pytest.mark.parametrize(
    ("variables", "says"),
    [
        ({"RANK": "1"}, "RANK=1: expected WORLD_SIZE beside it"),
        ({"RANK": "one", "WORLD_SIZE": "2"}, "RANK: expected a number"),
        ({"RANK": "0", "WORLD_SIZE": "two"}, "WORLD_SIZE: expected a number"),
        ({"WORLD_SIZE": "2"}, "WORLD_SIZE=2: expected RANK beside it"),
        ({"RANK": "0", "WORLD_SIZE": "0"}, "WORLD_SIZE: expected at least 1, got 0"),
        ({"RANK": "2", "WORLD_SIZE": "2", "MASTER_ADDR": "a"}, "RANK: expected 0 to 1, as WORLD_SIZE says, got 2"),
        ({"RANK": "1", "WORLD_SIZE": "1"}, "RANK: expected 0 to 0"),
        ({"RANK": "0", "WORLD_SIZE": "2"}, "expected MASTER_ADDR"),
        ({**TORCHRUN, "MASTER_ADDR": " "}, "expected MASTER_ADDR"),
        ({**TORCHRUN, "MASTER_PORT": "http"}, "MASTER_PORT: expected a number"),
        ({**TORCHRUN, "MASTER_PORT": "70000"}, "MASTER_PORT: expected 1 to 65535"),
        ({**TORCHRUN, "LOCAL_RANK": "2"}, "LOCAL_RANK: expected 0 to 1"),
        ({**TORCHRUN, "LOCAL_RANK": "1.5"}, "LOCAL_RANK: expected a number"),
        ({**TORCHRUN, "LOCAL_WORLD_SIZE": "3"}, "LOCAL_WORLD_SIZE: expected 1 to 2"),
    ],
)
def test_a_contradiction_names_the_variable(variables: dict[str, str], says: str) -> None:
    with pytest.raises(ConfigError) as caught:
        settle_launch(variables)
    assert says in str(caught.value)
    assert "torchrun" in str(caught.value)


def test_a_process_alone_says_which_variable_it_does_not_follow(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "dhkd"):
        settle_launch({"PMI_SIZE": "2", "PMI_RANK": "1"})
    assert "PMI_SIZE=2 is not followed, so this process runs alone" in caplog.text
