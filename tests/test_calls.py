"""The utilities where only a ghost is: real ones, on loopback."""

import os
from typing import Iterator, List

import pytest
from cluster import Cluster, Member, until

MIB = 1 << 20


class Ghost(Member):
    """A ghost in a folder of its own; its utilities ask its control port."""

    def command(self) -> List[str]:
        return [self.env["LEORONIC_PYTHON"], str(self.program / "ghost.py")]

    def is_ready(self) -> bool:
        return " is ready, of " in self.printed()


class Haunted(Cluster):
    """Two comrades, and a ghost of the first."""

    def __init__(self, first: int) -> None:
        super().__init__(2, first=first)
        self.ghost = Ghost(
            "127.0.0.%d" % (first + 2),
            self.port,
            self.addresses,
            env=dict(self.env, LEORONIC_TAGS="spooky"),
            python=os.environ["LEORONIC_PYTHON"],
        )
        self.all.append(self.ghost)

    def start(self) -> None:
        super().start()
        self.ghost.launch()
        self.ghost.await_ready()
        until("here", lambda: len(self.nodes[1].members()) == 3)


@pytest.fixture(scope="module")
def haunted() -> Iterator[Haunted]:
    with Haunted(71) as cluster:
        yield cluster


# --- large outputs ----------------------------------------------------------------


@pytest.mark.parametrize("asked", [0, 1])
def test_a_large_output_of_a_ghost_is_found_from_any_comrade(
    haunted: Haunted, asked: int
) -> None:
    node = haunted.nodes[asked]
    command = "head -c %d /dev/zero | tr '\\0' %d" % (MIB, asked)
    task = node.add(command, "worker:tag spooky")
    assert node.wait(task) == 0
    assert node.output(task) == b"%d" % asked * MIB
