"""The bodies of the control API."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field


class Strict(BaseModel):
    model_config = ConfigDict(extra="forbid")


class FlowCounts(Strict):
    """DNS questions are counted in ``questions`` and, when denied, in ``denied``; not in the others."""

    open: int = Field(ge=0)
    total: int = Field(ge=0, description="flows that have ended")
    denied: int = Field(ge=0)
    unattributed: int = Field(ge=0, description="flows whose process could not be found")
    questions: int = Field(ge=0, description="DNS questions")


class ByteCounts(Strict):
    """As the workload sees them, open flows included."""

    sent: int = Field(ge=0)
    received: int = Field(ge=0)


class Container(Strict):
    """A container that shares a workload's network."""

    id: str
    name: str | None


class Workload(Strict):
    """One grafted network and what uses it."""

    name: str
    kind: Literal["exec", "container", "build"]
    container_id: str | None
    container_name: str | None
    members: list[Container] = Field(default=[], description="every container that shares the network")
    mode: Literal["route", "ptrace"]
    policy: str = Field(description="default and quick rules, for people")
    upstream: str = Field(description="without credentials")
    dns: Literal["synthetic", "forward", "off"]
    hold: bool = Field(description="whether a connection is accepted only once its upstream has answered")
    started: float = Field(description="seconds since the epoch")
    pid: int = Field(description="of the forwarder")
    workload_pid: int | None = Field(description="the workload's first process")
    network_namespace: int = Field(description="inode")
    flows: FlowCounts
    bytes: ByteCounts


class Workloads(Strict):
    workloads: list[Workload]


class Finished(Strict):
    """The workload's network is gone, its flows are recorded."""

    name: str
    finished: Literal[True] = True


class Version(Strict):
    version: str
    api: Literal[1] = 1


class Problem(Strict):
    error: str


class FlowsQuery(Strict):
    """``follow``: go on with each flow as it ends, until the workload does."""

    follow: bool = False


FlowRecord = dict[str, Any]
