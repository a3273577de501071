"""What browsers make of the demo's headers: the page works under them, and other sites get nothing."""

from __future__ import annotations

import http.server
import threading

import pytest

pytestmark = pytest.mark.browser

ABROAD = """<iframe id=frame src="{address}"></iframe><script>
async function attack() {{
    const form = new FormData();
    form.append('files', new Blob(['x']), 'a.png');
    const asked = JSON.stringify({{fn_index: 0, data: [], session_hash: 'abc'}});
    const calls = [
        fetch('{address}gradio_api/upload', {{method: 'POST', body: form, mode: 'no-cors'}}),
        fetch('{address}gradio_api/upload', {{method: 'POST', body: form}}),
        fetch('{address}gradio_api/queue/join', {{method: 'POST', body: asked}}),
        fetch('{address}config', {{credentials: 'include'}}),
    ];
    const ends = await Promise.allSettled(calls);
    return ends.map(end => end.status == 'fulfilled' ? end.value.status : end.reason.name);
}}
</script>"""


@pytest.fixture
def other_site(pictures):
    """A page of another site that shows the demo in a frame and can call it."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(200)
            self.send_header("content-type", "text/html")
            self.end_headers()
            self.wfile.write(ABROAD.format(address=pictures).encode())

        def log_message(self, *_):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://localhost:{server.server_address[1]}/"
    server.shutdown()


def test_the_page_keeps_to_its_policy(pictures, visit):
    visitor, said = visit(pictures), []
    visitor.page.on("console", lambda message: said.append(message.text))
    visitor.page.reload()
    visitor.settled()
    for tab in visitor.page.get_by_role("tab").all():
        if tab.is_visible():
            tab.click()
    visitor.page.wait_for_timeout(500)
    assert not [text for text in said if "Content Security Policy" in text or "Permissions" in text]


def test_another_site_can_neither_show_nor_call_it(browser, other_site):
    context = browser.new_context()
    page, refused = context.new_page(), []
    page.on("response", lambda response: refused.append(response.status) if "gradio_api" in response.url else None)
    page.goto(other_site)
    ends = page.evaluate("attack()")
    assert set(ends) <= {"TypeError", 403}
    assert set(refused) <= {403}
    assert page.frames[-1].url.startswith("chrome-error:")
    context.close()
