"""The cluster scripts' dry runs: the right command on every host, and clear refusals."""

import math
import os
import pathlib
import re
import runpy
import shlex
import subprocess

import pytest
import yaml

from polaris_jax.config.shipped import shipped_configs

ROOT = pathlib.Path(__file__).resolve().parents[2]
SLURM = ROOT / "launch" / "gpu_slurm.sbatch"
TPU = ROOT / "launch" / "tpu_pod.sh"
GKE = ROOT / "launch" / "gke_jobset.yaml"


def call(script, *arguments, **more):
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("POLARIS_", "SLURM_"))}
    return subprocess.run(
        ["bash", str(script), *arguments],
        env=kept | more,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_slurm_starts_one_process_a_node():
    job = {"SLURM_JOB_NUM_NODES": "4", "SLURM_JOB_ID": "4100", "SLURM_LAUNCH_NODE": "gpu7"}
    done = call(SLURM, "--dry-run", "train", "--workdir=/runs/a b", **job)
    assert done.returncode == 0, done.stderr
    variables, command = (shlex.split(line.replace("$'", "'")) for line in done.stdout.splitlines())
    assert "POLARIS_COORDINATOR=gpu7:61444" in variables
    assert "POLARIS_NUM_PROCESSES=4" in variables
    assert "POLARIS_LAUNCH=slurm-4100" in variables
    assert command[:4] == ["srun", "--nodes=4", "--ntasks=4", "--ntasks-per-node=1"]
    assert command[-4:] == ["-m", "polaris_jax", "train", "--workdir=/runs/a b"]


def test_slurm_gives_a_process_every_gpu_of_its_node(tmp_path):
    """Runs the real script under a stand-in srun, as node 1 of 2 with 8 GPUs."""
    for name, body in {
        "scontrol": 'echo "gpu1"; echo "gpu2"',
        "srun": "while [[ $1 == --* ]]; do shift; done\n"
        'SLURM_PROCID=1 SLURM_GPUS_ON_NODE=8 exec "$@"',
        "python": "env | grep -E '^(POLARIS_|JAX_LOCAL)' | sort; echo \"$@\"",
    }.items():
        (tmp_path / name).write_text(f"#!/usr/bin/env bash\n{body}\n")
        (tmp_path / name).chmod(0o755)
    job = {"SLURM_JOB_NUM_NODES": "2", "SLURM_JOB_ID": "1", "SLURM_JOB_NODELIST": "gpu[1-2]"}
    done = call(
        SLURM, "train", "--workdir=w", **job, SLURM_CLUSTER_NAME="west", SLURM_RESTART_COUNT="1",
        PATH=f"{tmp_path}:{os.environ['PATH']}", POLARIS_PYTHON=str(tmp_path / "python"),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [
        "JAX_LOCAL_DEVICE_IDS=0,1,2,3,4,5,6,7",
        "POLARIS_COORDINATOR=gpu1:61441",
        "POLARIS_LAUNCH=slurm-west-1",
        "POLARIS_NUM_PROCESSES=2",
        "POLARIS_PROCESS_ID=1",
        f"POLARIS_PYTHON={tmp_path / 'python'}",
        "-m polaris_jax train --workdir=w",
    ]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--dry-run"], "which polaris command?"),
        (["--nodes=3", "train"], "--nodes=3: there is no such option"),
        (["train"], "not inside a Slurm job"),
    ],
)
def test_slurm_refusals(arguments, words):
    done = call(SLURM, *arguments)
    assert done.returncode == 2
    assert words in done.stderr


def test_slurm_from_another_folder_names_the_remedy(tmp_path):
    done = call(SLURM, "train", SLURM_SUBMIT_DIR=str(tmp_path))
    assert done.returncode == 2
    assert "submit the job from there" in done.stderr


def remote_command(line: str) -> str:
    words = shlex.split(line)
    assert words[:6] == ["gcloud", "compute", "tpus", "tpu-vm", "ssh", "pod"]
    assert "--worker=all" in words
    return words[words.index("--command") + 1]


