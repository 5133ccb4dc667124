"""Puts a finished adapter into the registry; of a mixture first its experts.

It does: check before the training that its name is one and that the registry opens, and publish after it.
It does not: judge the adapter; the registry does.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from registry.cli.options import Place, open_given
from registry.names import AdapterName, parse_alias
from registry.principal import Principal
from registry.version import Version
from trainer.errors import ExportError
from trainer.job import Job

if TYPE_CHECKING:
    from registry.registry import Registry
    from trainer.result import TrainingResult


def check_publication(job: Job, registry_place: Place) -> None:
    """Find out now, not after the training, what would stop a publication. Raises RegistryError."""
    if job.output.publish is None:
        return
    AdapterName.parse(job.output.publish)
    for number in range(1, len(job.mixture.experts) + job.mixture.new_experts + 1):
        AdapterName.parse(expert_name(job.output.publish, number))
    if job.output.alias is not None:
        parse_alias(job.output.alias)
    with open_given(registry_place) as registry:
        registry.bases()


def publish_result(result: TrainingResult, job: Job, registry_place: Place) -> Version | None:
    """Publish as the job says, as the local operator; None if it says nothing. Raises RegistryError."""
    if job.output.publish is None:
        return None
    operator = Principal.operator()
    with open_given(registry_place) as registry:
        registry.register_base(result.base.to_json())
        _publish_experts(registry, result, job.output.publish, job.output.visibility)
        version = registry.publish(
            result.adapter_folder,
            job.output.publish,
            principal=operator,
            visibility=job.output.visibility,
            message=job.output.message,
        )
        if job.output.alias is not None:
            registry.promote(
                f"{version.adapter}@{version.number}",
                job.output.alias,
                principal=operator,
                evidence=f"published by the training run {result.name}",
            )
    return version


def expert_name(mixture: str, number: int) -> str:
    """The name under which a mixture's expert is published that is no version yet. Numbers begin at 1."""
    return f"{mixture}-{number}"


def _publish_experts(registry: Registry, result: TrainingResult, name: str, visibility: str | None) -> None:
    """Publish the experts that a mixture names by digest and that are no versions yet: they come first."""
    for number, expert in enumerate(result.experts, start=1):
        if expert.folder is None:
            continue
        version = registry.publish(
            expert.folder,
            expert_name(name, number),
            principal=Principal.operator(),
            visibility=visibility,
            message=f"an expert of {name}",
        )
        if version.digest != expert.digest:
            raise ExportError(f"the files of expert {expert.name} changed during the run; train the mixture again")
