"""Audiovisual synchronized data loader."""
