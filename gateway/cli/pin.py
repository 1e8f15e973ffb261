"""`headgate pin` and `unpin`: one version of a policy, or one backend, for a while."""

import click

from gateway.cli.common import config_option, fail, json_option, print_json, url_option
from gateway.cli.switches import (
    current_overrides,
    for_option,
    lift_override,
    said,
    set_override,
    why_option,
)

_POLICY, _BACKEND = "pin.policy", "pin.backend"


@click.command()
@click.option("--policy", metavar="NAME[@SHA]", help="Decides in place of the configured one.")
@click.option("--backend", metavar="NAME", help="Answers all that it may and can.")
@for_option
@why_option
@config_option
@url_option
@json_option
@click.pass_context
def pin(
    ctx: click.Context,
    policy: str | None,
    backend: str | None,
    for_s: float,
    why: str,
    config: str | None,
    url: str | None,
    as_json: bool,
) -> None:
    """Pin a policy's version or a backend, in every gateway within two seconds.

    Denials, caps and cache rules of the policy go on; a request that names another model, or that
    the pinned backend cannot answer, goes its usual way. Without @SHA the policy stays as its file
    is now.
    """
    slot, value = _slot(policy, backend)
    answer = set_override(ctx, config, url, slot, value=value, for_s=for_s, why=why)
    if as_json:
        print_json(answer)
        return
    said(answer, f"{answer['value']} is pinned until {answer['until']}")


@click.command()
@click.option("--policy", is_flag=True, help="The policy's pin.")
@click.option("--backend", is_flag=True, help="The backend's pin.")
@config_option
@url_option
@json_option
@click.pass_context
def unpin(
    ctx: click.Context,
    policy: bool,
    backend: bool,
    config: str | None,
    url: str | None,
    as_json: bool,
) -> None:
    """End a pin before its time; both, unless one is named."""
    named = {_POLICY: policy, _BACKEND: backend}
    slots = [slot for slot, chosen in named.items() if chosen]
    if not slots:
        slots = [one["slot"] for one in current_overrides(ctx, config, url) if one["slot"] in named]
    if not slots:
        fail("nothing is pinned")
    answers = [lift_override(ctx, config, url, slot) for slot in slots]
    if as_json:
        print_json(answers[0] if policy != backend else answers)
        return
    for slot, answer in zip(slots, answers, strict=True):
        said(answer, f"the {slot.removeprefix('pin.')} is unpinned")


def _slot(policy: str | None, backend: str | None) -> tuple[str, str]:
    if (policy is None) == (backend is None):
        raise click.UsageError("exactly one of --policy and --backend")
    return (_POLICY, policy) if policy is not None else (_BACKEND, backend or "")
