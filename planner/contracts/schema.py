"""The Arrow schemas of a dataset version: `training.parquet` and `recipes.parquet`, column for column the contract."""

from __future__ import annotations

import pyarrow as pa

TIME = pa.timestamp("us", tz="UTC")
TEXTS = pa.list_(pa.string())
MEAL = pa.struct([("day", pa.string()), ("recipe_id", pa.string()), ("servings", pa.int32())])
PLAN = pa.struct([("meals", pa.list_(MEAL))])
ITEM = pa.struct([("name", pa.string()), ("quantity", pa.float64()), ("unit", pa.string())])
EDIT = pa.struct(
    [
        ("type", pa.string()),
        ("day", pa.string()),
        ("from", pa.string()),
        ("to", pa.string()),
        ("recipe_id", pa.string()),
        ("servings", pa.int32()),
    ]
)
HOUSEHOLD = pa.struct([("id", pa.string()), ("size", pa.int32()), ("preferences", TEXTS), ("restrictions", TEXTS)])
CONSTRAINTS = pa.struct([("budget", pa.float64()), ("max_prep_time", pa.int32()), ("excluded_ingredients", TEXTS)])
INPUT = pa.struct(
    [
        ("household", HOUSEHOLD),
        ("pantry", pa.struct([("items", pa.list_(ITEM))])),
        ("constraints", CONSTRAINTS),
        ("workflow_type", pa.string()),
        ("mode", pa.string()),
        ("previous_plan", PLAN),
    ]
)
TARGET = pa.struct([("accepted_plan", PLAN), ("user_edits", pa.list_(EDIT))])
METADATA = pa.struct(
    [
        ("timestamp", TIME),
        ("generated_at", TIME),
        ("policy_version_id", pa.string()),
        ("event_id", pa.string()),
        ("plan_id", pa.string()),
        ("region", pa.string()),
        ("generated_plan", PLAN),
    ]
)
TRAINING_SCHEMA = pa.schema([("input", INPUT), ("target", TARGET), ("metadata", METADATA), ("split", pa.string())])
RECIPES_SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("title", pa.string()),
        ("ingredients", pa.list_(ITEM)),
        ("prep_time", pa.int32()),
        ("cost_per_serving", pa.float64()),
        ("tags", TEXTS),
        ("allergens", TEXTS),
        ("active", pa.bool_()),
    ]
)
