"""`GET /`: what a person sees who opens the address in a browser."""

from litestar import MediaType, Response, get
from litestar.handlers import HTTPRouteHandler

from gateway.api.guards import guard
from gateway.pipeline import Pipeline

_PAGE = """<!doctype html>
<html lang="en">
<meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>Headgate</title>
<style>
 body { font: 16px/1.5 system-ui, sans-serif; max-width: 46rem; margin: 3rem auto; padding: 0 1rem }
 pre { background: #f4f4f4; padding: 1rem; overflow: auto } code { font-size: 14px }
 @media (prefers-color-scheme: dark) { body { background: #111; color: #ddd }
   pre { background: #222 } a { color: #8bf } }
</style>
<h1>Headgate</h1>
<p>Chooses the model, keeps the answers, knows the cost. With an OpenAI SDK:</p>
<pre><code>from openai import OpenAI
client = OpenAI(base_url="URL/v1", api_key="unused")
answer = client.chat.completions.create(
    model="auto", messages=[{"role": "user", "content": "What is 2 + 3?"}])
print(answer.choices[0].message.content)</code></pre>
<p><a href="/v1/models">models</a> · <a href="/health">health</a> ·
<a href="/reports/costs?group_by=backend">costs</a> · <a href="/admin/policies">policies</a> ·
<a href="/metrics">metrics</a> · <a href="/schema">API</a></p>
<script>
 for (const code of document.querySelectorAll("code"))
   code.textContent = code.textContent.replace("URL", location.origin);
</script>
</html>
"""


def landing_routes(pipeline: Pipeline) -> list[HTTPRouteHandler]:
    """/."""

    @get("/", guards=[guard(pipeline)], media_type=MediaType.HTML, summary="A page for people")
    async def landing() -> Response[str]:
        return Response(_PAGE, media_type=MediaType.HTML)

    return [landing]
