# The image that every node of a cluster runs: Ray's own, with this checkout and exactly the pinned dependencies.
# docker build --tag maskfleet:0.1.0 .
# The folder lies in the home of the base image, whose working folder that is.
FROM rayproject/ray:2.60.0-py311
WORKDIR maskfleet
# Dependencies first: they change less often than the code, so their layer is kept.
COPY --chown=ray:users pyproject.toml constraints.txt README.md LICENSE ./
RUN mkdir jobs model pipeline benchmarks \
    && pip install --no-cache-dir --constraint constraints.txt --editable .
COPY --chown=ray:users jobs jobs
COPY --chown=ray:users model model
COPY --chown=ray:users pipeline pipeline
COPY --chown=ray:users configs configs
RUN maskfleet --help > /dev/null
