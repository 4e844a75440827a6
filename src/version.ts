import { readFileSync } from 'node:fs';
import path from 'node:path';

/** Release of the broker, from the package that it was installed as. */
export const version: string = (
  JSON.parse(readFileSync(path.join(import.meta.dirname, '..', 'package.json'), 'utf8')) as { version: string }
).version;
