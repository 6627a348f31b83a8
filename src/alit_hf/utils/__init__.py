"""Helpers that know nothing about pictures or models."""
