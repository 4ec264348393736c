"""The JobSet manifests, against the schemas of JobSet and Kubernetes, and our own
start-up."""

import json
import os
import pathlib
from unittest import mock

import jsonschema
import kubernetes_validate
import pytest
import yaml

from pomp_jax.hosts import Cluster, detect
from tests.support.processes import ROOT


@pytest.fixture(params=["gke_jobset.yaml", "gke_jobset_gpu.yaml"])
def parts(request):
  """A manifest, its only replicated job, the job in that, and the container of it."""
  manifest = yaml.safe_load((ROOT / "launch" / request.param).read_text())
  (replicated,) = manifest["spec"]["replicatedJobs"]
  job = replicated["template"]["spec"]
  (container,) = job["template"]["spec"]["containers"]
  return manifest, replicated, job, container


def test_its_numbers_of_hosts_agree_and_ours_are_found(parts):
  manifest, replicated, job, container = parts
  environ = {variable["name"]: variable.get("value") for variable in container["env"]}
  count = job["parallelism"]
  assert job["completions"] == count == int(environ["JOBSET_NUM_PROCESSES"])
  # What the controller puts into the annotation: <jobset>-<job>-<index>-<pod>.<jobset>.
  coordinator = manifest["spec"]["coordinator"]
  host = f"pomp-{coordinator['replicatedJob']}-0-0.pomp"
  environ |= {
    "JOBSET_COORDINATOR": host,
    "JOB_COMPLETION_INDEX": "1",
    "JAX_PLATFORMS": "",
  }
  (port,) = [port["containerPort"] for port in container["ports"]]
  with mock.patch.dict(os.environ, environ, clear=True):
    found = detect()
  assert found == Cluster("jobset", f"{host}:{port}", count, 1)
  assert coordinator["replicatedJob"] == replicated["name"]


def test_it_fits_the_schemas_and_what_fails_by_itself_is_not_tried_again(parts):
  """The JobSet by its own schema, the job in it by Kubernetes'."""
  manifest, replicated, spec, container = parts
  schema = json.loads(
    (pathlib.Path(__file__).parent / "jobset_v1alpha2.json").read_text()
  )
  jsonschema.Draft202012Validator(schema).validate(manifest)
  job = {"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": "x"}}
  kubernetes_validate.validate(job | replicated["template"], "1.33", strict=True)
  (rule,) = spec["podFailurePolicy"]["rules"]
  assert (rule["action"], rule["onExitCodes"]["values"]) == ("FailJob", [1, 2])
  assert rule["onExitCodes"]["containerName"] == container["name"]


def test_the_claim_is_the_one_that_the_pods_mount(parts):
  claim = yaml.safe_load((ROOT / "launch" / "gke_claim.yaml").read_text())
  kubernetes_validate.validate(claim, "1.33", strict=True)
  volumes = {
    volume["name"]: volume for volume in parts[2]["template"]["spec"]["volumes"]
  }
  assert (
    volumes["runs"]["persistentVolumeClaim"]["claimName"] == claim["metadata"]["name"]
  )
  assert claim["spec"]["accessModes"] == ["ReadWriteMany"]
