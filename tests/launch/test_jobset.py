"""The JobSet manifests, against the schemas of JobSet and Kubernetes, and against our own start-up.

No cluster runs here: what a controller would do with them is not tested.
"""

import json
import os
import pathlib
from unittest import mock

import jsonschema
import kubernetes_validate
import pytest
import yaml

from pomp_jax.hosts import Cluster, detect

ROOT = pathlib.Path(__file__).parent.parent.parent
MANIFESTS = ["gke_jobset.yaml", "gke_jobset_gpu.yaml"]


@pytest.fixture(params=MANIFESTS)
def manifest(request):
  return yaml.safe_load((ROOT / "launch" / request.param).read_text())


def job_of(manifest):
  return manifest["spec"]["replicatedJobs"][0]["template"]["spec"]


def test_its_numbers_of_hosts_agree_and_ours_are_found(manifest):
  job = job_of(manifest)
  (container,) = job["template"]["spec"]["containers"]
  environ = {variable["name"]: variable.get("value") for variable in container["env"]}
  count = job["parallelism"]
  assert job["completions"] == count == int(environ["JOBSET_NUM_PROCESSES"])
  # What the controller puts into the annotation: <jobset>-<job>-<index>-<pod>.<jobset>.
  coordinator = manifest["spec"]["coordinator"]
  host = f"pomp-{coordinator['replicatedJob']}-0-0.pomp"
  environ |= {"JOBSET_COORDINATOR": host, "JOB_COMPLETION_INDEX": "1", "JAX_PLATFORMS": ""}
  (port,) = [port["containerPort"] for port in container["ports"]]
  with mock.patch.dict(os.environ, environ, clear=True):
    found = detect()
  assert found == Cluster("jobset", f"{host}:{port}", count, 1)
  assert coordinator["replicatedJob"] == manifest["spec"]["replicatedJobs"][0]["name"]


def test_it_fits_the_schemas_and_what_fails_by_itself_is_not_tried_again(manifest):
  """The JobSet by its own schema, the job in it by Kubernetes'."""
  schema = json.loads((pathlib.Path(__file__).parent / "jobset_v1alpha2.json").read_text())
  jsonschema.Draft202012Validator(schema).validate(manifest)
  (replicated,) = manifest["spec"]["replicatedJobs"]
  job = {"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": "x"}}
  kubernetes_validate.validate(job | replicated["template"], "1.33", strict=True)
  (container,) = job_of(manifest)["template"]["spec"]["containers"]
  (rule,) = job_of(manifest)["podFailurePolicy"]["rules"]
  assert (rule["action"], rule["onExitCodes"]["values"]) == ("FailJob", [1, 2])
  assert rule["onExitCodes"]["containerName"] == container["name"]
