"""Deviceless ahead-of-time compiles: does a config fit a pod, and how long would a step take."""