def test_tpu_runs_the_command_on_every_host():
    done = call(
        TPU, "--name", "pod", "--zone", "z", "--project", "p", "--dry-run",
        "--", "train", "--workdir=/mnt/a b",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    (line,) = done.stdout.splitlines()
    assert "--project p" in line
    remote = remote_command(line)
    assert remote.startswith("cd polaris_jax && POLARIS_DISTRIBUTED=auto POLARIS_LAUNCH=tpu-")
    assert shlex.split(remote)[-2:] == ["train", "--workdir=/mnt/a b"]


def test_tpu_calls_differ_in_their_launch_and_gclouds_repetitions_do_not():
    """gcloud repeats the same text when a connection breaks; a second call is a new launch."""
    calls = [call(TPU, "--name", "p", "--zone", "z", "--dry-run", "--", "train") for _ in range(2)]
    launches = [re.findall(r"POLARIS_LAUNCH=(tpu-\d+-\d+)\\? ", done.stdout) for done in calls]
    assert [len(found) for found in launches] == [1, 1]
    assert launches[0] != launches[1]


def test_tpu_hosts_keep_compiled_programs_where_asked():
    cache = {"POLARIS_COMPILE_CACHE": "gs://bucket/a b"}
    done = call(TPU, "--name", "pod", "--zone", "z", "--dry-run", "--", "train", **cache)
    words = shlex.split(remote_command(done.stdout.splitlines()[0]))
    assert words.index("POLARIS_COMPILE_CACHE=gs://bucket/a b") < words.index(".venv/bin/python")


def test_tpu_hosts_get_libtpus_arguments_and_ones_own_come_last():
    own = {"LIBTPU_INIT_ARGS": "--xla_tpu_use_tc_device_shape_on_sc=false --xla_x=1"}
    where = ("--name", "pod", "--zone", "z", "--dry-run")

    def sent(*more, **variables):
        done = call(TPU, *where, *more, "--", "train", **variables)
        words = shlex.split(remote_command(done.stdout.splitlines()[0]))
        (found,) = [w for w in words if w.startswith("LIBTPU_INIT_ARGS=")]
        assert words.index(found) < words.index(".venv/bin/python")
        return found.removeprefix("LIBTPU_INIT_ARGS=").split()

    listed = (TPU.parent / "sparse_core.args").read_text().split()
    assert sent(**own) == own["LIBTPU_INIT_ARGS"].split()
    assert sent("--sparse-core") == listed
    assert sent("--sparse-core", **own) == [*listed, *own["LIBTPU_INIT_ARGS"].split()]


def test_tpu_setup_copies_head_and_installs_with_libtpu():
    done = call(TPU, "--name", "pod", "--zone", "z", "--setup", "--dir", "src", "--dry-run")
    archive, copy, install = done.stdout.splitlines()
    assert archive.startswith("git -C ")
    assert archive.endswith(" HEAD")
    assert " tpu-vm scp " in copy
    assert "make -C src venv-tpu" in remote_command(install)
    assert "venv-tpu:" in (ROOT / "Makefile").read_text()


def test_tpu_takes_a_folder_with_a_space():
    more = ("--setup", "--dir", "my src", "--dry-run", "--", "report")
    done = call(TPU, "--name", "pod", "--zone", "z", *more)
    install, report = map(remote_command, done.stdout.splitlines()[-2:])
    assert shlex.split(install)[:3] == ["mkdir", "-p", "my src"]
    assert shlex.split(install)[-4:] == ["make", "-C", "my src", "venv-tpu"]
    assert shlex.split(report)[:2] == ["cd", "my src"]


def test_tpu_stop_does_not_match_its_own_shell():
    done = call(TPU, "--name", "pod", "--zone", "z", "--stop", "--dry-run")
    assert "[p]ython -m polaris_jax" in remote_command(done.stdout.splitlines()[0])


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--zone", "z", "--", "train"], "--name is missing"),
        (["--name", "pod", "--", "train"], "--zone is missing"),
        (["--name", "pod", "--zone", "z"], "which polaris command?"),
        (["--name"], "--name needs a value"),
        (["--nmae", "pod"], "--nmae: there is no such option"),
    ],
)
def test_tpu_refusals(arguments, words):
    done = call(TPU, *arguments)
    assert done.returncode == 2
    assert words in done.stderr


