"""Many hosts: what cannot come together is told, and what does computes what one process does."""

import socket

import pytest

from talora_jax import config as config_lib
from talora_jax import hosts
from talora_jax.errors import UserError


def given(**fields):
    config = config_lib.default()
    config.hosts.update(fields)
    return config.hosts


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"num_processes": 2}, "num_processes is 2, but config.hosts.coordinator is missing"),
        ({"process_id": 1}, "process_id is 1, but config.hosts.coordinator is missing"),
        ({"num_processes": 0}, "num_processes is 0, expected at least 1"),
        (
            {"coordinator": "tpu-0:8476", "heartbeat_timeout": -1},
            "heartbeat_timeout is -1, expected at least 5",
        ),
        ({"coordinator": "tpu-0"}, "is 'tpu-0', expected ADDRESS:PORT of process 0, as 10.0.0.1"),
        ({"coordinator": "tpu-0:"}, "is 'tpu-0:', expected ADDRESS:PORT"),
        ({"coordinator": ":8476"}, "is ':8476', expected ADDRESS:PORT"),
        ({"coordinator": "tpu-0:84760"}, "is 'tpu-0:84760', expected ADDRESS:PORT"),
        (
            {"coordinator": "tpu-0:8476", "num_processes": 2, "process_id": 2},
            "process_id is 2, expected 0 to 1, for config.hosts.num_processes is 2",
        ),
    ],
)
def test_what_brings_no_processes_together(fields, told):
    with pytest.raises(UserError, match=told):
        hosts.join(given(**fields))


def test_a_port_that_is_taken_and_an_address_that_is_none():
    with socket.create_server(("", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(UserError, match=f"process 0 cannot listen on port {port} .*Address"):
            hosts.join(given(coordinator=f"localhost:{port}"))
    with pytest.raises(UserError, match="coordinator: 'no host' is no address that this host know"):
        hosts.join(given(coordinator="no host:8476"))


def test_one_process_agrees_with_itself():
    with hosts.joined(given()):
        hosts.agree({"config.seed": 0})
        assert hosts.gathered({"images": [1, 2]}) == [{"images": [1, 2]}]


def test_processes_over_loopback(start_python):
    """`python -m tests.hosts` makes more of them."""
    process = start_python("-m", "tests.hosts", "--quick")
    out, errors = process.communicate(timeout=300)
    assert process.returncode == 0, out + errors
    assert out.splitlines()[-1] == "0 wrong"


@pytest.mark.long
@pytest.mark.parametrize("checks", [("shapes", "lost"), ("--nano", "numbers", "shapes")])
def test_other_numbers_of_processes_and_one_that_is_killed(start_python, checks):
    process = start_python("-m", "tests.hosts", *checks)
    out, errors = process.communicate(timeout=1800)
    assert process.returncode == 0, out + errors
    assert out.splitlines()[-1] == "0 wrong"
