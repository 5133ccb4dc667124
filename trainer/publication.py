"""Puts a finished adapter into the registry.

It does: check before the training that its name is one and that the registry opens, and publish after it.
It does not: judge the adapter; the registry does.
"""

from __future__ import annotations

from registry.cli.options import Place, open_given
from registry.names import AdapterName, parse_alias
from registry.principal import Principal
from registry.version import Version
from trainer.job import Job
from trainer.result import TrainingResult


def check_publication(job: Job, registry_place: Place) -> None:
    """Find out now, not after the training, what would stop a publication. Raises RegistryError."""
    if job.output.publish is None:
        return
    AdapterName.parse(job.output.publish)
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
