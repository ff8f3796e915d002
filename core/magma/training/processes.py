"""The communication between the processes that train together: it starts here, and ends while Python still runs."""

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

from ..system.distributed import CollectiveAbort, DistributedContext
from ..system.memory import keep_freed_memory

LEAVE_S = 5.0
"""How long a process waits at its end for its communication to end: another process may have failed."""


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


def init_distributed() -> DistributedContext:
    """Connect the processes that a launcher started, or set up a single one."""
    with suppress_logs():
        import deepspeed
        from deepspeed.accelerator import get_accelerator

        _import_muon()
        accelerator = get_accelerator()
    backend = accelerator.communication_backend_name()
    if accelerator.device_name() == "cpu":
        keep_freed_memory()
        # Its first use compiles it for minutes, and needs a compiler; results are the same without it.
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    local = int(os.environ.get("LOCAL_RANK", 0))
    if accelerator.device_name() != "cpu":
        accelerator.set_device(local)
    if not torch.distributed.is_initialized():
        atexit.register(_destroy_process_group)
    if "RANK" not in os.environ and not torch.distributed.is_initialized():
        # A single process needs no port, and no environment variables, which its children would inherit.
        store = torch.distributed.HashStore()  # type: ignore[attr-defined]  # public, but not in its __all__
        torch.distributed.init_process_group(backend, store=store, rank=0, world_size=1)
    os.environ.setdefault("LOCAL_RANK", "0")  # DeepSpeed requires it
    deepspeed.init_distributed(dist_backend=backend, verbose=False)
    device = accelerator.device_name(local) if accelerator.device_name() != "cpu" else "cpu"
    rank, size = torch.distributed.get_rank(), torch.distributed.get_world_size()
    return DistributedContext(rank, size, device, _collective_abort() if size > 1 else None)


def _destroy_process_group() -> None:
    """End the communication while Python still runs. Threads of gloo that run longer end the process with SIGABRT.

    See https://github.com/pytorch/pytorch/issues/190489. Because of that exit status a launcher would end the other
    processes, which may still save.
    """
    if torch.distributed.is_initialized():
        thread = threading.Thread(
            target=torch.distributed.destroy_process_group, name="destroy process group", daemon=True
        )
        thread.start()
        thread.join(LEAVE_S)


@cache
def _collective_abort() -> CollectiveAbort:
    """One for each process, for all runs that it trains."""
    from deepspeed.comm import comm

    collective = CollectiveAbort()
    collective.guard(comm.cdb)
    return collective


@contextmanager
def suppress_logs() -> Iterator[None]:
    """Hide DeepSpeed's warnings about itself, and its message that there is no GPU."""
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(logging.NOTSET)
