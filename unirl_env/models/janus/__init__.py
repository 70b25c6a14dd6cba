"""Janus-Pro: one transformer that writes text and then draws a picture, token by token."""
