from tests.probing.conftest import mllm, one_thread

__all__ = ["mllm", "one_thread"]
