"""What this machine can do: its memory and disk, MLX's backend, the Hub's client, and which rungs a model can climb."""

import shutil
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import huggingface_hub
from huggingface_hub import constants

from hubtool.errors import HubError, UsageError, redact
from hubtool.guard.guard import Limits
from hubtool.guard.machine import this_machine, versions
from hubtool.guard.memory import Meter, Pressure, capacity, swap_used_nbytes
from hubtool.hub.client import find_endpoint, make_api
from hubtool.hub.patience import NOT_SHOWN, READING, PatientHub, refused_status
from hubtool.plan.plan import Plan
from hubtool.record import CacheRecord, MachineRecord
from hubtool.units import format_gib, format_size
from hubtool.validate.needs import INTERPRETER_NBYTES, Needs, cache_for, estimate_needs
from hubtool.validate.smoke import probe_device, refuse, working_set
from hubtool.worker.events import PROMPT_TOKENS, Task

LIBRARIES = ("mlx", "mlx-lm", "transformers", "huggingface_hub", "hf-xet", "safetensors", "numpy")

State = Literal["ok", "missing", "broken", "unknown"]


@dataclass(frozen=True)
class Check:
    """One thing that hubtool needs or can use.

    Attributes:
        name: What.
        state: `missing` is what some commands do without, `broken` what none can, `unknown` what cannot be asked.
        found: What was found.
        remedy: What to do about it, empty if nothing.
    """

    name: str
    state: State
    found: str
    remedy: str = ""


@dataclass(frozen=True)
class Verdict:
    """Whether a rung can be climbed here, and why not."""

    rung: str
    possible: bool
    why: str


@dataclass(frozen=True)
class Diagnosis:
    """A machine, and what it can do."""

    machine: MachineRecord
    versions: Mapping[str, str]
    checks: tuple[Check, ...]
    verdicts: tuple[Verdict, ...] = ()


def diagnose(folder: Path, needs: Needs | None, limits: Limits, disk_nbytes: int = 0) -> Diagnosis:
    """Look at this machine.

    Args:
        folder: On the disk that counts.
        needs: Of the model in question, if there is one.
        limits: What a validation would be held to.
        disk_nbytes: What must fit on the disk.
    """
    checks = (_memory(), _guard(), _disk(folder, disk_nbytes), _backend(), _xet(), _token())
    verdicts = tuple(_verdicts(needs, limits)) if needs else ()
    return Diagnosis(this_machine(), versions(LIBRARIES), checks, verdicts)


def needs_of_plan(plan: Plan, cache: Iterable[CacheRecord], tokens: int) -> Needs:
    """What a planned model needs to generate so many tokens."""
    specs = (tensor.spec for shard in plan.shards for tensor in shard.tensors)
    return estimate_needs(specs, plan.model.config, cache_for(cache, PROMPT_TOKENS + tokens))


def _memory() -> Check:
    found = capacity()
    swapped = f", {format_size(swapped)} swapped out" if (swapped := swap_used_nbytes()) else ""
    text = f"{format_gib(found.total_nbytes)}, {format_size(found.available_nbytes)} available{swapped}"
    metal = working_set()
    return Check("memory", "ok", text + (f", of which Metal recommends {format_size(metal)}" if metal else ""))


def _guard() -> Check:
    measure = Meter(1.0).measure
    if Pressure().sample() is None:
        return Check("memory guard", "missing", f"counts {measure}; the system does not tell its memory pressure")
    return Check("memory guard", "ok", f"counts {measure}, and watches swap and the system's memory pressure")


def _disk(folder: Path, nbytes: int) -> Check:
    there = next(each for each in (folder.absolute(), *folder.absolute().parents) if each.exists())
    free = shutil.disk_usage(there).free
    if free < nbytes:
        return Check(
            "disk",
            "broken",
            f"{format_size(free)} free, {format_size(nbytes)} needed",
            "free some space, or take another disk",
        )
    return Check("disk", "ok", f"{format_size(free)} free" + (f", {format_size(nbytes)} needed" if nbytes else ""))


def _backend() -> Check:
    device, why = probe_device()
    if device is None:
        return Check("MLX", "broken", why, "install hubtool with one of the extras cpu, cuda12, cuda13; on macOS none")
    return Check("MLX", "ok", f"runs on {device.backend}")


def _xet() -> Check:
    version = versions(["hf-xet"])["hf-xet"]
    if version == "not installed":
        return Check("xet", "missing", "hf-xet is not installed: uploads go by LFS", "install hf-xet")
    if constants.HF_HUB_DISABLE_XET:
        return Check("xet", "missing", "HF_HUB_DISABLE_XET is set: uploads go by LFS", "unset it")
    return Check("xet", "ok", f"hf-xet {version}")


def _token() -> Check:
    try:
        endpoint = find_endpoint()
    except UsageError as error:
        return Check("token", "broken", str(error), "set HF_ENDPOINT rightly")
    if huggingface_hub.get_token() is None:
        return Check("token", "missing", f"none for {endpoint}: nothing can be published", "run `hf auth login`")
    shown = redact(endpoint)
    try:
        me = PatientHub(make_api(), READING).attempt("who the token is of", make_api().whoami)
    except HubError as error:
        if refused_status(error) in NOT_SHOWN:
            return Check("token", "broken", f"{shown} does not take the one that is set", "run `hf auth login` again")
        return Check("token", "unknown", f"there is one, but {shown} could not be asked: {error}", "check the network")
    role = me.get("auth", {}).get("accessToken", {}).get("role")
    if role == "read":
        return Check("token", "missing", f"one of {me['name']} that may only read", "make one that may write")
    return Check("token", "ok", f"{shown} knows it: {me['name']}" + (f", role {role}" if role else ""))


def _verdicts(needs: Needs, limits: Limits) -> Iterable[Verdict]:
    yield Verdict("integrity", True, f"reads {format_size(needs.weights_nbytes)} once")
    refusal = refuse(Task("load", ""), needs, limits)
    load = f"needs about {format_size(INTERPRETER_NBYTES)}, weights stay on disk"
    yield Verdict("load", refusal is None, refusal.detail if refusal else load)
    refusal = refuse(Task("smoke", ""), needs, limits)
    yield Verdict("smoke", refusal is None, refusal.detail if refusal else f"needs {needs.describe_resident()}")
    refusal = refuse(Task("smoke-streamed", ""), needs, limits)
    streamed = f"needs about {format_size(needs.streamed_nbytes)}, weights are read from disk"
    yield Verdict("smoke-streamed", refusal is None, refusal.detail if refusal else streamed)
