"""The version of this source, which pyproject.toml reads: true also where it runs without being installed."""

VERSION = "0.1.0"
