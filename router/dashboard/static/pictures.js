// Pictures from a file, a paste, a drop or an example → what is sent and what is drawn.

const KINDS = "image/png,image/jpeg,image/webp,image/gif,image/bmp";

export class PictureError extends Error {
  code = "not_a_picture";
}

export const accepted = KINDS;

/** A picture as `{name, url, bitmap}`. The name is only ever shown. Throws PictureError. */
export async function open(blob, name, mostBytes) {
  if (blob.size > mostBytes) {
    throw new PictureError(`“${name}” is larger than the ${Math.floor(mostBytes / 2 ** 20)} MiB that this service takes.`);
  }
  let bitmap;
  try {
    bitmap = await createImageBitmap(blob);
  } catch {
    throw new PictureError(`“${name}” is not a picture that this browser can show.`);
  }
  return { name, bitmap, url: await dataUrl(blob) };
}

function dataUrl(blob) {
  return new Promise((resolve, reject) => {
    const reader = new FileReader();
    reader.onload = () => resolve(reader.result);
    reader.onerror = () => reject(new PictureError("The picture could not be read."));
    reader.readAsDataURL(blob);
  });
}

/** The first picture of a paste or a drop, if there is one. */
export function pictureOf(transfer) {
  return [...(transfer?.files ?? [])].find((file) => file.type.startsWith("image/")) ?? null;
}
