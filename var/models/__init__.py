"""Backbones, and the key tables of published ones."""
