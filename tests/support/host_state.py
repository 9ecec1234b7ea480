"""State of the whole process, or of a thread, that a call could change."""

import logging
import os
import random
import signal
import warnings

import numpy as np
import torch


def snapshot():
    """Return all state that a plugin might change, by name."""
    backends = torch.backends
    return {
        "autocast": [(torch.is_autocast_enabled(kind), torch.get_autocast_dtype(kind)) for kind in ("cpu", "cuda")],
        "autocast cache": torch.is_autocast_cache_enabled(),
        "fp32 precision": fp32_precision(),
        "older fp32 precision": older_fp32_precision(),
        "attention kernels": (
            backends.cuda.flash_sdp_enabled(),
            backends.cuda.math_sdp_enabled(),
            backends.cuda.mem_efficient_sdp_enabled(),
            backends.cuda.cudnn_sdp_enabled(),
        ),
        "cudnn": (backends.cudnn.benchmark, backends.cudnn.deterministic),
        "grad": (torch.is_grad_enabled(), torch.is_inference_mode_enabled()),
        "default dtype and device": (torch.get_default_dtype(), torch.get_default_device()),
        "threads": (torch.get_num_threads(), torch.get_num_interop_threads()),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "random": (torch.get_rng_state().tolist(), random.getstate(), np.random.get_state()[1].tolist()),  # noqa: NPY002
        "warnings": list(warnings.filters),
        "logging": {name: settings(logging.getLogger(name)) for name in [None, *logging.root.manager.loggerDict]},
        "disabled logging": logging.root.manager.disable,
        "signals": {number: signal.getsignal(number) for number in signal.valid_signals()},
        "directory": os.getcwd(),  # noqa: PTH109
        "environment": dict(os.environ),
        "OpenMP": smaller_teams(),
    }


def changes(before, after):
    """Return the names of the state that differs; new loggers do not count, changes to existing ones do."""
    after = {**after, "logging": {name: after["logging"].get(name) for name in before["logging"]}}
    return [name for name in before if before[name] != after[name]]


def fp32_precision():
    """Return the settings of PyTorch's newer precision API."""
    backends = torch.backends
    switches = (
        backends,
        backends.cuda.matmul,
        backends.cudnn,
        backends.cudnn.conv,
        backends.cudnn.rnn,
        backends.mkldnn,
        backends.mkldnn.matmul,
    )
    return [switch.fp32_precision for switch in switches]


def older_fp32_precision():
    """Return the settings of PyTorch's older precision API; PyTorch cannot read one once the newer API differs."""
    readers = (
        torch.get_float32_matmul_precision,
        lambda: torch.backends.cuda.matmul.allow_tf32,
        lambda: torch.backends.cudnn.allow_tf32,
    )
    return [read_or_refuse(reader) for reader in readers]


def read_or_refuse(reader):
    try:
        return reader()
    except RuntimeError:
        return "refused"


def settings(logger):
    return logger.level, list(logger.handlers), list(logger.filters), logger.propagate, logger.disabled


def smaller_teams():
    """Return whether OpenMP may use fewer threads than requested; read last, because it imports part of the engine."""
    from sam3_engine.openmp import openmp_library

    return openmp_library().omp_get_dynamic()
