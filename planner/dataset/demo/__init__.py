"""The demo's input: real dishes and a year of household shopping, loaded as the tables of the contract.

See docs/demo-data.md for how it is derived and what it is not good for.
"""

from planner.dataset.demo.load import DemoReport, is_empty, load_demo

__all__ = ["DemoReport", "is_empty", "load_demo"]
