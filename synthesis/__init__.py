"""Traces from teachers: asked for, verified, and written down as a data set to distil from.

Knows of judges' traces and of the services that write them, and of no run: the phase `synthesize`
of a run is in the driver. Nothing here imports torch, Ray or vLLM.
"""
