"""Sweeps: the sweep file, the trials that follow from it, their cost, and the driver that runs them."""
