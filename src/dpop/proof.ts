import { createHash } from 'node:crypto';
import { calculateJwkThumbprint, decodeProtectedHeader, EmbeddedJWK, errors, jwtVerify } from 'jose';
import type { JWK } from 'jose';
import type { Instant, Millis } from '../domain/time.ts';

/** Asymmetric and of today (RFC 9449 §4.3: never `none`, never symmetric). */
const algorithms = ['ES256', 'ES384', 'ES512', 'EdDSA', 'Ed25519', 'PS256', 'PS384', 'PS512', 'RS256'];
const headerMembers = new Set(['typ', 'alg', 'jwk']);
/** RFC 7518 §6.2.2, §6.3.2, §6.4.1 and RFC 8037 §2: what only the owner of a key has. */
const privateMembers = ['d', 'p', 'q', 'dp', 'dq', 'qi', 'oth', 'k'];
const maxLength = 4_096;
const maxJti = 256;
/** How far `iat` may be from now, either way: a proof is made for one request, and clocks differ. */
export const proofWindow: Millis = 60_000;

export interface ExpectedProof {
  /** HTTP method of the request that it is for. */
  method: string;
  /** Its URL; query and fragment do not count. */
  url: string;
  now: Instant;
  /** Access token that comes with it: `ath` has to be its hash. Without one, `ath` is not looked at. */
  accessToken?: string | undefined;
  /** A nonce that was asked for. */
  nonce?: string | undefined;
}

export interface CheckedProof {
  /** RFC 7638 thumbprint of the key. */
  jkt: string;
  jti: string;
  /** From then on it is too old anyway: no replay has to be remembered for longer. */
  until: Instant;
}

/** What is wrong with a proof, and what to send instead. Never holds the proof. */
export class ProofFault extends Error {
  override readonly name = 'ProofFault';
}

/** Checks a DPoP proof as RFC 9449 §4.3 says, all but whether it was seen before. Throws ProofFault. */
export async function checkProof(proof: string, expected: ExpectedProof): Promise<CheckedProof> {
  const jwk = checkHeader(proof);
  let payload: Record<string, unknown>;
  try {
    ({ payload } = await jwtVerify(proof, EmbeddedJWK, {
      typ: 'dpop+jwt',
      algorithms,
      currentDate: new Date(expected.now),
      clockTolerance: proofWindow / 1_000,
    }));
  } catch (error) {
    throw new ProofFault(faultOf(error), { cause: error });
  }
  const { jti, htm, htu, iat, ath, nonce } = payload;
  if (typeof jti !== 'string' || jti === '' || jti.length > maxJti) {
    throw new ProofFault(`its jti has to be a text of at most ${maxJti} characters, new for each proof`);
  }
  if (htm !== expected.method) throw new ProofFault(`its htm has to be ${expected.method}`);
  if (typeof htu !== 'string' || normal(htu) !== normal(expected.url)) {
    throw new ProofFault(`its htu has to be ${expected.url}`);
  }
  if (typeof iat !== 'number' || Math.abs(expected.now - iat * 1_000) > proofWindow) {
    throw new ProofFault(`its iat has to be within ${proofWindow / 1_000} s of now: make a proof for each request`);
  }
  if (expected.nonce !== undefined && nonce !== expected.nonce) {
    throw new ProofFault('its nonce has to be the one that was asked for');
  }
  if (expected.accessToken !== undefined && ath !== hashOf(expected.accessToken)) {
    throw new ProofFault('its ath has to be the hash of the access token that it comes with');
  }
  return { jkt: await calculateJwkThumbprint(jwk, 'sha256'), jti, until: iat * 1_000 + 2 * proofWindow };
}

function checkHeader(proof: string): JWK {
  if (proof.length > maxLength || !/^[\w-]+\.[\w-]+\.[\w-]+$/.test(proof)) {
    throw new ProofFault('it has to be one compact JWS');
  }
  let header: ReturnType<typeof decodeProtectedHeader>;
  try {
    header = decodeProtectedHeader(proof);
  } catch (error) {
    throw new ProofFault('its header cannot be read', { cause: error });
  }
  if (header.typ !== 'dpop+jwt') throw new ProofFault('its typ has to be dpop+jwt');
  if (typeof header.alg !== 'string' || !algorithms.includes(header.alg)) {
    throw new ProofFault(`its alg has to be one of ${algorithms.join(', ')}`);
  }
  const { jwk } = header;
  if (typeof jwk !== 'object' || jwk === null || jwk.kty === 'oct') {
    throw new ProofFault('its header has to hold the public key as jwk');
  }
  if (privateMembers.some((member) => Object.hasOwn(jwk, member))) {
    throw new ProofFault('its jwk holds a private key: that key is known to others now, make a new one');
  }
  const other = Object.keys(header).find((member) => !headerMembers.has(member));
  if (other !== undefined) throw new ProofFault('its header may hold typ, alg and jwk only');
  return jwk;
}

function faultOf(error: unknown): string {
  if (error instanceof errors.JWSSignatureVerificationFailed) return 'its signature is not of the key in its header';
  if (error instanceof errors.JWTExpired) return 'it has expired';
  if (error instanceof errors.JWTClaimValidationFailed) return `its ${error.claim} is wrong`;
  return 'it is not a well-formed proof';
}

/** RFC 9449 §4.3, RFC 3986 §6.2.2 and §6.2.3: without query and fragment, case and default ports as they are meant. */
function normal(url: string): string | undefined {
  if (!URL.canParse(url)) return undefined;
  const { origin, pathname } = new URL(url);
  return `${origin}${pathname}`;
}

/** RFC 9449 §4.2: base64url of the SHA-256 of the token's ASCII. */
export function hashOf(accessToken: string): string {
  return createHash('sha256').update(accessToken).digest('base64url');
}
