"""Settings of tracking: the MLflow that train, evaluate and sweep send their figures, settings and files to."""

from __future__ import annotations

import re
from typing import Annotated
from urllib.parse import urlsplit

from pydantic import Field, field_validator

from jobs.config.base import Section
from pipeline.storage.uri import Place, is_local

SERVERS = ("http", "https")
DATABRICKS = ("databricks", "databricks-uc", "uc")  # which MLflow takes for more than the name of a folder


class TrackingSection(Section):
    """The MLflow that figures, settings and files are sent to, beside the output."""

    uri: Annotated[str, Place(or_server=True)] | None = Field(
        None,
        min_length=1,
        description="http:// or https:// of an MLflow tracking server, or a folder (MLflow's file store); null sends "
        "nothing. Needs `pip install 'maskfleet[tracking]'`; user name, password or token are taken from "
        "MLFLOW_TRACKING_USERNAME, MLFLOW_TRACKING_PASSWORD and MLFLOW_TRACKING_TOKEN.",
    )
    experiment: str = Field(
        "maskfleet",
        min_length=1,
        max_length=500,
        pattern=r"^[^'\"`\\\x00-\x1f]+$",  # MLflow's file store finds none with these
        description="Name of the MLflow experiment, without quotes; it is made where there is none.",
    )
    run_name: str | None = Field(
        None,
        min_length=1,
        max_length=250,
        description="Name of the MLflow run; null takes that of the output's folder.",
    )

    @field_validator("uri")
    @classmethod
    def _check_uri(cls, uri: str | None) -> str | None:
        if uri is None:
            return uri
        if re.fullmatch(r"[\w.-]+:\d+(/.*)?", uri):
            raise ValueError(f"it is no folder, and the address of a server has a scheme: http://{uri}")
        if uri in DATABRICKS:
            raise ValueError("the store of Databricks is not supported; allowed are a tracking server or a folder")
        if is_local(uri):
            return uri
        try:
            parts = urlsplit(uri)
            is_server = parts.scheme.lower() in SERVERS and bool(parts.hostname) and parts.port != 0
        except ValueError:  # a port that is no number
            is_server = False
        if not is_server:
            raise ValueError("it must be http:// or https:// of a tracking server, or a folder")
        if "@" in parts.netloc or parts.query or parts.fragment:
            raise ValueError(
                "it has credentials or a query in it; give the server's address alone, and MLFLOW_TRACKING_USERNAME "
                "and MLFLOW_TRACKING_PASSWORD, or MLFLOW_TRACKING_TOKEN, in the environment"
            )
        return uri


class TrainTrackingSection(TrackingSection):
    """The MLflow that a training's figures, settings and files are sent to, and whether its weights are too."""

    checkpoints: bool = Field(
        False, description="Send the best checkpoint too, at the end; the newest one where there is no validation."
    )
