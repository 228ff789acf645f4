"""The `openai` package, unmodified, against `engine serve`: run by hand, with the package and a server at hand.

    pip install openai
    cargo run --release --features serve -- serve --port 8080 --queue 4 --max-body 4
    python tests/serve/openai_client.py http://127.0.0.1:8080

Generations, edits, variations, streams and the classes of errors, then a script as people wrote them for DALL-E 2. Flags of the
server above are those that the checks of full queues and large bodies expect.
"""

import base64
import concurrent.futures
import io
import struct
import sys
import time
import urllib.request
import zlib

import openai

ADDRESS = sys.argv[1] if len(sys.argv) > 1 else "http://127.0.0.1:8080"
PNG = b"\x89PNG\r\n\x1a\n"


def png(side, pixel, alpha=False):
    """A square PNG of a function of column and row."""
    rows = b"".join(b"\0" + b"".join(bytes(pixel(x, y)) for x in range(side)) for y in range(side))

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", side, side, 8, 6 if alpha else 2, 0, 0, 0)
    return PNG + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def size(data):
    assert data.startswith(PNG), data[:20]
    return struct.unpack(">II", data[16:24])


def fetch(url):
    with urllib.request.urlopen(url) as answer:
        return answer.read()


def refused(kind, call, **what):
    try:
        call(**what)
    except kind as error:
        assert set(error.body) == {"message", "type", "param", "code"}, error.body
        assert error.request_id, "an id"
        print(f"  {kind.__name__}: {error.body['message']}")
        return error
    raise AssertionError(f"{kind.__name__} was expected")


def main():
    client = openai.OpenAI(base_url=ADDRESS + "/v1", api_key="any", max_retries=0)
    images = client.images
    print("models:", [model.id for model in client.models.list()])

    print("generations")
    answer = images.generate(prompt="a red apple", n=2, size="256x256")
    assert [size(fetch(picture.url)) for picture in answer.data] == [(256, 256)] * 2
    answer = images.generate(prompt="a lion", response_format="b64_json", user="me", extra_body={"seed": 7, "steps": 8})
    again = images.generate(prompt="a lion", response_format="b64_json", extra_body={"seed": 7, "steps": 8})
    assert answer.data[0].b64_json == again.data[0].b64_json
    assert size(base64.b64decode(answer.data[0].b64_json))

    print("variations and edits")
    given = base64.b64decode(answer.data[0].b64_json)
    side = size(given)[0]
    varied = images.create_variation(image=io.BytesIO(given), n=2, size="512x512")
    assert [size(fetch(picture.url)) for picture in varied.data] == [(512, 512)] * 2
    mask = png(side, lambda x, y: (0, 0, 0, 0 if side // 4 < x < side // 2 else 255), alpha=True)
    edited = images.edit(image=("a.png", given), mask=("mask.png", mask), prompt="a frog", response_format="b64_json")
    assert size(base64.b64decode(edited.data[0].b64_json)) == (side, side)
    edited = images.edit(image=[("a.png", given)], prompt="a green lion", extra_body={"strength": "0.6"})
    assert size(fetch(edited.data[0].url))

    print("streams")
    events = list(images.generate(prompt="a fox", stream=True, partial_images=3))
    kinds = [event.type for event in events]
    assert kinds == ["image_generation.partial_image"] * 3 + ["image_generation.completed"], kinds
    assert [event.partial_image_index for event in events[:3]] == [0, 1, 2]
    assert size(base64.b64decode(events[-1].b64_json)) and events[-1].usage.total_tokens == 0
    events = list(images.edit(image=("a.png", given), mask=("m.png", mask), prompt="a cat", stream=True, partial_images=1))
    assert [event.type for event in events] == ["image_edit.partial_image", "image_edit.completed"]

    print("embeddings and labels")
    engine = openai.OpenAI(base_url=ADDRESS + "/v1/engine", api_key="any")
    found = engine.embeddings.create(model="dall-e-2", input=["a lion", "a dog"])
    assert len(found.data) == 2 and len(found.data[0].embedding) > 16

    print("errors")
    refused(openai.BadRequestError, images.generate, prompt="", n=1)
    refused(openai.BadRequestError, images.generate, prompt="a", n=11)
    refused(openai.BadRequestError, images.create_variation, image=b"no picture")
    refused(openai.NotFoundError, images.generate, prompt="a", model="dall-e-9")
    refused(openai.UnprocessableEntityError, images.generate, prompt="a", extra_body={"noise_level": 3})
    large = refused(openai.APIStatusError, images.create_variation, image=PNG + bytes(5 << 20))
    assert large.status_code == 413

    print("a full queue, and a client that tries again as it is told")
    patient = client.with_options(max_retries=8)
    began = time.time()
    with concurrent.futures.ThreadPoolExecutor(24) as pool:
        def many(who):
            return pool.map(lambda k: attempt(who, k), range(24))

        def attempt(who, k):
            try:
                return len(who.images.generate(prompt=f"a {k}", n=4, response_format="b64_json").data)
            except openai.RateLimitError as error:
                assert int(error.response.headers["retry-after"]) >= 1
                return 429

        once = list(many(client))
        assert set(once) == {4, 429}, once
        assert set(many(patient)) == {4}
    print(f"  {once.count(429)} of 24 were told to wait, and all were answered at last, in {time.time() - began:.1f} s")

    print("a script for DALL-E 2")
    openai.base_url, openai.api_key = ADDRESS + "/v1/", "any"
    response = openai.images.generate(model="dall-e-2", prompt="a white cat", size="1024x1024", quality="standard", n=1)
    assert size(fetch(response.data[0].url)) == (1024, 1024)
    print("all is well")


main()