@pytest.fixture
def jobset():
    """The manifest with the values of its head comment, and those values."""
    text = GKE.read_text()
    head = text.split("apiVersion")[0]
    exported = " ".join(line[1:] for line in head.splitlines() if " export " in line)
    values = dict(word.split("=", 1) for word in shlex.split(exported) if "=" in word)
    for name in set(re.findall(r"\$\{(\w+)\}", text)):
        text = text.replace(f"${{{name}}}", values[name])
    assert "${" not in text
    return yaml.safe_load(text), values


def test_jobset_fills_in_to_a_whole_manifest(jobset):
    manifest, values = jobset
    assert manifest["kind"] == "JobSet"
    job = manifest["spec"]["replicatedJobs"][0]["template"]["spec"]
    assert job["parallelism"] == job["completions"] == 32
    pod = job["template"]["spec"]
    (container,) = pod["containers"]
    assert container["command"][:2] == ["polaris", "train"]
    flags = [*container["command"][2:], *container["args"]]
    assert flags == [
        f"--config={values['CONFIG']}",
        f"--workdir={values['WORKDIR']}",
        "--config.evaluate.problems=/runs/aime24.jsonl",
    ]
    config, pod_name = values["CONFIG"].split(":", 1)
    pods = runpy.run_path(str(ROOT / "configs" / "_targets.py"))["PODS"]
    assert config in shipped_configs() and pod_name in pods
    assert pod_name == f"v5e:{values['TOPOLOGY']}"
    chips = math.prod(map(int, values["TOPOLOGY"].split("x")))
    assert int(values["HOSTS"]) * int(values["CHIPS_A_HOST"]) == chips
    assert {"name": "POLARIS_DISTRIBUTED", "value": "auto"} in container["env"]
    # With 0 a preempted pod would count as complete, and its JobSet as done.
    assert {"name": "POLARIS_STOPPED_STATUS", "value": "143"} in container["env"]
    assert container["resources"]["limits"]["google.com/tpu"] == 4
    assert pod["terminationGracePeriodSeconds"] > 25  # checkpoint.grace_s


def test_jobset_restarts_what_a_restart_can_mend(jobset):
    """Exit status 2, of bad input, fails the set; every other failure restarts it."""
    spec = jobset[0]["spec"]
    (rule,) = spec["failurePolicy"]["rules"]
    assert rule["action"] == "FailJobSet"
    assert rule["onJobFailureReasons"] == ["PodFailurePolicy"]
    assert re.fullmatch("[A-Za-z]([A-Za-z0-9_,:]*[A-Za-z0-9_])?", rule["name"])
    job = spec["replicatedJobs"][0]["template"]["spec"]
    pod = job["template"]["spec"]
    assert pod["restartPolicy"] == "Never"  # or Kubernetes refuses a podFailurePolicy
    (failure,) = job["podFailurePolicy"]["rules"]
    assert failure["action"] == "FailJob"
    codes = failure["onExitCodes"]
    assert codes == {"containerName": "polaris", "operator": "In", "values": [2]}
    (container,) = pod["containers"]
    assert container["name"] == codes["containerName"]
    # The first process gets the signals and its status is the container's: no shell in between.
    assert container["command"][0] == "polaris"


def test_jobset_names_the_launch_by_what_restarts_keep(jobset):
    pod = jobset[0]["spec"]["replicatedJobs"][0]["template"]["spec"]["template"]["spec"]
    (source,) = [
        v["valueFrom"] for v in pod["containers"][0]["env"] if v["name"] == "POLARIS_LAUNCH"
    ]
    path = source["fieldRef"]["fieldPath"]
    assert path == "metadata.labels['jobset.sigs.k8s.io/jobset-uid']"
