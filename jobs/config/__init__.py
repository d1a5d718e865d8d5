"""Configuration: every command's settings as pydantic models, loaded from YAML files and `key=value` words."""
