"""POLARIS reinforcement-learning post-training of reasoning models in JAX.

Importing this package imports nothing heavy: take what you need from its subpackages.
"""

__version__ = "0.1.0"
