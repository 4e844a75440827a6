import { createPublicKey, hash } from 'node:crypto';
import type { JsonWebKeyInput, KeyObject } from 'node:crypto';
import { compactVerify, errors } from 'jose';
import { isObject } from '../token/strict-json.ts';

/** RFC 7518 §3.3 to §3.5: all that a JWT-SVID may use (JWT-SVID §2.1). Nothing symmetric, and never `none`. */
export const svidAlgorithms = [
  'RS256',
  'RS384',
  'RS512',
  'ES256',
  'ES384',
  'ES512',
  'PS256',
  'PS384',
  'PS512',
] as const;
/** RFC 8037 and RFC 9864 names for the same signature. */
export const edwardsAlgorithms = ['EdDSA', 'Ed25519'] as const;

export interface VerificationKey {
  kid: string | undefined;
  /** What the key may verify: follows from its type, its curve and, if it says so, its `alg`. */
  algorithms: ReadonlySet<string>;
  key: KeyObject;
}

/** Keys that replace, as one, whatever was trusted before. */
export interface KeySet {
  keys: readonly VerificationKey[];
  /** Same for the same keys, whatever their order. */
  fingerprint: string;
  /** Members that were left out, and why. For operators. */
  ignored: readonly string[];
  sequence?: bigint;
  refreshHint?: number;
}

const maxKeys = 512;
/** A token without `kid` may be tried against this many keys: each try costs a signature check. */
const maxCandidates = 4;

const ecAlgorithms: Record<string, string[]> = { prime256v1: ['ES256'], secp384r1: ['ES384'], secp521r1: ['ES512'] };
const rsaAlgorithms = svidAlgorithms.filter((name) => !name.startsWith('ES'));

/** `wanted` says for each member why it is not for us, or nothing. Unknown kinds of keys are left out (RFC 7517 §5). */
export function importKeys(members: unknown, wanted: (jwk: Record<string, unknown>) => string | undefined): KeySet {
  if (!Array.isArray(members)) throw new Error('has no `keys` array');
  if (members.length > maxKeys) throw new Error(`has more than ${maxKeys} keys`);
  const keys: VerificationKey[] = [];
  const ignored: string[] = [];
  for (const [index, jwk] of members.entries()) {
    const imported = isObject(jwk) ? (wanted(jwk) ?? importKey(jwk)) : 'not an object';
    if (typeof imported === 'string') ignored.push(`keys[${index}]: ${imported}`);
    else keys.push(imported);
  }
  return { keys, ignored, fingerprint: fingerprint(keys) };
}

function importKey(jwk: Record<string, unknown>): VerificationKey | string {
  const { kid, alg, key_ops: operations } = jwk;
  if (kid !== undefined && typeof kid !== 'string') return '`kid` is not a string';
  if (jwk['d'] !== undefined || jwk['k'] !== undefined) return 'it is a secret, which must never be published';
  if (operations !== undefined && !(Array.isArray(operations) && operations.includes('verify')))
    return 'not for verifying';
  let key: KeyObject;
  try {
    // Only the members that make the key: `use: "jwt-svid"` is unknown to every general library.
    const { kty, crv, x, y, n, e } = jwk;
    key = createPublicKey({ key: { kty, crv, x, y, n, e } as JsonWebKeyInput['key'], format: 'jwk' });
  } catch {
    return 'not a public key of a known type';
  }
  const fitting = algorithmsOf(key);
  if (typeof fitting === 'string') return fitting;
  const algorithms = new Set(alg === undefined ? fitting : fitting.filter((name) => name === alg));
  if (algorithms.size === 0) return 'its `alg` does not fit its type';
  return { kid, algorithms, key };
}

function algorithmsOf(key: KeyObject): readonly string[] | string {
  switch (key.asymmetricKeyType) {
    case 'rsa': {
      const bits = key.asymmetricKeyDetails?.modulusLength ?? 0;
      // RFC 7518 §3.3 sets the lower bound; the upper one keeps a hostile key from being expensive.
      return bits >= 2048 && bits <= 8192 ? rsaAlgorithms : `RSA of ${bits} bits (2048 to 8192 are accepted)`;
    }
    case 'ec':
      return ecAlgorithms[key.asymmetricKeyDetails?.namedCurve ?? ''] ?? 'its curve is not accepted';
    case 'ed25519':
      return edwardsAlgorithms;
    default:
      return 'its type is not accepted';
  }
}

function fingerprint(keys: readonly VerificationKey[]): string {
  const parts = keys.map(({ kid, algorithms, key }) =>
    JSON.stringify([kid, [...algorithms], key.export({ format: 'der', type: 'spki' }).toString('base64')]),
  );
  return hash('sha256', parts.sort().join('\n'), 'base64url');
}

/**
 * The keys that may have signed. A `kid` that is absent is allowed (JWT-SVID §2.2, RFC 7515 §4.1.4): every key of the
 * set is equally authoritative, so that trying those of a fitting type grants nothing, and they are few.
 */
export function candidates(keys: readonly VerificationKey[], alg: string, kid: string | undefined): VerificationKey[] {
  return keys
    .filter((key) => key.algorithms.has(alg) && (kid === undefined || key.kid === kid))
    .slice(0, maxCandidates);
}

export async function verifiesWithAny(token: string, alg: string, keys: readonly VerificationKey[]): Promise<boolean> {
  for (const { key } of keys) {
    try {
      await compactVerify(token, key, { algorithms: [alg] });
      return true;
    } catch (error) {
      if (!(error instanceof errors.JOSEError)) throw error;
    }
  }
  return false;
}
