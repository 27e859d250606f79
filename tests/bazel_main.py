"""Runs pytest on one file, for the py_test targets of BUILD: `bazel test //:tests_test_cli`."""

import sys

import pytest

if __name__ == "__main__":
    sys.exit(pytest.main(["-p", "no:cacheprovider", *sys.argv[1:]]))
