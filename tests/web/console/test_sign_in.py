"""Who you are to the console: a key in the memory of a page, and what that key may see."""

from __future__ import annotations

from apps.api.core.config.limits import Limits
from tests.balancer import Balancer
from tests.browser import Browser
from tests.conftest import NewKey
from tests.fleet import API_KEY
from tests.web.console.conftest import Console, says, sign_in, visit

MENU = "[...document.querySelectorAll('nav[aria-label=Pages] a')].map((link) => link.innerText.trim())"


async def test_a_wrong_key_is_told_with_its_code_and_the_id_of_the_request(
    chromium: Browser, balancer: Balancer
) -> None:
    async with chromium.page(f"{balancer.url}/console") as page:
        await page.when("document.activeElement?.id === 'api-key'")
        await page.type("api-key", "cak_wrong")
        await page.press("Sign in")
        await page.when(says("invalid_api_key"))
        assert await page.evaluate("/Request [0-9a-f]{32}/.test(document.querySelector('[role=alert]').innerText)")
        assert await page.evaluate("document.querySelector('nav') === null")
        await page.type("api-key", API_KEY)
        await page.press("Sign in")
        await page.when("document.querySelector('nav') !== null")


async def test_the_form_is_one_that_password_managers_fill(chromium: Browser, balancer: Balancer) -> None:
    async with chromium.page(f"{balancer.url}/console") as page:
        await page.when("document.getElementById('api-key') !== null")
        fields = "[...document.querySelectorAll('form input')].map((field) => [field.type, field.autocomplete])"
        assert await page.evaluate(fields) == [["password", "current-password"], ["text", "username"]]


async def test_the_key_is_in_memory_only_and_a_reload_asks_again(console: Console) -> None:
    async with console("/sessions") as page:
        kept = "JSON.stringify([{...localStorage}, {...sessionStorage}, document.cookie, location.href, history.state])"
        assert API_KEY not in await page.evaluate(kept)
        assert await page.evaluate(f"!document.documentElement.outerHTML.includes({API_KEY!r})")
        assert (await page.call("Network.getCookies"))["cookies"] == []
        await page.go(await page.evaluate("location.href"))
        await page.when("document.getElementById('api-key') !== null")


async def test_a_deep_link_leads_on_after_the_sign_in(console: Console) -> None:
    async with console("/usage?by=key") as page:
        await page.when("document.querySelector('h1')?.innerText === 'Usage'")
        assert await page.evaluate("document.querySelector('input[value=key]').checked")


async def test_pages_that_a_key_may_not_see_are_not_offered(console: Console, new_key: NewKey) -> None:
    reader = await new_key("default", scopes=["read"])
    async with console("/sessions", key=reader["X-API-Key"]) as page:
        offered = await page.evaluate(MENU)
        assert {"Sessions", "Inbox", "Usage"} <= set(offered)
        assert {"New session", "Fleet", "Tenants", "Keys", "Audit"} & set(offered) == set()
        assert await page.evaluate("[...document.querySelectorAll('a')].every((a) => a.innerText !== 'New session')")
        await visit(page, "/fleet")
        await page.when(says("This key may not see that page"))
    writer = await new_key("default", limits=Limits(runs_per_minute=7))
    async with console("/key", key=writer["X-API-Key"]) as page:
        assert "New session" in await page.evaluate(MENU)
        await page.when(says("Prompts per minute") + " || " + says("Runs per minute"))
        await page.when(says("of 7"))
    async with console("/sessions") as page:
        assert {"Fleet", "Tenants", "Keys", "Audit"} <= set(await page.evaluate(MENU))


async def test_who_signs_out_is_forgotten(console: Console) -> None:
    async with console("/sessions") as page:
        await page.press("Sign out")
        await page.when("document.getElementById('api-key')?.value === ''")
        asked = len(page.requests)
        await sign_in(page)
        assert page.requests[asked]["url"].endswith("/whoami")


async def test_a_key_that_is_revoked_leads_to_the_sign_in_and_says_why(
    console: Console, new_key: NewKey, balancer: Balancer
) -> None:
    key = (await new_key("default"))["X-API-Key"]
    admin = balancer.instances[0]
    async with console("/sessions", key=key, refused=("401",)) as page:
        facts = (await admin.client.get("/api/v1/whoami", headers={"X-API-Key": key})).json()
        assert (await admin.post(f"/admin/keys/{facts['key_id']}/revoke")).status_code == 200
        await page.when("document.getElementById('api-key') !== null")
        await page.when(says("invalid_api_key"))


async def test_the_theme_is_as_the_system_has_it_until_somebody_chooses(console: Console) -> None:
    async with console("/sessions") as page:
        shade = "getComputedStyle(document.body).backgroundColor"
        await page.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": "dark"}])
        dark = await page.evaluate(shade)
        await page.press("Theme: as the system")
        await page.when("document.documentElement.dataset.theme === 'light'")
        light = await page.evaluate(shade)
        assert light != dark
        await page.go(await page.evaluate("location.href"))
        await page.when("document.documentElement.dataset.theme === 'light'")
        assert await page.evaluate(shade) == light
        await sign_in(page)
        await page.press("Theme: light")
        await page.when("document.documentElement.dataset.theme === 'dark'")
        await page.press("Theme: dark")
        await page.when("document.documentElement.dataset.theme === undefined")
