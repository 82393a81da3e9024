"""Builders that turn raw annotations, or nothing at all (`scenes`), into one record schema. No torch here."""
