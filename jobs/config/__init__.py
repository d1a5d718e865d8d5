"""Configuration: sections of settings for every command, and how YAML files and `key=value` words become them."""
