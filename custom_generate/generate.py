"""Big Little Decoder for `model.generate(..., custom_generate="<this checkout>")`.

    large.generate(**inputs, custom_generate="path/to/checkout", trust_remote_code=True,
                   small_model=small, fallback_threshold=0.6, rollback_threshold=2.0)

transformers copies this file elsewhere and calls `generate` with all that its own `generate` was
given.
"""

from typing import Any

try:
    from bild import BiLDConfig, BildError, bild_generate
except ImportError as error:
    # Said here, for the name of this import belongs to another project on the package index.
    raise ImportError(
        "this decoding method needs its package: run `pip install -e .` in its checkout"
    ) from error


def generate(model: Any, small_model: Any = None, bild_config: Any = None, **kwargs: Any) -> Any:
    """What `model.generate(..., custom_generate=bild_generate)` returns; `model` is the large one.

    Args:
        small_model: the model that drafts; it must share the large one's vocabulary.
        bild_config: thresholds and variant; or give the fields of `BiLDConfig` as keywords.
        **kwargs: as of transformers' `generate`.

    Raises:
        BildError: as `bild_generate`; a configuration and its fields.
    """
    fields = {name: kwargs.pop(name) for name in BiLDConfig.__dataclass_fields__ if name in kwargs}
    if fields and bild_config is not None:
        raise BildError(f"give bild_config= or {next(iter(fields))}=, not both")
    config = BiLDConfig(**fields) if bild_config is None else bild_config
    given = {name: value for name, value in kwargs.items() if value is not None}
    return model.generate(
        custom_generate=bild_generate, small_model=small_model, bild_config=config, **given
    )
