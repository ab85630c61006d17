"""The pages of the console beside that of a session: what each is for, in a real browser."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from uuid import UUID, uuid4

import pytest

from tests import receiver
from tests.balancer import Balancer
from tests.browser import Page
from tests.conftest import NewKey
from tests.fleet import API_KEY, Fleet
from tests.web.console.conftest import Console, says

ROWS = "document.querySelectorAll('tbody tr').length"


async def row(page: Page, text: str) -> str:
    """An expression for the row of a table that has this text, as soon as there is one."""
    found = f"[...document.querySelectorAll('tbody tr')].find((row) => row.innerText.includes({json.dumps(text)}))"
    await page.when(f"{found} !== undefined")
    return found


async def test_sessions_are_listed_filtered_and_live(console: Console, fleet: Fleet) -> None:
    tag = uuid4().hex
    sessions = [await fleet[0].session(title=f"Report {number} {tag}", tags=[tag]) for number in range(3)]
    await fleet[0].session(title="Another one")
    async with console("/sessions") as page:
        await page.fill("Tag", tag)
        await page.when(f"{ROWS} === 3 && {says('Report 2')}")
        await page.fill("Title", "report 1")
        await page.when(f"{ROWS} === 1")
        assert f"tag={tag}" in await page.evaluate("location.search")
        await page.fill("Title", "")
        await page.when(f"{ROWS} === 3")
        # What it is doing is seen without a reload.
        await fleet[1].prompt(sessions[0], "ask Which colour? options red, green", permission_mode="default")
        await page.when(f"{await row(page, 'Report 0')}.innerText.includes('Requires action')")
        await fleet[2].post(f"/sessions/{sessions[0]}/interrupt")
        await page.fill("Status", "requires_action")
        await page.when(says("No session is like that"))
        await page.press("Clear the filters")
        await page.when(f"{ROWS} > 3")
        await page.evaluate(f"{await row(page, 'Report 1')}.querySelector('a').click()")
        await page.when(f"location.pathname.endsWith({sessions[1]!r})")


async def test_a_list_goes_on_page_after_page(console: Console, fleet: Fleet) -> None:
    tag = uuid4().hex
    await asyncio.gather(*(fleet[n % 3].session(tags=[tag]) for n in range(60)))
    async with console(f"/sessions?tag={tag}") as page:
        await page.when(f"{ROWS} === 50")
        await page.press("Show more")
        await page.when(f"{ROWS} === 60")
        ids = await page.evaluate("[...document.querySelectorAll('tbody a')].map((link) => link.href)")
        assert len(set(ids)) == 60
        assert await page.evaluate("[...document.querySelectorAll('button')].every((b) => b.innerText !== 'Show more')")


async def test_what_waits_in_all_sessions_is_answered_in_the_inbox(console: Console, fleet: Fleet) -> None:
    asking = await fleet[0].session(permission_mode="default")
    run = await fleet[0].prompt(asking, "ask Which colour? options red, green")
    async with console("/inbox") as page:
        other = await fleet[1].session(permission_mode="default")
        other_run = await fleet[1].prompt(other, "run touch made.txt && echo made")
        cards = "[...document.querySelectorAll('section.request')]"
        for session in (asking, other):
            await page.when(f"{cards}.some((card) => card.innerText.includes({session[:8]!r}))")
        await page.when("document.querySelector('nav .count.hot') !== null")
        await page.evaluate(
            f"{cards}.find((card) => card.innerText.includes({asking[:8]!r})).querySelector('.option input').click()"
        )
        await page.press("Answer")
        await page.when(f"!{cards}.some((card) => card.innerText.includes({asking[:8]!r}))")
        mine = f"{cards}.find((card) => card.innerText.includes({other[:8]!r}))"
        await page.evaluate(f"[...{mine}.querySelectorAll('button')].find((b) => b.innerText === 'Allow').click()")
        await page.when(f"{mine} === undefined")
        assert (await fleet[2].follow(run))[-1].data["status"] == "succeeded"
        assert (await fleet[2].follow(other_run))[-1].data["status"] == "succeeded"


async def test_an_answer_that_somebody_else_has_given_is_told(console: Console, fleet: Fleet) -> None:
    session = await fleet[0].session(permission_mode="default")
    await fleet[0].prompt(session, "run touch made.txt && echo made")
    async with console(f"/sessions/{session}", refused=("409",)) as page:
        await page.when("document.querySelector('section.request') !== null")
        await page.press("Deny …")
        [request] = (await fleet[1].get(f"/sessions/{session}/requests")).json()["data"]
        decided = await fleet[1].post(f"/sessions/{session}/permissions/{request['request_id']}", {"decision": "allow"})
        assert decided.status_code == 200
        await page.when("document.querySelector('.resolved')?.innerText.includes('first key')")
        assert await page.evaluate("document.querySelector('section.request') === null")


async def test_a_session_is_tried_out_and_started_and_a_program_can_say_the_same(
    console: Console, fleet: Fleet
) -> None:
    name = f"p{uuid4().hex}"
    preset = await fleet[0].post("/agents", {"name": name, "profile": "readonly", "max_turns": 7})
    assert preset.status_code == 201
    async with console("/new") as page:
        await page.fill("Prompt", 'say it\'s "done"')
        await page.fill("Preset", name)
        await page.when(says("It would be accepted") + " && " + says("Glob, Grep, Read"))
        await page.press("Tools and rules")
        await page.fill("Tools that exist", "Bash")
        await page.when(says("It would be refused") + " && " + says("Bash is not among the profile's tools"))
        await page.fill("Tools that exist", "")
        await page.when(says("It would be accepted"))
        await page.press("Limits and the rest")
        await page.fill("Other options, as a JSON object", '{"metadata": {"by": "the console", "no": null}}')
        await page.when(says("It would be refused"))
        await page.fill("Other options, as a JSON object", '{"metadata": {"by": "the console"}}')
        await page.when(says("It would be accepted"))
        for language in ("curl", "python"):
            await page.evaluate(f"document.querySelector('input[value={language}]').click()")
            await page.when(f"document.querySelector('[aria-label=\"the {language} example\"]') !== null")
            text = await page.text(f"[aria-label='the {language} example']")
            command = ["sh", "-c", text] if language == "curl" else [sys.executable, "-c", text]
            env = {**os.environ, "API_KEY": API_KEY, "NO_PROXY": "*"}
            ran = await asyncio.create_subprocess_exec(
                *command, env=env, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
            )
            out, errors = await ran.communicate()
            assert ran.returncode == 0, errors
            assert b"succeeded" in out
        await page.fill("Title", "From the console")
        await page.press("Start")
        await page.when("document.querySelector('h1')?.innerText === 'From the console'")
        await page.when(says('it\'s "done"', "[role=log]") + " && document.querySelector('.outcome') !== null")
        session = (await page.evaluate("location.pathname")).rpartition("/")[2]
    state = (await fleet[1].get(f"/sessions/{UUID(session)}")).json()
    assert (state["agent"]["name"], state["profile"], state["metadata"]) == (name, "readonly", {"by": "the console"})


async def test_a_preset_is_made_changed_and_deleted_and_hidden_values_stay(console: Console, fleet: Fleet) -> None:
    name = f"p{uuid4().hex}"
    async with console("/presets", refused=("422",)) as page:
        await page.press("New preset")
        await page.fill("Name", "not a name!")
        await page.press("Save")
        await page.when("document.querySelector('dialog .failure') !== null")
        await page.fill("Name", name)
        await page.fill("Description", "Reviews a change")
        await page.press("Limits and the rest")
        await page.fill("Most turns per prompt", "7")
        await page.fill("Other options, as a JSON object", '{"env": {"TEAM": "blue"}}')
        await page.press("Save")
        await page.when(f"document.querySelector('h1')?.innerText === {name!r}")
        await page.when(says('"TEAM": "***"'))
        await page.press("Edit")
        await page.fill("Description", "Reviews changes")
        await page.press("Limits and the rest")
        await page.fill("Most turns per prompt", "8")
        await page.press("Save")
        await page.when(says("2, the newest") + " && " + says("Reviews changes"))
        await page.press("Version 1")
        await page.when(says("1 of 2") + " && " + says('"max_turns": 7'))
        made = (await fleet[1].get(f"/agents/{name}")).json()
        assert (made["version"], made["config"]["max_turns"]) == (2, 8)
        session = await fleet[1].session(agent=name, permission_mode="bypassPermissions")
        assert (await fleet[1].ask(session, "run echo team $TEAM"))["result"].endswith("team blue")
        await page.press("Delete")
        await page.press("Delete")
        await page.when("document.querySelector('h1')?.innerText === 'Presets'")
    assert (await fleet[0].get(f"/agents/{name}")).status_code == 404


async def test_a_webhook_is_made_tested_and_sent_to_once_more(console: Console) -> None:
    async with receiver.receiving() as received, console("/webhooks") as page:
        url = f"http://127.0.0.1:{received.port}/hook"
        await page.press("New webhook")
        await page.fill("URL", url)
        await page.fill("run.queued", "off")
        await page.press("Save")
        await page.when("document.querySelector('dialog pre')?.innerText.startsWith('whsec_')")
        await page.press("I have kept it")
        await page.evaluate(f"{await row(page, url)}.querySelector('a').click()")
        await page.press("Send a test")
        await page.when(f"{await row(page, 'webhook.test')}.innerText.includes('Delivered')")
        await page.press("Redeliver")
        await page.when(f"{await row(page, 'webhook.test')}.innerText.includes('Delivered')")
        await page.press("Rotate the secret")
        await page.press("Rotate")
        await page.when("document.querySelector('dialog pre')?.innerText.startsWith('whsec_')")
        await page.press("I have kept it")
        await page.press("Disable")
        await page.when(says("Disabled"))
        await page.press("Delete")
        await page.press("Delete")
        await page.when("document.querySelector('h1')?.innerText === 'Webhooks'")


async def test_a_schedule_is_made_fired_paused_and_changed(console: Console, fleet: Fleet) -> None:
    async with console("/schedules", refused=("422",)) as page:
        await page.press("New schedule")
        await page.fill("Name", "Yearly")
        await page.fill("Cron", "0 0 31 2 *")
        await page.fill("Prompt", "say happy new year")
        await page.press("Save")
        await page.when("document.querySelector('.failure-code')?.innerText === 'validation_error'")
        await page.fill("Cron", "0 0 1 1 *")
        await page.press("Save")
        await page.when("document.querySelector('h1')?.innerText === 'Yearly'")
        await page.press("Fire now")
        await page.when(f"{await row(page, 'by request')}.innerText.includes('Succeeded')")
        await page.press("Pause")
        await page.when(says("By request"))
        await page.press("Edit")
        await page.fill("Cron", "30 6 1 1 *")
        await page.press("Save")
        await page.when(says("30 6 1 1 *"))
        await page.press("Resume")
        await page.when(says("Next times"))
        await page.press("Delete")
        await page.press("Delete")
        await page.when("document.querySelector('h1')?.innerText === 'Schedules'")
    assert (await fleet[0].get("/schedules")).json()["data"] == []


async def test_usage_is_shown_by_day_key_model_and_session(console: Console, fleet: Fleet, new_key: NewKey) -> None:
    own = await new_key()  # a tenant of its own: the sessions of others would fill the first page
    session = (await fleet[0].post("/query/single", {"prompt": "say hello"}, headers=own)).json()["session_id"]
    async with console("/usage", own["X-API-Key"]) as page:
        await page.when("document.querySelector('.chart canvas') !== null")
        await page.when(says("claude-sonnet-5-5"))
        await page.evaluate("document.querySelector('input[value=session]').click()")
        await page.when(says(session[:8]))
        await page.evaluate("document.querySelector('input[value=key]').click()")
        await page.when("document.querySelector('tbody td')?.innerText === 'k'")
        await page.evaluate("document.querySelector('input[value=tokens]').click()")
        await page.when("document.querySelector('.legend')?.innerText.includes('Written')")
        await page.fill("From", "2020-01-01")
        await page.when(says("validation_error"))
        page.complaints.clear()  # it was refused: that is more days than there may be


async def test_a_key_is_made_used_rotated_and_revoked(console: Console, fleet: Fleet, balancer: Balancer) -> None:
    name = uuid4().hex
    async with console("/keys?tenant=default") as page:
        await page.press("New key")
        await page.fill("Name", name)
        await page.press("Limits")
        await page.fill("Prompts per minute", "9")
        await page.press("Save")
        await page.when("document.querySelector('dialog pre')?.innerText.startsWith('cak_')")
        secret = await page.text("dialog pre")
        await page.press("I have kept it")
        facts = await fleet[1].client.get("/api/v1/whoami", headers={"X-API-Key": secret})
        assert (facts.json()["key_name"], facts.json()["scopes"]) == (name, ["write", "read"])
        limits = (await fleet[1].client.get("/api/v1/limits", headers={"X-API-Key": secret})).json()["data"]
        assert 9 in [limit["limit"] for limit in limits]
        await row(page, name)
        await page.press(f"Rotate {name}")
        await page.fill("The old one is valid for", "0")
        await page.press("Rotate")
        await page.when(f"![null, undefined, {secret!r}].includes(document.querySelector('dialog pre')?.innerText)")
        fresh = await page.text("dialog pre")
        await page.press("I have kept it")
        assert (await fleet[2].client.get("/api/v1/whoami", headers={"X-API-Key": secret})).status_code == 401
        await page.press(f"Revoke {name}")
        await page.press("Revoke")
        await page.when(f"{await row(page, name)}.innerText.includes('Revoked')")
        assert (await fleet[0].client.get("/api/v1/whoami", headers={"X-API-Key": fresh})).status_code == 401


async def test_the_fleet_is_shown_and_a_run_that_is_well_is_said_to_be(console: Console, fleet: Fleet) -> None:
    session = await fleet[0].session()
    result = await fleet[0].ask(session, "say hello")
    async with console("/fleet", refused=("409",)) as page:
        for instance in fleet.instances:
            found = await row(page, instance.id[:8])
            assert "Alive" in await page.evaluate(f"{found}.innerText")
        await page.when(says("Postgres"))
        await page.fill("Run", result["run_id"])
        await page.press("Repair")
        await page.when(says("nothing_to_repair") + " && " + says("The run is over: succeeded."))


async def test_a_tenant_is_made_limited_suspended_and_deleted(console: Console, fleet: Fleet, new_key: NewKey) -> None:
    name = f"t{uuid4().hex}"
    async with console("/tenants", refused=("404",)) as page:  # it has no model credential of its own
        await page.press("New tenant")
        await page.fill("Name", name)
        await page.press("Make")
        await page.when(f"document.querySelector('h1')?.innerText === {name!r}")
        key = await new_key(name)
        await page.fill("Runs that wait", "12")
        await page.evaluate("document.querySelector('section[aria-label=Limits] button[type=submit]').click()")
        await page.when(says("Saved.", ".toasts"))
        await page.fill("Events", "90")
        await page.fill("Usage", "ever")
        await page.evaluate("document.querySelector('section[aria-label=\"Kept for\"] button[type=submit]').click()")
        await page.when("document.querySelectorAll('.toast').length > 0")
        limits = (await fleet[1].get(f"/admin/tenants/{name}/limits")).json()["limits"]
        assert limits["queued_runs"] == 12
        await page.when("document.querySelector('section[aria-label=\"Kept for\"] form') !== null")
        kept = (await fleet[1].get(f"/admin/tenants/{name}/retention")).json()["retention"]
        assert kept == {"events_days": 90, "usage_days": None}
        await page.press("Suspend")
        await page.press("Suspend")
        await page.when(says("Suspended"))
        refused = await fleet[0].client.get("/api/v1/whoami", headers=key)
        assert refused.json()["error"]["code"] == "tenant_suspended"
        await page.press("Resume")
        await page.when(says("Active"))
        await page.press("Delete")
        assert await page.evaluate("document.querySelector('dialog button[type=submit]').disabled")
        await page.fill(f"Write {name} to go on", name)
        await page.press("Delete for good")
        await page.when("document.querySelector('h1')?.innerText === 'Tenants' || " + says("Deleting"))


async def test_the_audit_log_is_read_and_filtered(console: Console, fleet: Fleet) -> None:
    name = f"t{uuid4().hex}"
    assert (await fleet[0].post("/admin/tenants", {"name": name})).status_code == 201
    async with console("/audit") as page:
        await page.fill("Action", "tenant.created")
        found = await row(page, name)
        assert "first key" in await page.evaluate(f"{found}.innerText")
        await page.evaluate(f"{found}.querySelector('button').click()")
        await page.when("document.querySelector('dialog pre')?.innerText.includes('request_id')")
        await page.press("Close")
        await page.fill("By", "cli")
        await page.when(says("No line is like that") + f" || !({says(name)})")


@pytest.mark.parametrize("path", ["/nothing", "/sessions/a/b/c", "/admin"])
async def test_a_path_that_is_no_page_is_said_to_be_none(console: Console, path: str) -> None:
    async with console(path) as page:
        await page.when(says("There is no such page"))
