// Writes the reference part of docs/policies.md anew. A test holds that it is what the schemas say.
import { readFileSync, writeFileSync } from 'node:fs';
import { readSchemas, renderReference, withReference } from './lib/policy-reference.mjs';

const file = new URL('../docs/policies.md', import.meta.url);
writeFileSync(file, withReference(readFileSync(file, 'utf8'), renderReference(readSchemas())));
