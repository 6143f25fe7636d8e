"""Checkpoints of other projects become pipeline folders, and go back."""

from .folder import convert_checkpoint, export_checkpoint

__all__ = ["convert_checkpoint", "export_checkpoint"]
