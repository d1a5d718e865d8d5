"""Ray clusters: starting or joining one, submitting jobs, what a job ships, manifests for KubeRay."""
