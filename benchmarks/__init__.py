"""Every speed that the documentation names comes from a script here."""
