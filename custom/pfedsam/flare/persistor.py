"""The server's copy of the shared part: first value, each round's value, best value; safetensors only."""

from pathlib import Path

from nvflare.apis.event_type import EventType
from nvflare.apis.fl_context import FLContext
from nvflare.app_common.abstract.model import ModelLearnable, ModelLearnableKey, make_model_learnable
from nvflare.app_common.abstract.model_persistor import ModelPersistor
from nvflare.app_common.app_constant import AppConstants
from nvflare.app_common.app_event_type import AppEventType
from nvflare.app_opt.pt.decomposers import TensorDecomposer
from nvflare.fuel.utils import fobs

from pfedsam import log
from pfedsam.errors import UserFault
from pfedsam.exchange.files import pack, write_atomic
from pfedsam.flare.context import STAMP, job_config, run_dir, setting
from pfedsam.report.cards import shared_card
from pfedsam.site import initial_shared


class SharedPersistor(ModelPersistor):  # type: ignore[misc]
    """Keeps the shared part alone: the server never holds an expert, nor the frozen base after the start."""

    def __init__(self) -> None:
        super().__init__()
        self.base = ""

    def handle_event(self, event_type: str, fl_ctx: FLContext) -> None:
        """Register the tensor codec at the start; keep the best model when FLARE's selector names one."""
        if event_type == EventType.START_RUN:
            fobs.register(TensorDecomposer)
        elif event_type == AppEventType.GLOBAL_BEST_MODEL_AVAILABLE:
            self._write(fl_ctx.get_prop(AppConstants.GLOBAL_MODEL), fl_ctx, "shared.best")

    def load_model(self, fl_ctx: FLContext) -> ModelLearnable:
        """The first shared tensors, drawn from the job's seed on the pretrained weights."""
        try:
            config = job_config(fl_ctx)
            weights = setting(fl_ctx, "weights")
            shared, self.base = initial_shared(config, Path(weights) if weights else None)
        except UserFault as fault:
            log.error("[server] %s", fault)
            self.system_panic(str(fault), fl_ctx)
            return make_model_learnable({}, {})
        return make_model_learnable(shared, {STAMP: {"config": config.digest(), "base": self.base}})

    def save_model(self, model: ModelLearnable, fl_ctx: FLContext) -> None:
        """Write the round's shared tensors and their card, atomically."""
        self._write(model, fl_ctx, "shared")

    def _write(self, model: ModelLearnable, fl_ctx: FLContext, name: str) -> None:
        round_ = str(fl_ctx.get_prop(AppConstants.CURRENT_ROUND))
        config = job_config(fl_ctx)
        facts = {"round": round_, "config": config.digest(), "base": self.base}
        folder = run_dir(fl_ctx) / "models"
        write_atomic(folder / f"{name}.safetensors", pack(model[ModelLearnableKey.WEIGHTS], facts))
        write_atomic(folder / f"{name}.md", shared_card(config, facts).encode())
