"""image_generation: pictures that a model asks for are made by a server of images that speaks OpenAI's API, or by a
tool of an MCP server. The model sees them, if it sees pictures at all, and can have the last one changed."""

from __future__ import annotations

from api.turns.hosted.mcp_server import serves
from api.turns.hosted.stand_in import StandIn
from api.turns.hosted.tool import HostedTool
from api.turns.turn import Turn
from backends.image_server import ImageFailed, MadeImage
from backends.mcp.server import ServerFailed
from core.config import ImageServerConfig
from core.json import Json
from core.state import AppState
from requests.hosted_calls import IMAGE
from requests.image_generation import KIND, ImageEntry, image_entry, image_tool, last_picture
from requests.router_tools import protocol_error, with_error, with_output
from requests.stand_ins import image_of, taken_of
from requests.tools import Item

MADE = "The picture is made, and the user is shown it."


class ImageGeneration:
    """That of one turn (`HostedRunner`)."""

    heeded: frozenset[str] = frozenset()

    def __init__(self, state: AppState, turn: Turn, entry: ImageEntry) -> None:
        self._entry = entry
        self.ignored = entry.ignored
        self._turn = turn
        self._images = state.image_server
        self._server = state.config.tools.image_generation
        self._asked = entry.asked
        if isinstance(self._server, ImageServerConfig) and self._server.model:
            # Clients ask for a model of OpenAI's by name, which the server here need not know.
            if entry.asked.get("model", self._server.model) != self._server.model:
                self.ignored |= {"tools.model"}
            self._asked = entry.asked | {"model": self._server.model}
        self._tool = StandIn(state, turn.owner, KIND, self._server) if isinstance(self._server, str) else None
        self.tools = [image_tool(may_edit=entry.may_edit and self._tool is None)]

    def begin(self, turn: Turn) -> None:
        """Nothing is to be done."""

    async def run(self, call: Item) -> Item:
        """The call with its picture."""
        prompt = call["revised_prompt"]
        if not prompt.strip():
            return with_error(call, protocol_error("There is nothing to be seen: 'prompt' is a text."))
        try:
            image = await (self._drawn(call, prompt) if self._tool is None else self._given(self._tool, prompt))
        except (ImageFailed, ServerFailed) as error:
            return with_error(call, error.error)
        return with_output({**call, **self._entry.shown, **image.facts, "result": image.data}, MADE)

    async def _drawn(self, call: Item, prompt: str) -> MadeImage:
        """By a server of images."""
        assert isinstance(self._server, ImageServerConfig)
        builder = self._turn.builder
        picture = None
        if call["action"] == "edit":
            picture = last_picture([*self._turn.request.items, *builder.whole_items])

        def emit(image: MadeImage) -> None:
            where = next((place for place, item in builder.take_handed().items() if item["id"] == call["id"]), None)
            if where is not None:
                partial = {"partial_image_b64": image.data, "partial_image_index": image.place, **image.facts}
                name = f"response.{IMAGE}.partial_image"
                self._turn.emit([builder.event(name, item_id=call["id"], output_index=where, **partial)])

        is_watched = self._entry.partial_images and builder.emission.makes_events
        asked = {"prompt": prompt, **self._asked}
        return await self._images.make(self._server, asked, picture, on_partial=emit if is_watched else None)

    async def _given(self, tool: StandIn, prompt: str) -> MadeImage:
        """By a tool of an MCP server."""
        answer = await tool.ask(prompt, lambda tool: taken_of(tool, self._asked))
        image = image_of(answer.blocks)
        if answer.has_failed or image is None:
            raise ServerFailed(protocol_error("The tool of its server has answered without a picture."))
        kind, data = image
        return MadeImage(data, {"output_format": kind})

    def close(self) -> None:
        """Nothing more is called."""
        if self._tool is not None:
            self._tool.close()


def _is_set_up(state: AppState, owner: str) -> bool:
    setting = state.config.tools.image_generation
    return isinstance(setting, ImageServerConfig) or serves(state, setting, owner)


def _runner(state: AppState, turn: Turn, where: str, tool: Json) -> ImageGeneration:
    return ImageGeneration(state, turn, image_entry(tool, where))


IMAGE_GENERATION = HostedTool(call=IMAGE, types=(KIND,), is_set_up=_is_set_up, runner=_runner)
