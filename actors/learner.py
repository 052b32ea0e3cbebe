"""The learners: DeepSpeed ranks in Ray actors, and the group that drives them as one."""

from __future__ import annotations

import os
import shutil
import socket
from collections.abc import Sequence
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

from actors.log_lines import name_run
from actors.placement import LOOPBACK, interface_of, own_host
from actors.transfer import Manifest, TensorEntry, TransferEndpoint, plan_buckets
from actors.urls import Place, cached, is_url, local_copy, push
from judging.errors import InfrastructureError
from learning.settings import DistillSettings, GrpoSettings, LearnerSettings, ModelSpec
from learning.windows import TrainSample, Window

_INTERFACES = ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME")


def _choose_interface(rendezvous_host: str) -> None:
    """Gloo would take the interface of the machine's own name, which others may not reach."""
    unset = [name for name in _INTERFACES if name not in os.environ]
    if unset:
        interface = "lo" if rendezvous_host == LOOPBACK else interface_of(own_host())
        os.environ.update(dict.fromkeys(unset, interface))


class Learner:
    """One rank. Use it as a Ray actor; every rank must be called alike."""

    def __init__(self, rank: int, world_size: int) -> None:
        name_run(f"learner {rank} of {world_size}")
        self._rank, self._world_size = rank, world_size
        self._listener: socket.socket | None = None

    def open_rendezvous(self) -> tuple[str, int]:
        """Rank 0 listens for a group's members; returns its node's address and the port."""
        from actors.gloo import listen_on

        host = own_host()
        self._listener = listen_on(host)
        return host, self._listener.getsockname()[1]

    def start(
        self,
        spec: ModelSpec,
        settings: LearnerSettings,
        temperature: float,
        seed: int,
        rendezvous: TransferEndpoint,
    ) -> None:
        """Joins the ranks' process group and loads the model."""
        weights = local_copy(spec.weights) if spec.weights else None
        # Of a model that weights replace its configuration and tokenizer are read.
        path = local_copy(spec.path, weights=weights is None)
        spec = replace(spec, path=path, weights=weights)
        import torch
        import torch.distributed as dist

        torch.set_num_threads(settings.cpu_threads)
        os.environ["LOCAL_RANK"] = "0"  # DeepSpeed asks; Ray shows a rank only its own GPU
        _choose_interface(rendezvous.host)
        from actors.gloo import open_store

        store = open_store(rendezvous, self._listener)
        self._listener = None
        backend = "nccl" if torch.cuda.is_available() else "gloo"
        dist.init_process_group(
            backend,
            store=store,
            rank=self._rank,
            world_size=self._world_size,
            timeout=timedelta(seconds=rendezvous.timeout_s),
        )
        import deepspeed

        from learning.extensions import load_communication

        if backend == "gloo":
            load_communication(Path(os.environ["TORCH_EXTENSIONS_DIR"]))
        deepspeed.init_distributed(dist_backend=backend, verbose=False)
        from learning.trainer import Trainer

        self._trainer = Trainer(spec, settings, temperature=temperature, seed=seed)

    def begin_distill(self, settings: DistillSettings, total_steps: int) -> None:
        self._trainer.begin_distill(settings, total_steps)

    def begin_reinforce(self, settings: GrpoSettings, total_steps: int, reference: str) -> None:
        if settings.kl_coef > 0:  # else it is not read
            reference = local_copy(reference)
        self._trainer.begin_reinforce(settings, total_steps, reference)

    def resume(self, place: Place) -> None:
        self._trainer.resume(Path(local_copy(place, trainer=True)))

    def distill_step(self, window: Window) -> dict[str, float]:
        return self._trainer.distill_step(window)

    def distill_loss(self, window: Window) -> float:
        return self._trainer.distill_loss(window)

    def policy_step(self, windows: Sequence[Window]) -> dict[str, float]:
        return self._trainer.policy_step(windows)

    def save(self, place: Place) -> None:
        """Raises InfrastructureError, with the place and the cause, if it is not taken there."""
        from safetensors import SafetensorError

        try:
            if is_url(place):
                self._save_at(str(place))
            else:
                self._trainer.save(Path(place))
        except (OSError, SafetensorError) as error:
            raise InfrastructureError(
                f"cannot write checkpoint {place}: {error}; what is committed is kept: mend this, "
                "and go on with --resume"
            ) from error

    def _save_at(self, url: str) -> None:
        """By way of this node's disk; rank 0, which alone writes, copies it from there."""
        folder = cached("saving", url.rpartition("/")[0]) / f"rank-{self._rank}"
        shutil.rmtree(folder, ignore_errors=True)  # of a learner that died over it
        folder.mkdir(parents=True)
        try:
            self._trainer.save(folder)
            if self._rank == 0:
                push(folder, url)
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def join_transfer(
        self, endpoint: TransferEndpoint, bucket_bytes: int
    ) -> tuple[Manifest, str | None]:
        """Rank 0 joins the weight transport's group.

        Returns:
            What a publication will carry, and what went wrong: most likely an engine's fault.
        """
        from actors.gloo import join_group

        entries = [TensorEntry(*shape) for shape in self._trainer.parameter_shapes()]
        self._manifest = plan_buckets(entries, bucket_bytes)
        if self._rank == 0:
            listener, self._listener = self._listener, None
            try:
                self._transfer = join_group(endpoint, 0, listener)
            except RuntimeError as error:
                return self._manifest, str(error)
        return self._manifest, None

    def publish(self, probe: TrainSample) -> tuple[list[float], str | None]:
        """Broadcasts the weights to the engines; all ranks must call, rank 0 sends.

        Returns:
            The policy's log-probabilities of the probe's completion, to prove the publication by,
            and what went wrong in the transport: an engine's fault, not that of a learner.
        """
        from actors.gloo import send_buckets

        parameters, error = self._trainer.parameters(), None
        if self._rank == 0:
            try:
                send_buckets(self._transfer, self._manifest, parameters)
            except RuntimeError as failed:
                error = str(failed)
                self._transfer = None  # closed, so that no engine waits for the rest
        for _ in parameters:  # of a gathering all ranks take part
            pass
        # Of a prompt, as which the probe is given to them, engines tell the model's own.
        return self._trainer.score([probe], temperature=1.0)[0], error
