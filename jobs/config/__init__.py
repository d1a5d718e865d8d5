"""Configuration: every command's settings as pydantic models, from YAML files and `key=value` words."""
