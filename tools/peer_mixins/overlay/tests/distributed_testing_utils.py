# Stub: not in the sdist. Only tests that are skipped for ALIT use it.
def _missing(*args, **kwargs):
    raise RuntimeError("tests/distributed_testing_utils.py is not in the sdist")


_get_distributed_backend = _get_rank_device = _set_rank_device = _start_rank_processes = run_distributed = _missing


def _get_distributed_device_type():
    return "cpu"
