"""The server's model as a message, in the number format that the job states."""

from nvflare.apis.fl_context import FLContext
from nvflare.apis.shareable import Shareable
from nvflare.app_common.abstract.model import ModelLearnable, model_learnable_to_dxo
from nvflare.app_common.shareablegenerators.full_model_shareable_generator import FullModelShareableGenerator

from pfedsam.exchange.codec import encode
from pfedsam.flare.context import job_config


class SharedGenerator(FullModelShareableGenerator):  # type: ignore[misc]
    """FLARE's generator; what goes down is encoded once a round, the server's own copy stays float32."""

    def learnable_to_shareable(self, model_learnable: ModelLearnable, fl_ctx: FLContext) -> Shareable:
        """The task data of a round, or of the final test."""
        message = model_learnable_to_dxo(model_learnable)
        message.data = encode(message.data, job_config(fl_ctx).wire.down)
        return message.to_shareable()
