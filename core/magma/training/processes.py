"""The processes that train together: DeepSpeed's communication is started, and ended while Python still runs."""

from __future__ import annotations

import atexit
import importlib
import logging
import os
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache

import torch

from ..system.memory import keep_freed_memory
from ..system.world import Agreement, World

LEAVE_S = 5.0
"""How long the end of the process waits for its communication to end: another process may have failed."""


def _import_muon() -> None:
    """Import DeepSpeed's Muon optimizer without its compiled kernels.

    `deepspeed.initialize` imports it to compare types; nothing here uses it. Its `torch.compile` decorators import
    inductor, which takes seconds at every start.
    """
    import deepspeed

    compiler = deepspeed.runtime.compiler
    decorator = compiler.compile
    compiler.compile = lambda: lambda function: function
    try:
        importlib.import_module("deepspeed.runtime.zero.muon.original_muon")
    except ImportError:  # older versions have none
        pass
    finally:
        compiler.compile = decorator


def join() -> World:
    """Join the processes that a launcher started, or be the only one."""
    with quiet():
        import deepspeed
        from deepspeed.accelerator import get_accelerator

        _import_muon()
        accelerator = get_accelerator()
    backend = accelerator.communication_backend_name()
    if accelerator.device_name() == "cpu":
        keep_freed_memory()
        # It is compiled at the first use, for minutes and only where there is a compiler; results are the same.
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    local = int(os.environ.get("LOCAL_RANK", 0))
    if accelerator.device_name() != "cpu":
        accelerator.set_device(local)
    if not torch.distributed.is_initialized():
        atexit.register(_leave)
    if "RANK" not in os.environ and not torch.distributed.is_initialized():
        # alone: no port, and nothing in the environment that a child of this process would take for its own
        store = torch.distributed.HashStore()  # type: ignore[attr-defined]  # public, but not in its __all__
        torch.distributed.init_process_group(backend, store=store, rank=0, world_size=1)
    os.environ.setdefault("LOCAL_RANK", "0")  # DeepSpeed asks for it
    deepspeed.init_distributed(dist_backend=backend, verbose=False)
    device = accelerator.device_name(local) if accelerator.device_name() != "cpu" else "cpu"
    rank, size = torch.distributed.get_rank(), torch.distributed.get_world_size()
    return World(rank, size, device, _agreement() if size > 1 else None)


def _leave() -> None:
    """End the communication while Python still runs: threads of gloo that outlive it end a process with SIGABRT.

    See pytorch/pytorch issue 190489. That exit status would make a launcher end the processes that still work.
    """
    if torch.distributed.is_initialized():
        leaving = threading.Thread(target=torch.distributed.destroy_process_group, name="leave", daemon=True)
        leaving.start()
        leaving.join(LEAVE_S)


@cache
def _agreement() -> Agreement:
    """One a process, however many runs it trains."""
    from deepspeed.comm import comm

    agreement = Agreement()
    agreement.guard(comm.cdb)
    return agreement


@contextmanager
def quiet() -> Iterator[None]:
    """DeepSpeed warns about itself, and says on a CPU that it found no GPU."""
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(logging.NOTSET)
