"""Only what pyproject.toml cannot say: the compiled module is built by cffi."""
from setuptools import setup

setup(cffi_modules=["native/build.py:ffi"], options={"bdist_wheel": {"py_limited_api": "cp310"}})
