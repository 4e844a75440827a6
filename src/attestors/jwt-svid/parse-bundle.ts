import type { KeySet } from '../keys/verification-key.ts';
import { importKeys } from '../keys/verification-key.ts';
import { decode, parseStrictObject } from '../token/strict-json.ts';

/** A bundle of one trust domain holds its X.509 roots as well. */
export const maxBundleBytes = 1_048_576;

/**
 * Reads a SPIFFE bundle (SPIFFE Trust Domain and Bundle §4). Only its JWT-SVID keys count: an X.509 root must never
 * verify a token (§4.2.2). Throws with a sentence for the operator.
 */
export function parseBundle(bytes: Uint8Array): KeySet {
  if (bytes.length > maxBundleBytes) throw new Error(`is larger than ${maxBundleBytes} bytes`);
  const bundle = parseStrictObject(bytes);
  let x509 = 0;
  const set = importKeys(bundle['keys'], ({ use, kid }) => {
    if (use === 'x509-svid') x509 += 1;
    if (use !== 'jwt-svid') return use === 'x509-svid' ? x509Key : '`use` is not jwt-svid';
    // JWT-SVID, "Representation in the SPIFFE Bundle": `kid` must be set.
    return typeof kid === 'string' && kid !== '' ? undefined : 'it has no `kid`';
  });
  const sequence = readSequence(bundle['spiffe_sequence'], bytes);
  const hint = readHint(bundle['spiffe_refresh_hint']);
  return {
    keys: set.keys,
    fingerprint: set.fingerprint,
    // X.509 roots belong there; only what an operator could want to mend is worth telling.
    ignored: x509 === 0 ? set.ignored : set.ignored.filter((why) => !why.endsWith(x509Key)),
    ...(sequence === undefined ? {} : { sequence }),
    ...(hint === undefined ? {} : { refreshHint: hint }),
  };
}

const x509Key = 'an X.509 root';

/** §4.1.1 asks for 64 bits of precision, which a JavaScript number does not have: hence the digits as written. */
function readSequence(value: unknown, bytes: Uint8Array): bigint | undefined {
  if (value === undefined) return undefined;
  const digits = typeof value === 'number' ? sourceOfTopLevel(decode(bytes), 'spiffe_sequence') : undefined;
  if (digits === undefined || !/^\d{1,20}$/.test(digits)) throw new Error('`spiffe_sequence` is not a whole number');
  return BigInt(digits);
}

/** §4.1.2: seconds. A hint that makes no sense is no hint. */
function readHint(value: unknown): number | undefined {
  return typeof value === 'number' && value > 0 ? value * 1000 : undefined;
}

type SourceReviver = (this: unknown, key: string, value: unknown, context: { source?: string }) => unknown;

function sourceOfTopLevel(text: string, member: string): string | undefined {
  const seen: { holder: unknown; source: string | undefined }[] = [];
  const reviver: SourceReviver = function (key, value, { source }) {
    if (key === member) seen.push({ holder: this, source });
    return value;
  };
  const root: unknown = JSON.parse(text, reviver as (this: unknown, key: string, value: unknown) => unknown);
  return seen.find(({ holder }) => holder === root)?.source;
}
