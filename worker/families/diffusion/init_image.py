"""The image that image-to-image starts from: of a dataset, of another job, or in the request itself."""

from __future__ import annotations

import base64
import binascii

from PIL import Image

from calotype.datasets.images import check_image, open_rgb
from calotype.errors import JobFailed
from calotype.init_images import ArtifactRef, DatasetImageRef, InlineImage, parse_init_image
from worker.context import JobContext
from worker.families.diffusion.data import fit


def open_init_image(ctx: JobContext, reference: str, width: int, height: int) -> Image.Image:
    """The image behind a reference, RGB, fitted to `width` × `height` by the rule of `data.fit`.

    Raises JobFailed `bad_input` or `dataset_unavailable`, and Invalid where the bytes are no image or one above the
    pixel limit.
    """
    data = _read(ctx, parse_init_image(reference))
    check_image("init_image", data, ctx.settings.max_pixels)
    return fit(open_rgb(data), width, height)


def _read(ctx: JobContext, reference: DatasetImageRef | ArtifactRef | InlineImage) -> bytes:
    if isinstance(reference, ArtifactRef):
        return ctx.read_artifact(reference.job_id, reference.name)
    if isinstance(reference, InlineImage):
        try:
            return base64.b64decode(reference.url.partition(",")[2], validate=True)
        except binascii.Error as error:
            raise _bad(f"The data: URL is not valid base64: {error}.") from error
    with ctx.dataset(reference.dataset) as archive:
        try:
            return archive.read(reference.file_name)
        except KeyError as error:
            raise _bad(f"The dataset {reference.dataset} has no image {reference.file_name}.") from error


def _bad(detail: str) -> JobFailed:
    return JobFailed("bad_input", "No such init_image", detail, retryable=False)
