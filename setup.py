"""Everything stands in pyproject.toml; this file is where the native build will be driven from."""

from setuptools import setup

setup()
