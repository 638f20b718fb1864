"""Builds the C shim; everything else stands in pyproject.toml, which has no place for `cffi_modules`."""

from setuptools import setup

setup(cffi_modules=["dsm/_native/build_shim.py:ffibuilder"])
