"""The classifier as MLflow loads it: from this source text, so that no pickle is involved."""

from __future__ import annotations

from typing import Any

import mlflow
import pandas as pd

from pipeline.gram.serving import Classifier


class Model(mlflow.pyfunc.PythonModel):  # type: ignore[name-defined]  # imported when used
    def load_context(self, context) -> None:
        self.classifier = Classifier(context.artifacts["start"], context.artifacts["backbone"])

    def predict(
        self, context, model_input: pd.DataFrame, params: dict[str, Any] | None = None
    ) -> pd.DataFrame:
        params = params or {}
        found = self.classifier.predict(
            list(model_input["picture"]),
            [str(name) for name in params.get("names", [])],
            params.get("template", "a photo of a {}."),
        )
        return pd.DataFrame(found, columns=["label", "probability"])


mlflow.models.set_model(Model())
