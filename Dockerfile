# The image that every node of a cluster runs: Ray's own, with this checkout and exactly the pinned dependencies.
# docker build --tag maskfleet:0.2.0 .
# The folder lies in the home of the base image, whose working folder that is.
FROM rayproject/ray:2.60.0-py311
WORKDIR maskfleet
# Dependencies first: they change less often than the code, so their layer is kept.
COPY --chown=ray:users pyproject.toml constraints.txt README.md LICENSE ./
RUN python -c "import tomllib; print(*tomllib.load(open('pyproject.toml', 'rb'))['project']['dependencies'], sep='\n')" \
    > /tmp/requirements.txt \
    && pip install --no-cache-dir --constraint constraints.txt --requirement /tmp/requirements.txt
COPY --chown=ray:users maskfleet maskfleet
COPY --chown=ray:users jobs jobs
COPY --chown=ray:users pipeline pipeline
COPY --chown=ray:users model model
COPY --chown=ray:users configs configs
RUN pip install --no-cache-dir --no-deps --editable . && maskfleet --version
