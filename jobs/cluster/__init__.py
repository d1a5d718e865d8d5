"""Ray clusters: starting or joining one, submitting jobs, the files a job ships, manifests for KubeRay."""
