"""Where the charts of sweeps are seen."""

from pipeline.common.redaction import without_secrets
from pipeline.tracking.database import database, exists, stored_experiments
from pipeline.tracking.server import client_of, connected, wrap_errors
from pipeline.tracking.views import VIEW_TAG, charts_address


def charts_of(sweep: str, uri: str) -> str | None:
    """Where the charts of a sweep are seen; None where MLflow does not have it. A database is read without MLflow.

    Raises:
        PipelineError: MLflow does not answer.
    """
    if not exists(uri):
        return None
    if path := database(uri):
        number = stored_experiments(path, VIEW_TAG).get(sweep)
    else:
        with wrap_errors(uri):
            experiment = client_of(uri).get_experiment_by_name(sweep)
            number = experiment and experiment.experiment_id
    return charts_address(without_secrets(uri), number) if number else None


def all_charts(uri: str, port: int) -> dict[str, str]:
    """Where the charts of each sweep are seen. A database that is not there yet is made.

    Args:
        uri: as `ingest`.
        port: where `make ui` shows a database.

    Raises:
        PipelineError: MLflow does not answer, or its database is damaged.
    """
    with connected(uri) as client:
        experiments = [found for found in client.search_experiments() if VIEW_TAG in found.tags]
    shown = without_secrets(uri)
    return {found.name: charts_address(shown, found.experiment_id, port) for found in experiments}
